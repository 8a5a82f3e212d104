"""The model of a step's time against a run that was published.

  python benchmarks/published.py [FILE.xz]    # Writes the compiled program's text there, too.

Wan2.1-14B at 720p, 81 frames, trained by MaxDiffusion on v5p-8 (4 chips): 36.0 s a step at an MFU
of 29.6 %.  Its step is written down here as far as it takes time: 40 layers of self-attention over
75,600 tokens, cross-attention to 512 of text, MLP; every layer computed again in the backward pass;
weights and tokens split over the 4 chips; AdamW.  `sr4 plan`'s own chain reads it: the TPU
compiler, the program's facts, the roofline.
"""

import dataclasses
import functools
import json
import lzma
import os
import re
import sys

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import jax.numpy as jnp
import optax

from sr4.core import sharding
from sr4.core import tree
from sr4.core.sharding import P
from sr4.nn.kernels import splash
from sr4.planning import compiling
from sr4.planning import hlo
from sr4.planning import operations
from sr4.planning import roofline
from sr4.planning import topology as topology_lib

MEASURED_SECONDS, MEASURED_MFU = 36.0, 0.296


@dataclasses.dataclass(frozen=True)
class Wan:
  """Wan2.1-14B's transformer, at the clip that was measured."""

  layers: int = 40
  d: int = 5120
  heads: int = 40
  f: int = 13824
  tokens: int = 75_600
  text: int = 512
  head: int = 128

  @property
  def flops(self) -> float:
    """Of training on one clip: three times the matrix products of the forward pass."""
    n, t, d = self.tokens, self.text, self.d
    linear = 2 * n * (4 * d * d + 2 * d * self.f)
    cross = 2 * n * 2 * d * d + 2 * t * 2 * d * d + 4 * n * t * d
    return 3 * self.layers * (linear + cross + 4 * n * n * d)


def implied_batch(wan: Wan, chips: int, peak: float) -> float:
  """Clips in a step, by what was published of it."""
  return MEASURED_SECONDS * MEASURED_MFU * chips * peak / wan.flops


def shapes(wan: Wan, mesh) -> dict:
  """Weights, one layer after another; their first side lies over the chips."""
  d, f, n, k = wan.d, wan.f, wan.heads, wan.head
  made = {
    'qkv': (d, 3, n, k),
    'out': (n, k, d),
    'cross_q': (d, n, k),
    'cross_kv': (d, 2, n, k),
    'cross_out': (n, k, d),
    # In lanes: libtpu 0.0.51 aborts on 2 x 2 x 1 where a gradient [d f] is reduced.
    'up': (d, f // k, k),
    'down': (f // k, k, d),
  }
  split = lambda shape: P(None, 'seq', *(None for _ in shape[1:]))
  return {
    name: jax.ShapeDtypeStruct(
      (wan.layers, *shape), jnp.float32, sharding=jax.NamedSharding(mesh, split(shape))
    )
    for name, shape in made.items()
  }


def attend(local, q, k, v):
  """[b s n k] over the tokens' axis: to heads, attend, and back (Ulysses)."""
  heads, tokens = P(None, None, 'seq', None), P(None, 'seq', None, None)
  inside = jax.shard_map(local, out_specs=heads, check_vma=False)
  return jax.reshard(inside(*(jax.reshard(x, heads) for x in (q, k, v))), tokens)


def flash(q, k, v):
  """With two kernels in the backward pass, as that run had it by default."""
  return splash.attend(q, k, v, jnp.ones(k.shape[:2], bool), splash.Blocks(backward=0))


def norm(x):
  x = x.astype(jnp.float32)
  x = (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-6)
  return x.astype(jnp.bfloat16)


def layer(x, w, text):
  """One layer, bf16; weights are collected for it."""
  whole = lambda name: jax.reshard(w[name].astype(jnp.bfloat16), P(*(None,) * w[name].ndim))
  long, heads = P(None, 'seq', None), P(None, 'seq', None, None)
  y = norm(x)
  qkv = jnp.einsum('bsd,dxnk->xbsnk', y, whole('qkv'), out_sharding=P(None, *heads))
  x = x + jnp.einsum('bsnk,nkd->bsd', attend(flash, *qkv), whole('out'), out_sharding=long)
  q = jnp.einsum('bsd,dnk->bsnk', norm(x), whole('cross_q'), out_sharding=heads)
  read = attend(
    jax.nn.dot_product_attention, q, *jnp.einsum('bmd,dxnk->xbmnk', text, whole('cross_kv'))
  )
  x = x + jnp.einsum('bsnk,nkd->bsd', read, whole('cross_out'), out_sharding=long)
  y = jnp.einsum('bsd,dnk->bsnk', norm(x), whole('up'), out_sharding=heads)
  y = jax.nn.gelu(y, approximate=True)
  return x + jnp.einsum('bsnk,nkd->bsd', y, whole('down'), out_sharding=long)


def update(tx, weights, opt, x, text):
  """A step of AdamW."""

  def loss(weights):
    one = jax.checkpoint(lambda x, w: (layer(x, w, text), None))
    y, _ = jax.lax.scan(one, x, weights)
    return jnp.mean(jnp.square(y.astype(jnp.float32)))

  grads = jax.grad(loss)(weights)
  updates, opt = tx.update(grads, opt, weights)
  return optax.apply_updates(weights, updates), opt


def compiled(wan: Wan, mesh) -> compiling.Compiled:
  tx = optax.adamw(1e-5)
  with jax.set_mesh(mesh):
    like = lambda shape, spec: jax.ShapeDtypeStruct(
      shape, jnp.bfloat16, sharding=jax.NamedSharding(mesh, spec)
    )
    x = like((1, wan.tokens, wan.d), P(None, 'seq', None))
    text = like((1, wan.text, wan.d), P(None, None, None))
    weights = shapes(wan, mesh)
    opt = tree.abstract(tx.init, weights)
    step = jax.jit(functools.partial(update, tx), donate_argnums=(0, 1))
    return compiling.compiled(step.lower(weights, opt, x, text), {})


def model(module: hlo.Module, wan: Wan, mesh, topology: topology_lib.Topology) -> dict:
  """The published step as `sr4 plan` sees it."""
  assumed, peak = roofline.Assumptions(), topology.spec.tflops * 1e12
  times = roofline.model(module, mesh, topology, assumed)
  seconds = lambda achieved: times.total / achieved
  return {
    'clips': implied_batch(wan, topology.chips, peak),
    'measured_seconds': MEASURED_SECONDS,
    'bound_seconds': times.total,
    'step_seconds': seconds(assumed.achieved),
    'step_range': [seconds(assumed.best), seconds(assumed.worst)],
    'mfu': wan.flops / (seconds(assumed.achieved) * topology.devices * peak),
    'recompute': operations.program(module).flops * topology.devices / wan.flops,
    'achieved_by_the_run': times.total / MEASURED_SECONDS,
    'seconds_at_the_bound': times.named(),
  }


def on(name: str = 'v5p-8'):
  """(Topology, mesh) with tokens and weights over all chips."""
  topology = topology_lib.parse(name)
  devices = topology_lib.devices(topology)
  return topology, sharding.make_mesh(devices, fsdp=1, seq=topology.devices)


def main():
  topology, mesh = on()
  found = compiled(Wan(), mesh)
  print(json.dumps(model(found.module, Wan(), mesh, topology), indent=1))
  for path in sys.argv[1:]:  # Without kernels' code and the names of our lines.
    text = re.sub(r'"body":"[^"]*"|, metadata=\{[^}]*\}', '', found.text)
    with lzma.open(path, 'wt') as f:
      f.write(text)


if __name__ == '__main__':
  main()
