"""What `sr4 export` takes: time, and memory beside what Python and JAX take for themselves.

  python benchmarks/export_speed.py --size small --out /tmp/export

A checkpoint with random weights of the size is written first, if it is not there.
"""

import argparse
import os
import shutil
import subprocess
import sys

import jax

from configs import skyreels_v4
from sr4.core import config as config_lib
from sr4.core import sharding
from sr4.core import tree
from sr4.models import system as system_lib
from sr4.training import checkpoint


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--size', default='small')
  parser.add_argument('--out', required=True)
  args = parser.parse_args()
  source = os.path.join(args.out, 'checkpoints')
  if not os.path.exists(source):
    write(source, args.size)
  one = os.path.join(args.out, 'debug')
  if not os.path.exists(one):
    write(one, 'debug')
  rows = [measure(path, os.path.join(args.out, 'exported')) for path in (one, source)]
  least = rows[0][1]
  for told, memory in rows:
    print(
      f'{told.split(": ")[1]}; {memory:.0f} MB at most, {memory - least:.0f} more than a tiny one'
    )


def write(path: str, size: str):
  config = skyreels_v4.get_config(f'joint,{size}')
  config.model.audio = False  # Of `small`, 1.4 B parameters: twice that is too much to write here.
  page = config_lib.to_json(config)
  with sharding.default_mesh(), checkpoint.Checkpoints(path) as saves:
    system = system_lib.build(page)
    model = jax.jit(system.model)(jax.random.key(0))
    print(f'{size}: {tree.count(model) / 1e9:.2f} B parameters', flush=True)
    saves.save(1, {'ema': model}, {'config': page})


def measure(source: str, out: str) -> tuple[str, float]:
  """(what the verb says, its largest resident memory in MB)."""
  shutil.rmtree(out, ignore_errors=True)
  # Of this program: getrusage would tell of the one that started it, if that was larger.
  program = (
    'import re, sys; from sr4 import cli, export; cli.run(export, sys.argv[1:]); '
    "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
  )
  command = [sys.executable, '-c', program, '--checkpoint', source, '--out', out]
  out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
  told, peak = out.splitlines()[-2:]
  return told, int(peak) * 1024 / 1e6


if __name__ == '__main__':
  main()
