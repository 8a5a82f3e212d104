"""Records: clips with their captions in ArrayRecord shards, read by index.

    blob = to_bytes(record, codec)   checksum, then safetensors; the same record, the same bytes
    record = from_bytes(blob)
    manifest = write(directory, records)
    source = Source(directory); source[i]

    python -m data_pipelines.records --media my_clips --out /data/clips --height 64 --width 64

A directory of records is complete if and only if it holds manifest.json: it is written under
another name and renamed at the end.
"""
import argparse
import bisect
import collections
import csv
import dataclasses
import difflib
import errno
import hashlib
import itertools
import json
import operator
import os
import pathlib
import shutil
import sys
import threading
import uuid
import zlib
from collections.abc import Iterable, Iterator

import numpy as np
import safetensors.numpy

from sr4.core import errors

SCHEMA = 1
CODECS = ('raw', 'mp4')
MANIFEST = 'manifest.json'
VIDEO = ('.mp4', '.mov', '.m4v', '.mkv', '.webm', '.avi', '.ts', '.mpg', '.mpeg', '.gif')
IMAGE = ('.png', '.jpg', '.jpeg', '.webp', '.bmp', '.tif', '.tiff')
AUDIO = ('.wav', '.mp3', '.flac', '.m4a', '.ogg', '.aac')
MEDIA_COLUMNS = ('video', 'audio', 'image')
OTHER_COLUMNS = ('reference_image', 'reference_video', 'reference_audio', 'video_mask')


class RecordError(errors.UserError):
  """Records that are broken, incomplete or of another kind, or input that makes none."""


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
  """One clip, picture or sound."""
  id: str
  frames: np.ndarray | None  # uint8 [t h w 3]; a picture has t = 1
  fps: float
  samples: np.ndarray | None  # float in [-1, 1] or int16, [n c]; from_bytes gives float32
  sample_rate: int
  captions: dict[str, str]

  @property
  def has_video(self) -> bool:
    return self.frames is not None

  @property
  def has_audio(self) -> bool:
    """Is there anything to hear?  All zeros are no sound."""
    return self.samples is not None and bool(to_int16(self.samples).any())

  @property
  def seconds(self) -> float:
    if self.frames is not None:
      return len(self.frames) / self.fps
    return len(self.samples) / self.sample_rate


@dataclasses.dataclass(frozen=True)
class Manifest:
  """What a directory holds; manifest.json, field by field."""
  schema: int
  codec: str
  count: int
  video: int  # Records with pictures.
  audio: int  # Records with sound.
  audio_video: int  # Records with both.
  sizes: dict[str, int]  # 't h w' to the number of such records.
  fps: tuple[float, ...]
  sample_rates: tuple[int, ...]
  seconds: float
  bytes: int
  shards: tuple[dict, ...]  # name, count, bytes, sha256


def to_int16(samples: np.ndarray) -> np.ndarray:
  if samples.dtype == np.int16:
    return samples
  return np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)


def to_bytes(record: Record, codec: str = 'raw') -> bytes:
  """CRC-32 (4 bytes, little endian) of what follows, then a safetensors blob.

  Arrays: `frames` uint8 and `samples` int16, or `media`, the bytes of an MP4 that holds both.  All
  else is one JSON text in the metadata: safetensors stores several in no fixed order.
  """
  _check(record, codec)
  sound = record.has_audio
  meta = {
      'schema': SCHEMA, 'codec': codec, 'id': record.id, 'fps': float(record.fps),
      'sample_rate': int(record.sample_rate), 'captions': record.captions,
      'has_video': record.has_video, 'has_audio': sound,
      'frames': list(record.frames.shape) if record.has_video else None,
      'samples': list(record.samples.shape) if sound else None}
  arrays = {}
  if codec == 'mp4' and record.has_video:
    from data_pipelines import media  # Lazily: --help and raw records need no PyAV.
    mp4 = media.write(None, record.frames, record.fps, record.samples if sound else None,
                      record.sample_rate if sound else None)
    arrays['media'] = np.frombuffer(mp4, np.uint8)
  else:
    if record.has_video:
      arrays['frames'] = np.ascontiguousarray(record.frames)
    if sound:
      arrays['samples'] = np.ascontiguousarray(to_int16(record.samples))
  text = json.dumps(meta, sort_keys=True, ensure_ascii=False)
  blob = safetensors.numpy.save(arrays, {'record': text})
  return zlib.crc32(blob).to_bytes(4, 'little') + blob


def from_bytes(data: bytes) -> Record:
  """The record in the bytes of to_bytes; a flipped byte anywhere is a RecordError."""
  blob = memoryview(data)[4:]
  if len(blob) < 8 or zlib.crc32(blob) != int.from_bytes(data[:4], 'little'):
    raise RecordError(f'the checksum of {len(data)} bytes does not match: they have changed since '
                      'they were written. Restore the shard from a copy, or write it again.')
  header = json.loads(bytes(blob[8:8 + int.from_bytes(blob[:8], 'little')]))
  meta = json.loads(header['__metadata__']['record'])
  if meta['schema'] != SCHEMA:
    raise RecordError(f'schema {meta["schema"]}; this program reads {SCHEMA}. Write them again.')
  arrays = safetensors.numpy.load(bytes(blob))
  frames, samples = arrays.get('frames'), arrays.get('samples')
  if 'media' in arrays:
    from data_pipelines import media
    t, h, w, _ = meta['frames']
    channels = meta['samples'][1] if meta['has_audio'] else 1
    clip = media.read(arrays['media'].tobytes(), height=h, width=w, fps=meta['fps'], frames=t,
                      sample_rate=meta['sample_rate'] or 1, channels=channels)
    frames, samples = clip.frames, clip.samples
  elif samples is not None:
    samples = samples.astype(np.float32) / 32768
  return Record(meta['id'], frames, meta['fps'], samples, meta['sample_rate'], meta['captions'])


def _check(record: Record, codec: str):
  if codec not in CODECS:
    raise RecordError(f'codec is {codec!r}; choose one of {CODECS}.')
  x, s = record.frames, record.samples
  if x is None and not record.has_audio:
    raise RecordError(f'record {record.id!r} has neither pictures nor sound; leave it out.')
  if x is not None and (x.dtype != np.uint8 or x.ndim != 4 or x.shape[3] != 3 or not x.size):
    raise RecordError(f'record {record.id!r}: frames are {x.dtype} {list(x.shape)}; give uint8 '
                      '[t h w 3].')
  if s is not None and (s.ndim != 2 or not (s.dtype == np.int16 or s.dtype.kind == 'f')
                        or not np.isfinite(s).all()):
    raise RecordError(f'record {record.id!r}: samples are {s.dtype} {list(s.shape)}; give finite '
                      'float in [-1, 1] or int16, [n c].')
  if not record.fps > 0 or (s is not None and not record.sample_rate > 0):
    raise RecordError(f'record {record.id!r}: fps {record.fps!r}, sample_rate '
                      f'{record.sample_rate!r}; both must be above 0.')
  if codec == 'mp4' and x is not None and record.has_audio:
    n = round(len(x) / record.fps * record.sample_rate)
    if len(s) != n:
      raise RecordError(f'record {record.id!r}: {len(s)} samples beside {len(x)} frames; an MP4 '
                        f'gives back round(frames / fps * sample_rate) = {n}. Cut or pad them.')


# --- Directories ---------------------------------------------------------------------------------


def write(directory, records: Iterable[Record], *, codec: str = 'raw',
          shard_size: int = 256 << 20) -> Manifest:
  """Writes all records, or nothing.  Shards are closed once they hold `shard_size` bytes.

  Raises:
    RecordError: the directory is not empty, there is no record, or a record breaks the rules.
    OSError: a full or unwritable disk, with the directory in it.
  """
  directory = pathlib.Path(directory)
  if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
    raise RecordError(f'{directory} exists and is not empty; remove it, or write elsewhere.')
  partial = directory.parent / f'.{directory.name}.partial-{uuid.uuid4().hex[:8]}'
  try:
    partial.mkdir(parents=True)
    manifest = _write_shards(partial, records, codec, shard_size)
    with open(partial / MANIFEST, 'w', encoding='utf-8') as f:
      json.dump(dataclasses.asdict(manifest), f, indent=1)
    for path in (*partial.iterdir(), partial):
      _sync(path)
    os.rename(partial, directory)
    _sync(directory.parent)
  except BaseException as e:
    shutil.rmtree(partial, ignore_errors=True)
    if isinstance(e, OSError):
      raise OSError(e.errno or errno.EIO, e.strerror or str(e), str(directory)) from e
    raise
  return manifest


def _sync(path):
  fd = os.open(path, os.O_RDONLY)
  try:
    os.fsync(fd)
  finally:
    os.close(fd)


def _write_shards(folder, records, codec, shard_size) -> Manifest:
  total, sizes = collections.Counter(), collections.Counter()
  fps, sample_rates, seconds, shards, records = set(), set(), 0.0, [], iter(records)
  for first in records:
    path = folder / f'part-{len(shards):05d}'
    with _Shard(path) as shard:
      for record in itertools.chain([first], records):
        shard.write(to_bytes(record, codec))
        sound, seconds = record.has_audio, seconds + record.seconds
        total.update(video=record.has_video, audio=sound, audio_video=record.has_video and sound)
        if record.has_video:
          sizes[' '.join(map(str, record.frames.shape[:3]))] += 1
          fps.add(float(record.fps))
        sample_rates.update([int(record.sample_rate)] if sound else [])
        if shard.bytes >= shard_size:
          break
    with open(path, 'rb') as f:
      digest = hashlib.file_digest(f, 'sha256').hexdigest()
    shards.append({'count': shard.count, 'bytes': path.stat().st_size, 'sha256': digest})
  if not shards:
    raise RecordError('no record to write; check where they come from.')
  for i, shard in enumerate(shards):
    shard['name'] = f'part-{i:05d}-of-{len(shards):05d}'
    os.rename(folder / f'part-{i:05d}', folder / shard['name'])
  return Manifest(
      schema=SCHEMA, codec=codec, count=sum(s['count'] for s in shards), **total,
      sizes=dict(sorted(sizes.items())), fps=tuple(sorted(fps)),
      sample_rates=tuple(sorted(sample_rates)), seconds=round(seconds, 6),
      bytes=sum(s['bytes'] for s in shards), shards=tuple(shards))


class _Shard:
  """An ArrayRecord file being written; its errors become OSErrors."""

  def __init__(self, path):
    from array_record.python import array_record_module
    self.path, self.count, self.bytes = path, 0, 0
    self._writer = array_record_module.ArrayRecordWriter(str(path), 'group_size:1')

  def __enter__(self):
    return self

  def write(self, data: bytes):
    self._writer.write(data)  # It buffers: a full disk is told by close.
    self.count, self.bytes = self.count + 1, self.bytes + len(data)

  def __exit__(self, kind, *_):
    try:
      self._writer.close()
    except RuntimeError as e:
      if kind is None:
        code = errno.ENOSPC if 'No space left' in str(e) else errno.EIO
        raise OSError(code, str(e), str(self.path)) from e


def load_manifest(directory) -> Manifest:
  """Reads and checks manifest.json and that the shards it names are there, at full size."""
  directory = pathlib.Path(directory)
  if not directory.is_dir():
    raise RecordError(f'{directory}: no such folder of records; check the path.')
  try:
    text = (directory / MANIFEST).read_text(encoding='utf-8')
  except FileNotFoundError:
    raise RecordError(f'{directory} has no {MANIFEST}: these are no records, or an unfinished copy '
                      'of some. Copy it again, or write it with data_pipelines.records.') from None
  try:
    raw = json.loads(text)
    schema = raw['schema']
    if schema != SCHEMA:
      raise RecordError(f'{directory} has schema version {schema!r}, this program reads {SCHEMA}; '
                        'write the records again with this version.')
    manifest = Manifest(**raw)
    counted = sum(shard['count'] for shard in manifest.shards)
  except (ValueError, KeyError, TypeError) as e:
    if isinstance(e, RecordError):
      raise
    raise RecordError(f'{directory / MANIFEST} is damaged ({e}); restore it from a copy.') from e
  if counted != manifest.count:
    raise RecordError(f'{directory / MANIFEST}: count is {manifest.count}, but its shards hold '
                      f'{counted}; it was edited or damaged. Restore it from a copy.')
  for shard in manifest.shards:
    path = directory / shard['name']
    size = path.stat().st_size if path.exists() else None
    if size != shard['bytes']:
      raise RecordError(f'{path}: {"missing" if size is None else f"{size} bytes"}, the manifest '
                        f'says {shard["bytes"]} bytes; copy the shard again.')
  return manifest


class Source:
  """Random access to a directory of records.  Picklable; reads from many threads at once."""

  def __init__(self, directory):
    self.directory = os.fspath(directory)
    self.manifest = load_manifest(directory)
    self._open()

  def _open(self):
    self._ends = list(itertools.accumulate(s['count'] for s in self.manifest.shards))
    self._readers, self._lock = {}, threading.Lock()

  def __getstate__(self):
    return {'directory': self.directory, 'manifest': self.manifest}

  def __setstate__(self, state):
    self.__dict__.update(state)
    self._open()

  def __repr__(self):
    return f'Source({self.directory!r}, count={len(self)})'

  def __len__(self) -> int:
    return self.manifest.count

  def __getitem__(self, i) -> Record:
    i = operator.index(i)
    if not 0 <= i < len(self):
      raise IndexError(f'record {i} of {len(self)} in {self.directory}; give 0 to {len(self) - 1}.')
    number = bisect.bisect_right(self._ends, i)
    shard = self.manifest.shards[number]
    k = i - self._ends[number] + shard['count']
    where = f'{self.directory}/{shard["name"]}, record {k} (index {i})'
    try:
      return from_bytes(self._reader(number).read([k])[0])
    except (RuntimeError, ValueError) as e:  # ArrayRecord's own checksums raise RuntimeError.
      raise RecordError(f'{where}: {e}') from e

  def _reader(self, number: int):
    """The shard's reader, opened at first use; ArrayRecord's readers may be shared by threads."""
    reader = self._readers.get(number)
    if reader is not None:
      return reader
    from array_record.python import array_record_module
    with self._lock:
      if number not in self._readers:
        shard = self.manifest.shards[number]
        reader = array_record_module.ArrayRecordReader(
            os.path.join(self.directory, shard['name']), 'readahead_buffer_size:0',
            file_reader_buffer_size=32768)
        if reader.num_records() != shard['count']:  # A cut file reads as an empty one.
          raise RecordError(f'it holds {reader.num_records()} records, the manifest says '
                            f'{shard["count"]}; copy the shard again.')
        self._readers[number] = reader
      return self._readers[number]


# --- Command line: media to records --------------------------------------------------------------


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
    raise RecordError(f'{path}: no such file or folder; give --media what exists.')
  if path.is_file():
    return _from_metadata(path, caption)
  tables = [p for p in (path / f'metadata.{x}' for x in ('csv', 'json', 'jsonl')) if p.exists()]
  if len(tables) > 1:
    raise RecordError(f'{path} has {" and ".join(p.name for p in tables)}; give one to --media.')
  return _from_metadata(tables[0], caption) if tables else _from_folder(path, caption)


def _from_folder(folder, caption) -> list[Entry]:
  kinds = {x: kind for kind, xs in zip(MEDIA_COLUMNS, (VIDEO, AUDIO, IMAGE)) for x in xs}
  found = [(p, kinds[p.suffix.lower()]) for p in sorted(folder.rglob('*'))
           if p.suffix.lower() in kinds and not p.name.startswith('.') and p.is_file()]
  if not found:
    raise RecordError(f'{folder} holds no media; give a folder with {", ".join(VIDEO[:4])}, '
                      f'{", ".join(IMAGE[:2])} or {", ".join(AUDIO[:2])} files, or metadata.csv.')
  entries = []
  for p, kind in found:
    text = p.with_suffix('.txt')
    told = text.read_text(encoding='utf-8').strip() if text.exists() else caption
    entries.append(Entry(p.relative_to(folder).as_posix(), told, **{kind: p}))
  bare = [e.id for e in entries if e.caption is None]
  if bare:
    raise RecordError(
        f'{len(bare)} of {len(entries)} media in {folder} have no caption, e.g. {bare[0]}; write '
        f'{pathlib.Path(bare[0]).with_suffix(".txt")} beside it, add a metadata.csv with a caption '
        "column, or give all of them one text with --caption TEXT ('' for none).")
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
      raise RecordError(f'{path}: metadata is .csv, .json or .jsonl; give one, or a folder.')
  except (csv.Error, json.JSONDecodeError) as e:
    raise RecordError(f'{path}: not readable as {path.suffix[1:]} ({e}); correct it there.') from e
  if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
    raise RecordError(f'{path}: give a list of objects, each with {MEDIA_COLUMNS} and caption.')
  return rows


def _from_metadata(path, caption) -> list[Entry]:
  rows = _rows(path)
  columns = list(dict.fromkeys(c for row in rows for c in row if c is not None))
  if not rows:
    raise RecordError(f'{path} has no rows; give one for each clip.')
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
    raise RecordError(f'{path} has the columns {listed}; at least one of {MEDIA_COLUMNS} must be '
                      f'there, with paths relative to it.{near("video")}')
  if 'caption' not in columns and caption is None:
    raise RecordError(f"{path} has the columns {listed}; a 'caption' column must be there, or one "
                      f"text for all with --caption TEXT ('' for none).{near('caption')}")
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


def clips(entries: Iterable[Entry], args, tally: Tally) -> Iterator[Record]:
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
    except (media.MediaError, RecordError) as e:
      tally.skip('broken' if not made else 'broken after some clips', entry.id, e)
    except FileNotFoundError as e:
      tally.skip('missing file', entry.id, e)


def _cut(entry: Entry, args) -> Iterator[Record]:
  from data_pipelines import media
  captions = {'caption': entry.caption}
  main = entry.video or entry.audio
  if entry.image and not entry.video:
    if entry.audio:
      raise RecordError('an image with sound is no clip; give a video, or one of the two.')
    picture = media.read_image(entry.image, args.height, args.width)[None]
    yield Record(entry.id, picture, args.fps, None, args.sample_rate, captions)
    return
  if main is None:
    raise RecordError(f'none of {MEDIA_COLUMNS} is filled in.')
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
        raise RecordError(f'{entry.audio} has no audio stream; leave the column empty.')
    record = Record(f'{entry.id}#{k:04d}', frames, args.fps, samples, args.sample_rate, captions)
    if record.has_video or record.has_audio:
      yield record


def _parse(argv):
  parser = argparse.ArgumentParser('python -m data_pipelines.records', description=(
      'Cuts media into clips of one shape and writes them as records.'))
  add = parser.add_argument
  add('--media', required=True, help='a folder, or metadata.csv, .json, .jsonl with the columns '
      'video, audio, image (relative paths) and caption; audio replaces the sound of video')
  add('--out', required=True, help='a new folder for the records')
  add('--height', type=int, default=64)
  add('--width', type=int, default=64)
  add('--frames', type=int, default=33, help='of each clip (33); shorter media are skipped')
  add('--fps', type=float, default=16.0)
  add('--sample_rate', type=int, default=16_000)
  add('--channels', type=int, default=2, choices=(1, 2))
  add('--codec', default='raw', choices=CODECS, help='raw reads fastest; mp4 is far smaller')
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


def _table(manifest: Manifest, tally: Tally, out) -> str:
  reasons = ', '.join(f'{n} {reason}' for reason, n in sorted(tally.skipped.items()))
  rows = [
      ('files', tally.files, ''),
      ('clips', manifest.count, f'{manifest.video} with pictures'),
      ('clips with sound', manifest.audio, f'{manifest.count - manifest.audio} silent'),
      ('skipped', sum(tally.skipped.values()), reasons),
      ('seconds', f'{manifest.seconds:.2f}', ''),
      ('bytes', f'{manifest.bytes:,}', f'{manifest.codec}, {len(manifest.shards)} shard(s), {out}')]
  return '\n'.join(f'{name:18}{value:>14}  {note}'.rstrip() for name, value, note in rows)


def main(argv=None):
  args, tally = _parse(argv), Tally()
  try:
    entries = find(args.media, args.caption)
    manifest = write(args.out, clips(entries, args, tally), codec=args.codec)
  except RecordError as e:
    skipped = ', '.join(f'{n} {reason}' for reason, n in tally.skipped.items())
    sys.exit(f'error: {e}' + (f' Skipped: {skipped}.' if skipped else ''))
  except (ValueError, OSError) as e:
    sys.exit(f'error: {e}')
  except KeyboardInterrupt:
    sys.exit('interrupted: nothing was written.')
  print(_table(manifest, tally, args.out))


if __name__ == '__main__':
  main()
