"""Finds the layouts of a training over a TPU slice: memory against time, by the TPU compiler.

  sr4 sweep --config configs/skyreels_v4.py:joint,large --topology v5p:8x8x8 \\
    --bucket clips-81x720x1280 --out out/sweep --minutes 60

Every mesh x what is kept x kernel blocks x parts of the batch is listed, rules drop what cannot
be good (sr4/planning/sweep.py), the rest is compiled until the time is up, the promising first and
what will hardly fit last; run it again to go on.  OUT gets a JSON for each candidate, sweep.json,
and sweep.html with the front of memory and time.
--try.remat=full,attention --try.blocks=512x1024 --try.accumulate=1,2 say what to choose from.
Needs pip install 'sr4[tpu]'.
"""

import sys


def arguments(parser):
  parser.add_argument('--config', required=True, metavar='FILE[:ARG]')
  parser.add_argument('--topology', required=True, help='v5p:8x8x8, v5p-1024, 2*v5p:8x8x8')
  parser.add_argument('--bucket', required=True)
  parser.add_argument('--out', required=True, metavar='DIR')
  parser.add_argument(
    '--minutes', type=float, default=60.0, help='until no new compile begins (60)'
  )
  parser.add_argument('--processes', type=int, default=1, help='compiles at a time (1)')
  parser.add_argument('--try.remat', dest='remat', metavar='NAME,...')
  parser.add_argument('--try.blocks', dest='blocks', metavar='QUERIESxKEYS,...')
  parser.add_argument('--try.accumulate', dest='accumulate', metavar='N,...')
  parser.add_argument(
    '--dry', action='store_true', help='list candidates and reasons; compile none'
  )


def main(args):
  import collections
  import json
  import math
  import os
  import time

  os.environ.setdefault('JAX_PLATFORMS', 'cpu')  # libtpu is there to compile, not to run.
  import jax

  from sr4.core import config as config_lib
  from sr4.core import errors
  from sr4.core import files
  from sr4.core import sharding
  from sr4.core import tree
  from sr4.models import system as system_lib
  from sr4.planning import sweep
  from sr4.planning import sweeping
  from sr4.planning import topology as topology_lib
  from sr4.training import data

  if not 0 <= args.minutes < math.inf:
    raise errors.UserError(f'--minutes {args.minutes} must be 0 or more, and finite')
  if args.processes < 1:
    raise errors.UserError(f'--processes {args.processes} must be 1 or more')
  config = config_lib.load(args.config, args.overrides)
  system, topology = system_lib.build(config), topology_lib.parse(args.topology)
  buckets = data.shapes(config, system)
  if args.bucket not in buckets:
    raise errors.UserError(f'--bucket {args.bucket}: the buckets are {", ".join(buckets)}')
  size, clips = buckets[args.bucket]
  with sharding.default_mesh():
    model = jax.eval_shape(lambda: system.model(jax.random.key(0)))
  tokens = max(system.tokens(size))
  job = sweep.Job(system.config, tree.count(model), len(clips.text_valid), tokens, topology)
  objections = {c: sweep.objection(c, job) for c in sweep.candidates(job, choices(args))}
  left = [c for c, (rule, _) in objections.items() if not rule]
  dropped = collections.Counter(rule for rule, _ in objections.values() if rule)
  told = ', '.join(f'{rule} {count}' for rule, count in dropped.items())
  print(
    f'{len(objections)} candidates, {len(left)} to compile; dropped by rule: {told}', flush=True
  )
  if args.dry:
    print('\n'.join(f'{c.name}: {why or "to compile"}' for c, (_, why) in objections.items()))
    return
  about = {'config': config_lib.to_json(config), 'topology': str(topology), 'bucket': args.bucket}
  sweeping.claim(args.out, about)
  left.sort(key=lambda c: sweep.promising(c, job))
  own = ['--config', args.config, *(f'--config.{override}' for override in args.overrides)]
  asked = [*own, '--topology', str(topology), '--bucket', args.bucket]
  until = time.monotonic() + 60 * args.minutes
  rows = sweeping.run(asked, left, args.out, args.processes, until)
  told = sweeping.summary(own, job, rows, dropped)
  files.save(os.path.join(args.out, 'sweep.json'), json.dumps(told, indent=1).encode())
  files.save(os.path.join(args.out, 'sweep.html'), sweeping.page(told).encode())
  print(sweeping.table(told))
  print(f'{len(rows)} of {len(left)} are compiled; the best:\n{told["launch"]}')


def choices(args):
  """sweep.Choices of what was asked for."""
  from sr4.core import errors
  from sr4.planning import sweep

  try:
    asked = {
      name: tuple(map(kind, text.split(',')))
      for name, kind in (('remat', str), ('blocks', sizes), ('accumulate', int))
      if (text := getattr(args, name))
    }
    return sweep.Choices(**asked)
  except ValueError as error:
    raise errors.UserError(f'--try: {error}') from error


def sizes(text: str) -> tuple[int, int]:
  """(queries, keys) of '512x1024'."""
  queries, x, keys = text.partition('x')
  if not x:
    raise ValueError(f'blocks={text} are written QUERIESxKEYS, such as 512x1024')
  return int(queries), int(keys)


if __name__ == '__main__':
  from sr4 import cli

  cli.run(sys.modules[__name__])
