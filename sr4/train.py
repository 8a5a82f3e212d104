"""Trains a model, from the start or from where its workdir left off.

  sr4 train --config configs/world.py:demo --workdir out/demo --config.train.steps=2000

The workdir gets checkpoints/, metrics.jsonl, tensorboard/ and previews/.  SIGTERM saves and exits
0; the same command goes on from there.
"""

import sys


def arguments(parser):
  parser.add_argument(
    '--config',
    required=True,
    metavar='FILE[:ARG]',
    help='a config program; --config.a.b=VALUE overrides what it says',
  )
  parser.add_argument('--workdir', required=True, metavar='DIR')


def main(args):
  import os

  from sr4.core import config
  from sr4.training import loop

  loaded = config.load(args.config, args.overrides)
  os.makedirs(args.workdir, exist_ok=True)
  loop.run(loaded, args.workdir)


if __name__ == '__main__':
  from sr4 import cli

  cli.run(sys.modules[__name__])
