"""Says what a stage takes on a TPU slice, by compiling it for one: no chip is needed.

  sr4 plan --config configs/skyreels_v4.py:video4,small --topology v5p:2x2x2 \\
    --json plan.json --html plan.html

For each bucket: what a device's memory holds as the TPU compiler lays it out and whether it fits
(and if not, the nearest change with which it does), operations and collectives of the compiled
program, and by a stated model of these facts the time of a step, MFU, days and cost of the bucket's
volume.  --config.mesh.seq=4 and the like change the mesh, as in training.  Exits 1 where a bucket
does not fit.  Needs pip install 'sr4[tpu]'.
"""

import sys


def arguments(parser):
  parser.add_argument('--config', required=True, metavar='FILE[:ARG]')
  parser.add_argument(
    '--topology', required=True, help='v5p:8x8x8, v5p-1024, or 2*v5p:8x8x8 for two slices'
  )
  parser.add_argument('--bucket', action='append', default=[], help='these alone')
  parser.add_argument('--json', metavar='FILE', help='write the figures there, too')
  parser.add_argument('--html', metavar='FILE', help='write a page with pictures there')
  parser.add_argument(
    '--flags',
    metavar='FILE',
    help="XLA's, one --NAME=VALUE a line; launch/flags/GENERATION.txt by default, '' for none",
  )
  parser.add_argument(
    '--nearest',
    type=int,
    default=4,
    metavar='N',
    help='compile at most so many changes in search of one that makes a bucket fit (4)',
  )
  parser.add_argument(
    '--whole',
    action='store_true',
    help="compile to machine code, ten times as long: for the compiler's own estimates of cycles "
    'in the times, the size of the code in the memory, and kernels that it refuses only then',
  )
  parser.add_argument('--chip_hour_usd', type=float, help='instead of the list price')


def main(args):
  import dataclasses
  import json
  import os

  os.environ.setdefault('JAX_PLATFORMS', 'cpu')  # libtpu is there to compile, not to run.
  from sr4.core import config as config_lib
  from sr4.core import errors
  from sr4.core import files
  from sr4.core import flags
  from sr4.core import sharding
  from sr4.models import system as system_lib
  from sr4.planning import asking
  from sr4.planning import compiling
  from sr4.planning import cost
  from sr4.planning import hlo
  from sr4.planning import nearest
  from sr4.planning import page as page_lib
  from sr4.planning import roofline
  from sr4.planning import topology as topology_lib
  from sr4.training import data
  from sr4.training import loop

  topology = topology_lib.parse(args.topology)
  config = config_lib.load(args.config, args.overrides)
  options = flags.of(topology.generation, {})
  if args.flags is not None:
    options = flags.read(args.flags) if args.flags else {}
  system, c = system_lib.build(config), loop.Sections.of(config)
  buckets = data.shapes(config, system)
  if unknown := sorted(set(args.bucket) - set(buckets)):
    raise errors.UserError(f'--bucket {unknown[0]}: the buckets are {", ".join(buckets)}')
  asked = args.bucket or list(buckets)
  mesh = sharding.make_mesh(topology_lib.devices(topology), **dataclasses.asdict(c.mesh))
  data.check_rows(
    {name: len(buckets[name][1].text_valid) for name in asked}, mesh.shape, c.step.accumulate
  )
  price = args.chip_hour_usd or cost.CHIP_HOUR_USD[topology.generation]
  shape, steps, rows, refused = dict(mesh.shape), cost.steps(config), [], {}
  print(f'{topology}: {topology.chips} chips, mesh {shape}; GiB of a device, model of a step:')
  print(HEAD)
  for name in asked:

    def planned(overrides=(), topology=topology, name=name) -> dict:
      given = (*args.overrides, *overrides)
      return asking.plan(args.config, given, str(topology), name, options, args.whole)

    try:
      row = {'name': name} | planned()
    except (compiling.DoesNotCompile, hlo.HloError) as error:
      refused[name] = str(error)
      print(f'{name:<24} {error}', flush=True)
      continue
    row |= cost.volume(row, steps[name], topology.chips, price)
    print(line(row), flush=True)
    if not row['fits'] and args.nearest:
      remat, tries = system.config.remat, args.nearest
      row['nearest'] = nearest.find(planned, config, c, remat, name, topology, tries)
      print(page_lib.advice(row['nearest']), flush=True)
    rows.append(row)
  told = {
    'config': ' '.join([args.config, *(f'--config.{o}' for o in args.overrides)]),
    'topology': str(topology),
    'chips': topology.chips,
    'mesh': shape,
    'remat': system.config.remat,
    'accumulate': c.step.accumulate,
    'options': options,
    'assumptions': dataclasses.asdict(roofline.Assumptions()) | {'chip_hour_usd': price},
    'facts': page_lib.FACTS,
    'model': page_lib.MODEL,
    'buckets': rows,
    'refused': refused,
  }
  print(page_lib.legend())
  if args.json:
    files.save(args.json, json.dumps(told, indent=1).encode())
  if args.html and rows:
    files.save(args.html, page_lib.page(told).encode())
  if refused or not all(row['fits'] for row in rows):
    raise SystemExit(1)


HEAD = (
  f'{"bucket":<24} {"rows":>5} {"tokens":>7} {"weights":>7} {"optim.":>6} {"activ.":>6} '
  f'{"rest":>6} {"total":>6} {"of":>5} fits |{"PFLOP":>8} {"x":>5} | {"step s":>7} {"MFU":>6} '
  f'{"exposed":>7} {"days":>7} {"USD":>11}'
)


def line(row: dict) -> str:
  gib, times = row['hbm_gib'], ''
  if row['step_seconds'] is not None:
    times = (
      f'{short(row["step_seconds"]):>7} {row["mfu"]:>6.1%} {row["exposed"]:>7.1%} '
      f'{short(row["days"]):>7} {row["usd"]:>11,.0f}'
    )
  return (
    f'{row["name"]:<24} {row["rows"]:>5} {sum(row["tokens"].values()):>7} '
    f'{gib["parameters"]:>7.2f} {gib["optimizer"]:>6.2f} {gib["activations"]:>6.2f} '
    f'{gib["batch"] + gib["temporaries"]:>6.2f} {gib["total"]:>6.2f} {gib["capacity"]:>5.1f} '
    f'{"yes" if row["fits"] else "NO":<4} |{short(row["flops"]["model"] / 1e15):>8} '
    f'{row["recompute"]:>5.2f} | {times}'
  ).rstrip()


def short(x: float) -> str:
  """Two decimals, or two digits of what is small."""
  return f'{x:.2f}' if x >= 0.1 else f'{x:.2g}'


if __name__ == '__main__':
  from sr4 import cli

  cli.run(sys.modules[__name__])
