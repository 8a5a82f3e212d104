"""The sparse attention kernel's cycles beside a dense matrix product's, by the TPU compiler.

  python benchmarks/kernel_cycles.py [--chips v5p,v6e] [--tiles 64,128,256] [--head 128]

A compiler's own schedule, not a measurement: the instructions (bundles) of the innermost loop of
each program, as libtpu writes them down, and the operations that one round of it does.  The dense
product is XLA's of 8192 x 8192 in bf16, compiled in the same process.  `of dense` is operations a
bundle of the kernel over operations a bundle of the product.  Needs pip install 'sr4[tpu]'.
"""

import argparse
import glob
import os
import re
import subprocess
import sys
import tempfile

TOKENS, HEADS = 32_768, 2
ROWS = 16  # of bf16 that one matmul instruction takes
UNIT = {'v4': 128, 'v5e': 128, 'v5p': 128, 'v6e': 256, 'tpu7x': 256}


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--chips', default='v5e,v5p,v6e,tpu7x')
  parser.add_argument('--tiles', default='64,128,256')
  parser.add_argument('--head', type=int, default=128)
  parser.add_argument('--compile', nargs=2, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.compile:
    return compile_all(args.compile[0], int(args.compile[1]), args.head)
  print('| chip | tile | pass | bundles a pair of tiles | of dense |\n|---|---|---|---|---|')
  for chip in args.chips.split(','):
    for tile in map(int, args.tiles.split(',')):
      for name, pair, share in rows(chip, tile, args.head):
        print(f'| {chip} | {tile} | {name} | {pair:.0f} | {share:.2f} |', flush=True)


def rows(chip: str, tile: int, head: int):
  """(pass, bundles for a pair of tiles, share) of each kernel."""
  from sr4.nn.kernels import block_sparse_tpu

  with tempfile.TemporaryDirectory() as folder:
    flags = f'--xla_jf_dump_to={folder} --xla_jf_dump_hlo_text=true --xla_jf_dump_llo_text=true'
    env = os.environ | {'LIBTPU_INIT_ARGS': flags, 'JAX_PLATFORMS': 'cpu'}
    command = [sys.executable, __file__, '--head', str(head), '--compile', chip, str(tile)]
    subprocess.run(command, env=env, check=True, capture_output=True)
    length, count = inner_loop(folder, 'fusion')
    dense = count * ROWS * UNIT[chip] ** 2 * 2 / length
    for i, (name, products) in enumerate((('forward', 2), ('backward', 5))):
      length, _ = inner_loop(folder, f'block_sparse_{name}')
      pair = length / block_sparse_tpu.GROUPS[tile][i]
      yield name, pair, products * 2 * tile**2 * head / pair / dense


def compile_all(chip: str, tile: int, head: int):
  import jax
  import jax.numpy as jnp

  from sr4.core import sharding
  from sr4.nn.kernels import block_sparse
  from sr4.planning import topology

  shape = {2: '2x2', 3: '2x2x1'}[topology.GENERATIONS[chip].dimensions]
  devices = topology.devices(topology.parse(f'{chip}:{shape}'))
  mesh = sharding.make_mesh(devices[:1])
  array = lambda shape, dtype: jax.ShapeDtypeStruct(
    shape, dtype, sharding=jax.NamedSharding(mesh, sharding.P())
  )
  tiles = TOKENS // tile
  x, valid = array((1, TOKENS, HEADS, head), jnp.bfloat16), array((1, TOKENS), bool)
  mask, square = array((1, HEADS, tiles, tiles), bool), array((8192, 8192), jnp.bfloat16)

  def loss(q, k, v, valid, mask):
    out = block_sparse.attend(q, k, v, valid, mask, tiles / 3, 'pallas_tpu')
    return jnp.sum(out.astype(jnp.float32))

  with jax.set_mesh(mesh):
    jax.jit(lambda a, b: a @ b).lower(square, square).compile()
    jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, x, x, valid, mask).compile()
  os._exit(0)  # The compiler does not end well with what it never ran.


def inner_loop(folder: str, name: str) -> tuple[int, int]:
  """(bundles, matmul instructions) of the smallest region with all of a program's matmuls."""
  found = []
  for path in glob.glob(f'{folder}/*{name}*-final_bundles.txt'):
    if 'schedule-analysis' in path:
      continue
    bundles, starts, regions = [], {}, []
    with open(path) as f:
      for line in f:
        if re.match(r'\s*(0x[0-9a-f]+|0)\s', line):
          bundles.append(len(re.findall('vmatmul', line)))
        for kind, region in re.findall(r'\b(Start|End) region (\d+)', line):
          if kind == 'Start':
            starts[region] = len(bundles) - 1
          elif region in starts:
            regions.append((starts[region], len(bundles)))
    whole = [(b - a, sum(bundles[a:b])) for a, b in regions if sum(bundles[a:b]) == sum(bundles)]
    if whole and sum(bundles):
      found.append(min(whole))
  return max(found, key=lambda region: region[1])


if __name__ == '__main__':
  main()
