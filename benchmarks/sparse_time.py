"""Wall time of sparse attention beside dense attention's on the device at hand, in one run.

  python benchmarks/sparse_time.py [--tokens 4096] [--tile 128] [--heads 2]

Forward, and forward with gradients, at sparsities 2/3, 0.8 and 0.9, each the least of some runs
that take turns.  On a CPU sparse attention is the plain reference, which computes all scores and
hides those of tiles that are not read: it can only lose.  On a GPU it is the Pallas kernel.
"""

import argparse
import time

import jax
import jax.numpy as jnp

from sr4.core import sharding
from sr4.nn import attention
from sr4.nn import vsa

HEAD, RUNS = 128, 5


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--tokens', type=int, default=4096)
  parser.add_argument('--tile', type=int, default=128)
  parser.add_argument('--heads', type=int, default=2)
  args = parser.parse_args()
  gpu = jax.default_backend() == 'gpu'
  kind = jnp.bfloat16 if gpu else jnp.float32
  keys = jax.random.split(jax.random.key(0), 4)
  with sharding.default_mesh():
    draw = lambda key: jax.random.normal(key, (1, args.tokens, args.heads, HEAD), kind)
    q, k, v, gate = map(draw, keys)
    valid = jnp.ones((1, args.tokens), bool)
    none = q[:, :0], valid[:, :0]
    pair = lambda x: (x, none[0])

    def dense(q, k, v, gate):
      return attention.attend(pair(q), pair(k), pair(v), (valid, none[1]))[0]

    def sparse(share):
      config = vsa.Config(tile=(args.tile,), sparsity=share)
      tiles = vsa.Tiles(jnp.full(1, share), (True,) * (args.tokens // args.tile), config)
      return lambda q, k, v, gate: vsa.attend(
        pair(q), pair(k), pair(v), gate, (valid, none[1]), tiles
      )[0]

    ways = {'dense': dense} | {f'{share:.2f}': sparse(share) for share in (2 / 3, 0.8, 0.9)}
    loss = lambda f: lambda *xs: jnp.sum(f(*xs).astype(jnp.float32) ** 2)
    programs = {name: jax.jit(f) for name, f in ways.items()}
    programs |= {f'{name} ': jax.jit(jax.grad(loss(f), (0, 1, 2, 3))) for name, f in ways.items()}
    least = {}
    for _ in range(RUNS + 1):  # The first compiles.
      for name, run in programs.items():
        begun = time.perf_counter()
        jax.block_until_ready(run(q, k, v, gate))
        least[name] = min(least.get(name, 1e9), time.perf_counter() - begun)
  device = jax.devices()[0].device_kind
  print(
    f'{device}, {args.tokens} tokens, tiles of {args.tile}, {args.heads} heads, {kind.__name__}'
  )
  print(
    '| sparsity | forward ms | of dense | with gradients ms | of dense |\n|---|---|---|---|---|'
  )
  for name in ways:
    figures = [1000 * least[name], least[name] / least['dense']]
    figures += [1000 * least[f'{name} '], least[f'{name} '] / least['dense ']]
    print('| {} | {:.1f} | {:.2f} | {:.1f} | {:.2f} |'.format(name, *figures))


if __name__ == '__main__':
  main()
