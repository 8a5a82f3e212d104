"""The latent factory: records of media to records of latents and embeddings, ahead of training.

  python -m data_pipelines.encode --config configs/skyreels_v4.py:video2,published \\
    --bucket clips-81x192x336 --out /data/latents/clips

Then the bucket reads them: --config.data.buckets.clips-81x192x336.records='("latents:DIR",)' with
DIR=/data/latents/clips, or a path in data.root.  Clips longer than the bucket's become several.
Killed, the same command goes on; in a pod each process takes its share, and the last one joins
them.  Without --out it fills config.text.cache alone.

It writes statistics.json, too: mean and deviation of each channel of the latents.
"""

import sys


def arguments(parser):
  add = parser.add_argument
  add('--config', required=True, metavar='FILE[:ARG]', help='of the training that will read them')
  add('--bucket', required=True, help='of config.data.buckets: what is read, and its shape')
  add('--out', metavar='DIR', help='a new folder for the records')
  add('--rows', type=int, help='clips coded at a time (one for each device of this process)')
  add('--unit', type=int, default=64, help='records that are made anew after a kill (64)')
  add('--threads', type=int, default=2, help='that read media (2)')


def main(args):
  from sr4.core import config
  from sr4.core import pod

  loaded = config.load(args.config, args.overrides)
  with pod.joined():
    from data_pipelines import factory

    names = ('bucket', 'out', 'rows', 'unit', 'threads')
    factory.run(loaded, **{name: getattr(args, name) for name in names})


if __name__ == '__main__':
  from sr4 import cli

  cli.run(sys.modules[__name__])
