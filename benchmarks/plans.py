"""What training takes on four kinds of slices, by `sr4 plan`: the table of docs/pods.md.

  python benchmarks/plans.py --out out/plans [--only large,v5p]

Each cell is one `sr4 plan` with the layout that the config has for the generation; its JSON is kept
in OUT and not made again.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys

SIZES = ('base', 'large')
SHAPES = {  # of the stage that has it
  '480p 5 s': ('video5', 'clips-81x480x832'),
  '720p 5 s': ('joint', 'clips-81x720x1280'),
  '720p 15 s': ('joint', 'clips-241x720x1280'),
  '1080p 15 s': ('joint', 'clips-241x1088x1920'),
}
SLICES = ('v5e:16x16', 'v6e:16x16', 'v5p:8x8x8', 'tpu7x:4x4x4')
WIDER = ('v6e:16x16', 'tpu7x:4x4x4')  # Matrix units as wide as the heads of -hd256.
HEAD = (
  '| model | clip | slice | fsdp x seq, parts, kept | GiB | to spare | PFLOP | x | step s | MFU '
  '| exposed |'
)


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--out', required=True, metavar='DIR')
  parser.add_argument('--only', default='', help='rows that have all these words, by commas')
  args = parser.parse_args()
  os.makedirs(args.out, exist_ok=True)
  cells = [*itertools.product(SIZES, SHAPES, SLICES)]
  cells += itertools.product(['large-hd256'], ['720p 5 s', '1080p 15 s'], WIDER)
  print(HEAD)
  print('|---' * HEAD.count(' |') + '|')
  for size, shape, where in cells:
    if all(word in f'{size} {shape} {where}' for word in args.only.split(',')):
      print(row(size, shape, where, plan(size, shape, where, args.out)), flush=True)


def plan(size: str, shape: str, where: str, folder: str) -> dict:
  """The JSON of one, made if it is not there."""
  (stage, bucket), generation = SHAPES[shape], where.partition(':')[0]
  path = os.path.join(folder, f'{size}-{bucket}-{generation}.json')
  if not os.path.exists(path):
    config = f'configs/skyreels_v4.py:{stage},{size},{generation}'
    command = ['plan', '--config', config, '--topology', where, '--bucket', bucket]
    done = subprocess.run(
      [sys.executable, '-m', 'sr4', *command, '--nearest', '0', '--json', path],
      capture_output=True,
      text=True,
    )
    if not os.path.exists(path):
      raise SystemExit(done.stderr)
  with open(path) as f:
    return json.load(f)


def row(size: str, shape: str, where: str, told: dict) -> str:
  head = f'| {size} | {shape} | {where} '
  for why in told['refused'].values():
    return f'{head}| {why} |'
  (found,), mesh = told['buckets'], told['mesh']
  gib = found['hbm_gib']
  layout = f'{mesh["fsdp"]} x {mesh["seq"]}, {told["accumulate"]}, {told["remat"]}'
  memory = f'{gib["total"]:.1f} of {gib["capacity"]:.1f} | {1 - gib["total"] / gib["capacity"]:.0%}'
  work = f'{found["flops"]["model"] / 1e15:.0f} | {found["recompute"]:.2f}'
  times = 'does not fit | |'
  if found['fits']:
    times = f'{found["step_seconds"]:.1f} | {found["mfu"]:.1%} | {found["exposed"]:.1%}'
  return f'{head}| {layout} | {memory} | {work} | {times} |'


if __name__ == '__main__':
  main()
