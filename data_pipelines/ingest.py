"""A folder of media, or a table of them, to records of clips of one shape.

python -m data_pipelines.ingest --media my_clips --out /data/clips --height 64 --width 64
"""

import argparse
import collections
from collections.abc import Iterable
from collections.abc import Iterator
import csv
import dataclasses
import difflib
import itertools
import json
import pathlib
import sys

from data_pipelines import records

VIDEO = ('.mp4', '.mov', '.m4v', '.mkv', '.webm', '.avi', '.ts', '.mpg', '.mpeg', '.gif')
IMAGE = ('.png', '.jpg', '.jpeg', '.webp', '.bmp', '.tif', '.tiff')
AUDIO = ('.wav', '.mp3', '.flac', '.m4a', '.ogg', '.aac')
MEDIA_COLUMNS = ('video', 'audio', 'image')
OTHER_COLUMNS = ('reference_image', 'reference_video', 'reference_audio', 'video_mask')


@dataclasses.dataclass(frozen=True)
class Entry:
  """One line of metadata, or one file of a folder without."""

  id: str
  caption: str | None
  video: pathlib.Path | None = None
  audio: pathlib.Path | None = None
  image: pathlib.Path | None = None


def find(path, caption: str | None = None) -> list[Entry]:
  """The entries of a metadata file, of a folder with one, or of a bare folder of media."""
  path = pathlib.Path(path)
  if not path.exists():
    raise records.RecordError(f'{path}: no such file or folder; give --media what exists.')
  if path.is_file():
    return _from_metadata(path, caption)
  tables = [p for p in (path / f'metadata.{x}' for x in ('csv', 'json', 'jsonl')) if p.exists()]
  if len(tables) > 1:
    raise records.RecordError(
      f'{path} has {" and ".join(p.name for p in tables)}; give one to --media.'
    )
  return _from_metadata(tables[0], caption) if tables else _from_folder(path, caption)


def _from_folder(folder, caption) -> list[Entry]:
  kinds = {x: kind for kind, xs in zip(MEDIA_COLUMNS, (VIDEO, AUDIO, IMAGE)) for x in xs}
  found = [
    (p, kinds[p.suffix.lower()])
    for p in sorted(folder.rglob('*'))
    if p.suffix.lower() in kinds and not p.name.startswith('.') and p.is_file()
  ]
  if not found:
    raise records.RecordError(
      f'{folder} holds no media; give a folder with {", ".join(VIDEO[:4])}, '
      f'{", ".join(IMAGE[:2])} or {", ".join(AUDIO[:2])} files, or metadata.csv.'
    )
  entries = []
  for p, kind in found:
    text = p.with_suffix('.txt')
    told = text.read_text(encoding='utf-8').strip() if text.exists() else caption
    entries.append(Entry(p.relative_to(folder).as_posix(), told, **{kind: p}))
  bare = [e.id for e in entries if e.caption is None]
  if bare:
    raise records.RecordError(
      f'{len(bare)} of {len(entries)} media in {folder} have no caption, e.g. {bare[0]}; write '
      f'{pathlib.Path(bare[0]).with_suffix(".txt")} beside it, add a metadata.csv with a caption '
      "column, or give all of them one text with --caption TEXT ('' for none)."
    )
  return entries


def _rows(path) -> list[dict]:
  text = path.read_text(encoding='utf-8-sig')
  try:
    if path.suffix == '.csv':
      return list(csv.DictReader(text.splitlines(keepends=True), strict=True))
    if path.suffix == '.jsonl':
      rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    elif path.suffix == '.json':
      rows = json.loads(text)
    else:
      raise records.RecordError(
        f'{path}: metadata is .csv, .json or .jsonl; give one, or a folder.'
      )
  except (csv.Error, json.JSONDecodeError) as e:
    raise records.RecordError(
      f'{path}: not readable as {path.suffix[1:]} ({e}); correct it there.'
    ) from e
  if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
    raise records.RecordError(
      f'{path}: give a list of objects, each with {MEDIA_COLUMNS} and caption.'
    )
  return rows


def _from_metadata(path, caption) -> list[Entry]:
  rows = _rows(path)
  columns = list(dict.fromkeys(c for row in rows for c in row if c is not None))
  if not rows:
    raise records.RecordError(f'{path} has no rows; give one for each clip.')
  _check_columns(path, columns, caption)
  entries, seen = [], collections.Counter()
  for number, row in enumerate(rows, 1):
    paths = {c: path.parent / row[c] for c in MEDIA_COLUMNS if row.get(c)}
    name = next((str(row[c]) for c in ('video', 'image', 'audio') if c in paths), f'row {number}')
    seen[name] += 1  # The same file may come twice, with another caption.
    suffix = f'~{seen[name]}' if seen[name] > 1 else ''
    entries.append(Entry(name + suffix, row.get('caption') or caption, **paths))
  return entries


def _check_columns(path, columns, caption):
  extra = [c for c in columns if c not in (*MEDIA_COLUMNS, *OTHER_COLUMNS, 'caption')]
  listed = ', '.join(columns)

  def near(name):
    match = difflib.get_close_matches(name, extra, 1, 0.6)
    return f" Did you mean {match[0]!r}? Rename it to '{name}'." if match else ''

  if not any(c in columns for c in MEDIA_COLUMNS):
    raise records.RecordError(
      f'{path} has the columns {listed}; at least one of {MEDIA_COLUMNS} must be '
      f'there, with paths relative to it.{near("video")}'
    )
  if 'caption' not in columns and caption is None:
    raise records.RecordError(
      f"{path} has the columns {listed}; a 'caption' column must be there, or one "
      f"text for all with --caption TEXT ('' for none).{near('caption')}"
    )
  known = [c for c in columns if c in OTHER_COLUMNS]
  if known:
    print(f'note: {", ".join(known)}: ignored by this command, nothing of them is stored.')
  if extra:
    print(f'note: unknown columns, not stored: {", ".join(extra)}.')


@dataclasses.dataclass
class Tally:
  """What the command line saw, for the table at the end."""

  files: int = 0
  skipped: collections.Counter = dataclasses.field(default_factory=collections.Counter)

  def skip(self, reason: str, name: str, why):
    self.skipped[reason] += 1
    print(f'skipped ({reason}): {name}: {why}', file=sys.stderr)


def clips(entries: Iterable[Entry], args, tally: Tally) -> Iterator[records.Record]:
  """Cuts each entry's media into records of args.frames frames; what cannot be is tallied."""
  from data_pipelines import media

  for entry in entries:
    tally.files += 1
    made = 0
    try:
      if entry.caption is None:
        tally.skip('no caption', entry.id, 'its caption is empty; fill it in, or give --caption.')
        continue
      for record in _cut(entry, args):
        made += 1
        yield record
      if not made:
        tally.skip('too short', entry.id, f'shorter than {args.frames} frames at {args.fps:g} fps.')
    except (media.MediaError, records.RecordError) as e:
      tally.skip('broken' if not made else 'broken after some clips', entry.id, e)
    except FileNotFoundError as e:
      tally.skip('missing file', entry.id, e)


def _cut(entry: Entry, args) -> Iterator[records.Record]:
  from data_pipelines import media

  captions = {'caption': entry.caption}
  main = entry.video or entry.audio
  if entry.image and not entry.video:
    if entry.audio:
      raise records.RecordError('an image with sound is no clip; give a video, or one of the two.')
    picture = media.read_image(entry.image, args.height, args.width)[None]
    yield records.Record(entry.id, picture, args.fps, None, args.sample_rate, captions)
    return
  if main is None:
    raise records.RecordError(f'none of {MEDIA_COLUMNS} is filled in.')
  sound = {'sample_rate': args.sample_rate, 'channels': args.channels}
  shape = {'height': args.height, 'width': args.width, 'fps': args.fps, 'frames': args.frames}
  count = media.audio_length(args.frames, args.fps, args.sample_rate)
  info, seconds = media.probe(main), args.frames / args.fps
  for k in itertools.count():
    at = k * (args.stride or seconds)
    if at + seconds > info.duration + 0.5 / args.fps:  # Pictures are placed to half a frame.
      return
    frames, samples = None, None
    if entry.video:
      clip = media.read(entry.video, **shape, **sound, start=info.start + at)
      frames, samples = clip.frames, clip.samples
    if entry.audio:
      start = at if entry.video else info.start + at
      samples = media.read_audio(entry.audio, **sound, count=count, start=start)
      if samples is None:
        raise records.RecordError(f'{entry.audio} has no audio stream; leave the column empty.')
    record = records.Record(
      f'{entry.id}#{k:04d}', frames, args.fps, samples, args.sample_rate, captions
    )
    if record.has_video or record.has_audio:
      yield record


def _parse(argv):
  parser = argparse.ArgumentParser(
    'python -m data_pipelines.ingest',
    description=('Cuts media into clips of one shape and writes them as records.'),
  )
  add = parser.add_argument
  add(
    '--media',
    required=True,
    help='a folder, or metadata.csv, .json, .jsonl with the columns '
    'video, audio, image (relative paths) and caption; audio replaces the sound of video',
  )
  add('--out', required=True, help='a new folder for the records')
  add('--height', type=int, default=64)
  add('--width', type=int, default=64)
  add('--frames', type=int, default=33, help='of each clip (33); shorter media are skipped')
  add('--fps', type=float, default=16.0)
  add('--sample_rate', type=int, default=16_000)
  add('--channels', type=int, default=2, choices=(1, 2))
  add(
    '--codec', default='raw', choices=records.CODECS, help='raw reads fastest; mp4 is far smaller'
  )
  add('--stride', type=float, help='seconds from one clip to the next (the length of a clip)')
  add('--caption', help="the caption of what has none; '' is allowed")
  args = parser.parse_args(argv)
  for name in ('height', 'width', 'frames', 'fps', 'sample_rate'):
    if not getattr(args, name) > 0:
      parser.error(f'--{name} is {getattr(args, name)}; it must be above 0.')
  if args.stride is not None and not args.stride > 0:
    parser.error(f'--stride is {args.stride}; give the seconds from one clip to the next.')
  if args.codec == 'mp4' and (args.height % 2 or args.width % 2):
    parser.error(f'--codec mp4 needs even sizes, not {args.height}x{args.width}; or take raw.')
  return args


def _table(manifest: records.Manifest, tally: Tally, out) -> str:
  reasons = ', '.join(f'{n} {reason}' for reason, n in sorted(tally.skipped.items()))
  rows = [
    ('files', tally.files, ''),
    ('clips', manifest.count, f'{manifest.video} with pictures'),
    ('clips with sound', manifest.audio, f'{manifest.count - manifest.audio} silent'),
    ('skipped', sum(tally.skipped.values()), reasons),
    ('seconds', f'{manifest.seconds:.2f}', ''),
    ('bytes', f'{manifest.bytes:,}', f'{manifest.codec}, {len(manifest.shards)} shard(s), {out}'),
  ]
  return '\n'.join(f'{name:18}{value:>14}  {note}'.rstrip() for name, value, note in rows)


def main(argv=None):
  args, tally = _parse(argv), Tally()
  try:
    entries = find(args.media, args.caption)
    manifest = records.write(args.out, clips(entries, args, tally), codec=args.codec)
  except records.RecordError as e:
    skipped = ', '.join(f'{n} {reason}' for reason, n in tally.skipped.items())
    sys.exit(f'error: {e}' + (f' Skipped: {skipped}.' if skipped else ''))
  except (ValueError, OSError) as e:
    sys.exit(f'error: {e}')
  except KeyboardInterrupt:
    sys.exit('interrupted: nothing was written.')
  print(_table(manifest, tally, args.out))


if __name__ == '__main__':
  main()
