"""Trains a model, from the start or from where its workdir left off.

  sr4 train --config configs/world.py:demo --workdir out/demo --config.train.steps=2000

The workdir gets checkpoints/, metrics.jsonl, goodput.jsonl, tensorboard/, previews/ and profiles/.
SIGTERM saves and exits 0, or 42 on all hosts of a pod; the same command goes on from there, on as
many hosts as there are then (sr4/core/pod.py says how they find each other).  SIGUSR1 traces the
next steps.
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
  parser.add_argument(
    '--verify',
    choices=('full', 'fast', 'off'),
    help='what restoring a checkpoint looks at: the digest of every array, of the small files, or '
    'nothing; the same as --config.train.verify, which is full by default',
  )


def main(args):
  import os
  import time

  began = time.time()  # Before what takes seconds to import.
  from sr4.core import config
  from sr4.core import pod

  verify = [f'train.verify={args.verify}'] if args.verify else []
  loaded = config.load(args.config, args.overrides + verify)
  with pod.joined():
    from sr4.training import loop

    os.makedirs(args.workdir, exist_ok=True)
    _, code = loop.run(loaded, args.workdir, began=began)
  if code:
    raise SystemExit(code)


if __name__ == '__main__':
  from sr4 import cli

  cli.run(sys.modules[__name__])
