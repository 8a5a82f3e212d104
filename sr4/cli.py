"""The command line: `sr4 VERB`, and `python -m sr4.VERB`.  Light, so that --help is instant."""

import argparse
import importlib
import sys

from sr4.core import errors

VERBS = {
  'train': 'train a model: --config configs/world.py --workdir DIR',
  'sample': 'make clips with sound: --checkpoint DIR --prompt TEXT --out DIR',
  'evaluate': 'measure a model on SR4-World: --checkpoint DIR --out DIR',
  'plan': 'what a stage takes on a TPU slice: --config FILE:STAGE --topology v5p:8x8x8',
  'sweep': 'layouts over a slice: --config FILE:STAGE --topology T --bucket B --out DIR',
  'report': 'one page about a run, to look at and pass on: --workdir DIR',
  'export': 'a folder for diffusers and PyTorch: --checkpoint DIR --out DIR',
  'import': 'public weights as a checkpoint: --config FILE:...,published --out DIR',
  'verify': 'is a checkpoint as it was written: --checkpoint DIR',
}
INTERRUPTED = 130  # as shells tell of Ctrl-C


def main(argv=None):
  """Entry point of the console script."""
  argv = sys.argv[1:] if argv is None else argv
  parser = argparse.ArgumentParser(
    prog='sr4',
    description='Joint video and audio generation in JAX.',
    formatter_class=argparse.RawDescriptionHelpFormatter,
    epilog='verbs:\n'
    + '\n'.join(f'  {name:<10} {what}' for name, what in VERBS.items())
    + '\n\n`sr4 VERB --help` tells the rest.',
  )
  parser.add_argument('verb', choices=VERBS, metavar='VERB')
  if not argv or argv[0] in ('-h', '--help'):
    parser.parse_args(argv or ['--help'])
  verb = parser.parse_args(argv[:1]).verb
  run(module(verb), argv[1:])


def module(verb: str):
  return importlib.import_module(f'sr4.{verb}')


def run(verb, argv=None):
  """Runs a verb's module: `arguments(parser)`, then `main(args)`.  Errors of users are one line."""
  try:
    verb.main(parsed(verb, sys.argv[1:] if argv is None else argv))
  except (errors.UserError, OSError) as error:
    raise SystemExit(f'sr4: {error}') from error
  except KeyboardInterrupt:
    print('sr4: interrupted; what is written is whole', file=sys.stderr)
    raise SystemExit(INTERRUPTED) from None


def parsed(verb, argv) -> argparse.Namespace:
  """What the module's main is given: its options, and `overrides` of a config as `key=value`."""
  parser = argparse.ArgumentParser(
    prog=f'sr4 {verb.__spec__.name.rpartition(".")[2]}',
    description=verb.__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  verb.arguments(parser)
  own = [a for a in argv if not a.startswith('--config.')]
  args = parser.parse_args(own)
  args.overrides = [a.removeprefix('--config.') for a in argv if a.startswith('--config.')]
  if args.overrides and not getattr(args, 'config', None):
    raise errors.UserError(
      f'--config.{args.overrides[0]}: nothing here reads a config; leave it out'
    )
  return args
