"""A folder of media, or a table of them, to records of clips of one shape.

    python -m data_pipelines.ingest --media my_clips --out /data/clips --height 64 --width 64

What is left out is told with its reason: on stderr, in the table at the end, and line by line in
dropped.jsonl, which lies in OUT, or beside it as OUT.dropped.jsonl if nothing was written.
"""

import argparse
import collections
import json
import os
import pathlib
import re
import sys

from data_pipelines import entries
from data_pipelines import records

DROPPED = 'dropped.jsonl'
SMALL = 4 << 20  # Bytes of a clip's pixels; from here on raw records would be too large.
EPILOG = """columns of the table; paths are relative to it, and one of the first three is needed:
  video, audio, image    what is learnt; audio replaces the sound of video; an image is one frame
  caption, short, long, structured    texts, at least one
  reference_image, reference_video, reference_audio    paths, several with ';' (in JSON lists, too);
                         the captions name each: @image_1, @image_2, @video_1, @audio_1
  reference_grid         a picture of up to nine panels, each one more @image; blank ones are left
                         out; 'PATH#3x2': three across, two down (3x3)
  video_mask             a video or picture: what is bright (128 of 255) is to be generated
  start, end             seconds: only this stretch of the file is cut into clips
"""


class Tally:
  """What is left out, and why; written down as it happens."""

  def __init__(self, path: pathlib.Path):
    self.path, self.skipped, self._file = path, collections.Counter(), None

  def drop(self, name: str, reason: str, detail: str):
    if self._file is None:
      self.path.parent.mkdir(parents=True, exist_ok=True)
      self._file = self.path.open('w', encoding='utf-8')
    line = {'id': name, 'reason': reason, 'detail': detail}
    print(json.dumps(line, ensure_ascii=False), file=self._file, flush=True)
    print(f'dropped ({reason}): {name}: {detail}', file=sys.stderr)
    self.skipped[reason] += 1

  def close(self):
    if self._file is not None:
      self._file.close()

  def __str__(self):
    return ', '.join(f'{n} {reason}' for reason, n in sorted(self.skipped.items()))


def _parse(argv):
  parser = argparse.ArgumentParser(
    'python -m data_pipelines.ingest',
    description='Cuts media into clips of one shape and writes them as records.',
    epilog=EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add(
    '--media',
    required=True,
    help='a folder of media with captions in .txt files beside them, or a table of them: '
    'metadata.csv, .json or .jsonl',
  )
  add('--out', required=True, help='a new folder for the records')
  add('--height', type=int, default=64)
  add('--width', type=int, default=64)
  add('--frames', type=int, default=33, help='of each clip (33); shorter media are dropped')
  add('--fps', type=float, default=16.0)
  add('--sample_rate', type=int, default=16_000)
  add('--channels', type=int, default=2, choices=(1, 2))
  add(
    '--codec',
    choices=records.CODECS,
    help='mp4 (H.264, AAC, JPEG): a fiftieth of the bytes, what to take for training at 256p and '
    'above; raw: exact, for small clips and tests.  Left out: raw while the pixels of a clip take '
    f'at most {SMALL >> 20} MiB, then mp4',
  )
  add('--stride', type=float, help='seconds from one clip to the next (the length of a clip)')
  add('--caption', help="the caption of what has none; '' is allowed")
  add(
    '--reference_size',
    metavar='HxW',
    help='references are shrunk to fit in, with their aspect kept (HEIGHTxWIDTH)',
  )
  add(
    '--reference_seconds',
    type=float,
    help='the longest reference video or sound; of longer ones the beginning is kept (the length '
    'of a clip)',
  )
  args = parser.parse_args(argv)
  for name in ('height', 'width', 'frames', 'fps', 'sample_rate'):
    if not getattr(args, name) > 0:
      parser.error(f'--{name} is {getattr(args, name)}; it must be above 0.')
  for name in ('stride', 'reference_seconds'):
    if getattr(args, name) is None:
      setattr(args, name, args.frames / args.fps)
    elif not getattr(args, name) > 0:
      parser.error(f'--{name} is {getattr(args, name)}; give seconds, above 0.')
  args.reference_size = args.reference_size or f'{args.height}x{args.width}'
  if not re.fullmatch(r'[1-9]\d*x[1-9]\d*', args.reference_size):
    parser.error(f'--reference_size is {args.reference_size!r}; give HEIGHTxWIDTH, e.g. 256x256.')
  if args.codec is None:
    args.codec = 'mp4' if args.frames * args.height * args.width * 3 > SMALL else 'raw'
  if args.codec == 'mp4' and (args.height % 2 or args.width % 2):
    parser.error(
      f'--codec mp4 needs even sizes, not {args.height}x{args.width}; or take --codec raw.'
    )
  return args


def _table(files: int, manifest: records.Manifest, tally: Tally, out) -> str:
  dropped, references = sum(tally.skipped.values()), manifest.references
  rows = [
    ('files', files, ''),
    ('clips', manifest.count, f'{manifest.video} with pictures'),
    ('clips with sound', manifest.audio, f'{manifest.count - manifest.audio} silent'),
    ('dropped', dropped, f'{tally}: {out / DROPPED}' if dropped else ''),
    ('seconds', f'{manifest.seconds:.2f}', ''),
    ('bytes', f'{manifest.bytes:,}', f'{manifest.codec}, {len(manifest.shards)} shard(s), {out}'),
  ]
  if manifest.masks:
    rows.insert(3, ('clips with a mask', manifest.masks, ''))
  for kind in records.KINDS:
    if references[kind]:
      note = f'clips with one, at most {references[f"max {kind}"]} in a clip'
      rows.insert(-3, (f'{kind} references', references[kind], note))
  return '\n'.join(f'{name:18}{value:>14}  {note}'.rstrip() for name, value, note in rows)


def _ingest(args, out: pathlib.Path, tally: Tally) -> str:
  found = entries.find(args.media, args.caption)
  from data_pipelines import clips  # Lazily: --help needs no PyAV.

  shape = clips.Shape(
    height=args.height,
    width=args.width,
    frames=args.frames,
    fps=args.fps,
    sample_rate=args.sample_rate,
    channels=args.channels,
    stride=args.stride,
    reference_size=tuple(map(int, args.reference_size.split('x'))),
    reference_seconds=args.reference_seconds,
  )
  manifest = records.write(out, clips.cut(found, shape, tally.drop), codec=args.codec)
  if tally.skipped:
    os.replace(tally.path, out / DROPPED)
  else:
    tally.path.unlink(missing_ok=True)  # Of an earlier attempt.
  return _table(len(found), manifest, tally, out)


def main(argv=None):
  args = _parse(argv)
  out = pathlib.Path(args.out)
  tally = Tally(out.parent / f'{out.name}.{DROPPED}')
  try:
    print(_ingest(args, out, tally))
  except (ValueError, OSError) as e:
    why = f' Dropped: {tally}; each with its reason in {tally.path}.' if tally.skipped else ''
    sys.exit(f'error: {e}{why}')
  except KeyboardInterrupt:
    sys.exit('interrupted: nothing was written.')
  finally:
    tally.close()


if __name__ == '__main__':
  main()
