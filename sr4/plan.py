"""Says what a stage takes on a TPU slice, by compiling it for one: no chip is needed.

  sr4 plan --config configs/skyreels_v4.py:video4,small --topology v5p:2x2x2 --json plan.json

For each bucket: the memory of a device as the TPU compiler lays it out, whether that fits, and the
floating-point operations of the model.  --config.mesh.seq=4 and the like change the mesh, as in
training.  Exits 1 where a bucket does not fit.  Needs pip install 'sr4[tpu]'.
"""

import sys


def arguments(parser):
  parser.add_argument('--config', required=True, metavar='FILE[:ARG]')
  parser.add_argument(
    '--topology', required=True, help='v5p:8x8x8, v5p-1024, or 2*v5p:8x8x8 for two slices'
  )
  parser.add_argument('--bucket', action='append', default=[], help='these alone')
  parser.add_argument('--json', metavar='FILE', help='write the figures there, too')


def main(args):
  import dataclasses
  import json
  import os

  os.environ.setdefault('JAX_PLATFORMS', 'cpu')  # libtpu is there to compile, not to run.
  import jax

  from sr4.core import config as config_lib
  from sr4.core import errors
  from sr4.core import files
  from sr4.core import sharding
  from sr4.models import system as system_lib
  from sr4.planning import compiling
  from sr4.planning import topology as topology_lib
  from sr4.training import data
  from sr4.training import loop

  topology = topology_lib.parse(args.topology)
  config = config_lib.load(args.config, args.overrides)
  system, c = system_lib.build(config), loop.Sections.of(config)
  buckets = data.shapes(config, system)
  if unknown := sorted(set(args.bucket) - set(buckets)):
    raise errors.UserError(f'--bucket {unknown[0]}: the buckets are {", ".join(buckets)}')
  asked = {name: buckets[name] for name in args.bucket or buckets}
  mesh = sharding.make_mesh(topology_lib.devices(topology), **dataclasses.asdict(c.mesh))
  data.check_rows(
    {name: len(clips.text) for name, (_, clips) in asked.items()}, mesh, c.step.accumulate
  )
  print(f'{topology}: {topology.chips} chips, mesh {dict(mesh.shape)}; GiB of a device:')
  print(HEAD)
  rows = []
  with jax.set_mesh(mesh):
    for name, (size, clips) in asked.items():
      found = compiling.plan(system, c, size, clips, topology.spec.hbm_gib)
      rows.append({'name': name} | found)
      print(line(rows[-1]), flush=True)
  if args.json:
    page = {'topology': str(topology), 'chips': topology.chips, 'mesh': dict(mesh.shape)}
    files.save(args.json, json.dumps(page | {'buckets': rows}, indent=1).encode())
  if not all(row['fits'] for row in rows):
    raise SystemExit(1)


HEAD = (
  f'{"bucket":<24} {"rows":>5} {"tokens":>8} {"weights":>8} {"optimizer":>9} {"batch":>7} '
  f'{"temporaries":>11} {"total":>7} {"of":>6}  fits  PFLOP a step'
)


def line(row: dict) -> str:
  gib = row['hbm_gib']
  return (
    f'{row["name"]:<24} {row["rows"]:>5} {sum(row["tokens"].values()):>8} '
    f'{gib["parameters"]:>8.2f} {gib["optimizer"]:>9.2f} {gib["batch"]:>7.2f} '
    f'{gib["temporaries"]:>11.2f} {gib["total"]:>7.2f} {gib["capacity"]:>6.2f}  '
    f'{"yes" if row["fits"] else "NO":<4}  {row["flops"]["model"] / 1e15:.1f}'
  )


if __name__ == '__main__':
  from sr4 import cli

  cli.run(sys.modules[__name__])
