"""Writes SR4-World as records: python -m data_pipelines.world --out DIR --count 4096 [--simple]."""

import argparse


def main(argv=None):
  parser = argparse.ArgumentParser(prog='python -m data_pipelines.world', description=__doc__)
  parser.add_argument('--out', required=True, help='a new folder')
  parser.add_argument('--count', type=int, required=True, help='clips')
  parser.add_argument('--start', type=int, default=0, help='index of the first clip')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--frames', type=int, default=33)
  parser.add_argument('--height', type=int, default=64)
  parser.add_argument('--width', type=int, default=64)
  parser.add_argument('--fps', type=float, default=16)
  parser.add_argument('--sample_rate', type=int, default=16000)
  parser.add_argument('--channels', type=int, default=2)
  parser.add_argument(
    '--simple', action='store_true', help='one object, dark background, no talker'
  )
  args = parser.parse_args(argv)

  import tqdm

  from data_pipelines import records
  from data_pipelines import world

  make = world.Config.simple if args.simple else world.Config
  config = make(
    height=args.height,
    width=args.width,
    frames=args.frames,
    fps=args.fps,
    sample_rate=args.sample_rate,
    channels=args.channels,
  )
  source = world.World(config, args.seed)

  def clips():
    for index in tqdm.trange(args.start, args.start + args.count, mininterval=2):
      sample = source[index]
      yield records.Record(
        id=f'world-{args.seed}-{index}',
        frames=sample.frames,
        fps=args.fps,
        samples=sample.samples,
        sample_rate=args.sample_rate,
        captions=sample.captions,
      )

  records.write(args.out, clips())


if __name__ == '__main__':
  main()
