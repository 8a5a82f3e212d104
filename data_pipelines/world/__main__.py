"""Writes SR4-World as records.

  python -m data_pipelines.world --out DIR --count 4096 [--simple] [--kind image_ref]
  python -m data_pipelines.world --config configs/skyreels_v4.py:video3,debug,world --count 256

The second form writes what a config's buckets read and is not there yet, at their sizes: folders
named KIND/FRAMESxHEIGHTxWIDTH or sounds/SECONDSs under data.root, and, under validate.root, their
held-out counterparts, an eighth as large, of another seed.
"""

import argparse
import os
import re
import sys

HELD_OUT = 8  # times fewer samples


def arguments(argv):
  from data_pipelines.world import kinds

  parser = argparse.ArgumentParser(
    prog='python -m data_pipelines.world',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  where = parser.add_mutually_exclusive_group(required=True)
  where.add_argument('--out', help='a new folder')
  where.add_argument('--config', metavar='FILE[:ARG]', help='write what its buckets read')
  parser.add_argument('--count', type=int, required=True, help='samples')
  parser.add_argument('--start', type=int, default=0, help='index of the first sample')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--kind', default='clips', choices=tuple(kinds.KINDS))
  parser.add_argument('--frames', type=int, default=33)
  parser.add_argument('--height', type=int, default=64)
  parser.add_argument('--width', type=int, default=64)
  parser.add_argument('--fps', type=float, default=16)
  parser.add_argument('--sample_rate', type=int, default=16000)
  parser.add_argument('--channels', type=int, default=2)
  parser.add_argument(
    '--simple', action='store_true', help='one object, dark background, no talker'
  )
  args, others = parser.parse_known_args(argv)
  args.overrides = [a.removeprefix('--config.') for a in others if a.startswith('--config.')]
  if unknown := [a for a in others if not a.startswith('--config.')]:
    parser.error(f'unknown: {" ".join(unknown)}')
  if args.overrides and not args.config:
    parser.error(f'--config.{args.overrides[0]}: it changes what --config reads; give that, too')
  for name in ('start', 'seed'):
    if getattr(args, name) < 0:
      parser.error(f'--{name} {getattr(args, name)} must be 0 or above')
  return args


def main(argv=None):
  from data_pipelines import world
  from sr4.core import config as config_lib
  from sr4.core import errors

  args = arguments(argv)
  make = world.Config.simple if args.simple else world.Config
  try:
    if args.config:
      write_config(config_lib.load(args.config, args.overrides), args)
    else:
      fields = ('height', 'width', 'frames', 'fps', 'sample_rate', 'channels')
      config = make(**{name: getattr(args, name) for name in fields})
      write(args.out, config, args.kind, args.seed, args.start, args.count)
  except (errors.UserError, OSError, ValueError) as error:
    sys.exit(f'error: {error}')
  except KeyboardInterrupt:
    sys.exit('interrupted: the folder that was being written is not there')


def write(folder: str, config, kind: str, seed: int, start: int, count: int):
  import tqdm

  from data_pipelines import records
  from data_pipelines import world
  from data_pipelines.world import kinds

  source = world.World(config, seed)
  samples = tqdm.trange(start, start + count, mininterval=2, desc=folder)
  records.write(folder, (kinds.make(source, index, kind) for index in samples))


def write_config(config, args):
  """The folders of all buckets that do not exist, and their held-out counterparts."""
  from data_pipelines import world

  audio = config.audio_codec
  for bucket in config.data.buckets.values():
    for folder in bucket.records:
      kind, frames, height, width = parse(folder, bucket.get('fps', 16.0))
      toy = world.Config.simple(
        height=height,
        width=width,
        frames=frames,
        fps=bucket.get('fps', 16.0),
        sample_rate=audio.sample_rate,
        channels=audio.get('audio_channels', 2),
      )
      for root, seed, count in (
        (config.data.root, args.seed, args.count),
        (config.get('validate', {}).get('root'), args.seed + 1, -(-args.count // HELD_OUT)),
      ):
        if root and not os.path.exists(os.path.join(root, folder)):
          write(os.path.join(root, folder), toy, kind, seed, args.start, count)


def parse(folder: str, fps: float) -> tuple[str, int, int, int]:
  """(kind, frames, height, width) of 'clips/17x32x32' or 'sounds/1s'."""
  from data_pipelines.world import kinds
  from sr4.core import errors

  told = re.fullmatch(r'(\w+)/(?:(\d+)x(\d+)x(\d+)|(\d+)s)', folder)
  if not told or told[1] not in kinds.KINDS:
    raise errors.UserError(
      f'the bucket reads {folder!r}; SR4-World writes KIND/FRAMESxHEIGHTxWIDTH and KIND/SECONDSs '
      f'with a KIND among {", ".join(kinds.KINDS)}'
    )
  if told[5]:
    return told[1], round(int(told[5]) * fps), 16, 16
  return told[1], int(told[2]), int(told[3]), int(told[4])


if __name__ == '__main__':
  main()
