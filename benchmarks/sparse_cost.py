"""Operations of sparse attention beside dense attention's, forward and backward, by count and as
compiled for a TPU: the clip's tokens and 512 of text, one head of 128.

  python benchmarks/sparse_cost.py [--chip v5p] [--tile 128]

`count` is of the tokens that there are.  `compiled` is what the program does: the padding of tiles,
of splash's blocks for dense attention, and the attention of means, as sr4/planning/operations.py
counts it from the compiler's text.  Needs pip install 'sr4[tpu]'.
"""

import argparse
import math
import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import jax.numpy as jnp

from sr4.core import flags
from sr4.core import sharding
from sr4.nn import attention
from sr4.nn import order
from sr4.nn import vsa
from sr4.planning import hlo
from sr4.planning import operations
from sr4.planning import topology

GRIDS = {  # clip: patches (t, h, w)
  '480p 5 s 16 fps': (21, 30, 52),
  '720p 5 s 16 fps': (21, 45, 80),
  '1080p 5 s 32 fps': (41, 68, 120),
  '1080p 15 s 32 fps': (121, 68, 120),
}
TEXT, HEAD = 512, 128


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--chip', default='v5p')
  parser.add_argument('--tile', type=int, default=128)
  args = parser.parse_args()
  shape = {2: '2x2', 3: '2x2x1'}[topology.GENERATIONS[args.chip].dimensions]
  devices = topology.devices(topology.parse(f'{args.chip}:{shape}'))
  mesh = sharding.make_mesh(devices[:1])
  print('| clip | tokens | cuboid | sparsity | count | compiled: forward | and backward |')
  print('|---|---|---|---|---|---|---|')
  with jax.set_mesh(mesh):
    for name, grid in GRIDS.items():
      tokens = math.prod(grid)
      dense = work(args.chip, mesh, tokens, None)
      places = len(order.tiles(grid, (args.tile,)))
      sides = 'x'.join(map(str, order.cuboid((args.tile,), grid)))
      for sparsity in (2 / 3, 0.8, 0.9):
        config = vsa.Config(tile=(args.tile,), sparsity=sparsity)
        found = work(args.chip, mesh, places, config)
        means = ((tokens + TEXT) / args.tile) ** 2
        count = 1 + (means - sparsity * tokens**2) / (tokens + TEXT) ** 2
        print(
          f'| {name} | {tokens:,} | {sides} | {sparsity:.2f} | {count:.3f} | '
          f'{found[0] / dense[0]:.3f} | {found[1] / dense[1]:.3f} |',
          flush=True,
        )
  os._exit(0)  # The compiler does not end well with what it never ran.


def work(chip: str, mesh, length: int, config: vsa.Config | None) -> tuple[float, float]:
  """Operations of the forward pass alone, and of both."""
  whole = jax.NamedSharding(mesh, sharding.P())
  array = lambda shape, dtype: jax.ShapeDtypeStruct((1, *shape), dtype, sharding=whole)
  one = lambda s: array((s, 1, HEAD), jnp.bfloat16)
  pair, valid = (one(length), one(TEXT)), (array((length,), bool), array((TEXT,), bool))

  def attend(q, k, v, gate, valid, sparsity):
    if config is None:
      return attention.attend(q, k, v, valid)
    tiles = vsa.Tiles(sparsity, (True,) * (length // config.size), config)
    return vsa.attend(q, k, v, gate, valid, tiles)

  loss = lambda *args: sum(jnp.sum(x.astype(jnp.float32)) for x in attend(*args))
  options = flags.of(chip, {})
  found = []
  for run in (attend, jax.grad(loss, (0, 1, 2, 3))):
    args = pair, pair, pair, pair[0], valid, array((), jnp.float32)
    text = jax.jit(run).lower(*args).compile(compiler_options=options).as_text()
    total = operations.program(hlo.parse(text))
    assert not total.unknown, total.unknown
    found.append(total.flops)
  return tuple(found)


if __name__ == '__main__':
  main()
