"""Attention of tiles of tokens to chosen tiles: what Video Sparse Attention (nn/vsa.py) is made of.

One function, and implementations that agree (tests/nn/kernels/block_sparse_test.py):

  reference   the dense product under the mask: for tests, it saves nothing
  gathered    each tile of queries with its own tiles of keys collected: anywhere, at the true cost
  pallas_tpu  block_sparse_tpu.py
  pallas_gpu  block_sparse_gpu.py
"""

import dataclasses
import functools

import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from sr4.nn.kernels import block_sparse_gpu
from sr4.nn.kernels import block_sparse_tpu
from sr4.nn.kernels import chosen as chosen_lib
from sr4.nn.kernels import cudnn
from sr4.nn.kernels import splash

KERNELS = {'pallas_tpu': block_sparse_tpu, 'pallas_gpu': block_sparse_gpu}
IMPLEMENTATIONS = ('reference', 'gathered', *KERNELS)


def attend(
  q,
  k,
  v,
  valid,
  mask,
  most: int | None = None,
  implementation: str | None = None,
  kept: bool = True,
  interpret: bool = False,
) -> jax.Array:
  """softmax(q k^T / sqrt(k)) v over the valid keys of the tiles that each tile of queries chose.

  The mask is a choice, and has no gradient.

  Args:
    q: [b s n k]; k, v: [b r n k]; valid: bool [b r].
    mask: bool [b n i j]: i tiles of queries by j tiles of keys, of s / i = r / j tokens each.
    most: tiles that one tile of queries chooses, at most; None: all.
    implementation: one of IMPLEMENTATIONS; None: the platform's kernel where it fits, or gathered.
    kept: name the results SAVED, so that a policy may keep them for the backward pass.
    interpret: run a kernel's program on the CPU, for tests.
  Returns:
    [b s n k]; zero where a query has no valid key.
  """
  count = mask.shape[3]
  c = Call(min(most or count, count), kept, interpret)
  if kept:
    # Made again for the backward pass, rounding might choose other tiles than the results are of.
    packed = checkpoint_name(jnp.packbits(mask, axis=-1), splash.SAVED)
    mask = jnp.unpackbits(packed, axis=-1, count=count).astype(bool)
  args = q, k, v, valid, mask
  chosen = functools.partial(run, c)
  if implementation:
    out = chosen(implementation)(*args)
  elif kernels := {at: chosen(name) for at, name in fitting(q, mask).items()}:
    out = jax.lax.platform_dependent(*args, **kernels, default=chosen('gathered'))
  else:
    out = chosen('gathered')(*args)
  seen = jnp.any(valid.reshape(len(valid), count, -1), -1)
  seen = jnp.any(mask & seen[:, None, None], -1).swapaxes(1, 2)  # [b i n]
  return jnp.where(jnp.repeat(seen, q.shape[1] // mask.shape[2], 1)[..., None], out, 0)


@dataclasses.dataclass(frozen=True)
class Call:
  most: int
  kept: bool
  interpret: bool


def fitting(q, mask) -> dict[str, str]:
  """{platform: the kernel that serves these sizes there}."""
  found = {}
  if block_sparse_tpu.fits(q, mask):
    found['tpu'] = 'pallas_tpu'
  if cudnn.widest() and block_sparse_gpu.fits(q, mask):
    found['cuda'] = 'pallas_gpu'
  return found


def run(c: Call, name: str):
  """(q, k, v, valid, mask) -> [b s n k] by this implementation."""
  if name in KERNELS:
    return functools.partial(kernel, name, c)
  plain = {'reference': reference, 'gathered': functools.partial(gathered, most=c.most)}[name]
  named = lambda out: checkpoint_name(out, splash.SAVED) if c.kept else out
  return lambda *args: named(plain(*args))


def reference(q, k, v, valid, mask):
  tile = q.shape[1] // mask.shape[2]
  mask = jnp.repeat(jnp.repeat(mask, tile, 2), tile, 3)
  return jax.nn.dot_product_attention(q, k, v, mask=mask & valid[:, None, None])


def gathered(q, k, v, valid, mask, most: int):
  """One tile of queries of all heads at a time; gradients of keys are summed in fp32."""
  tiles = mask.shape[3]
  tiled = lambda x, count: x.reshape(len(x), count, -1, *x.shape[2:])
  wide = lambda x: tiled(x.astype(jnp.float32), tiles)
  k, v, valid = wide(k), wide(v), tiled(valid, tiles)

  def head(q, k, v, valid, chosen):  # [tile k], [j tile k], [j tile k], [j tile], [most]
    collect = lambda x: jnp.take(x, chosen, 0, mode='clip').reshape(-1, *x.shape[2:])
    seen = collect(valid) & jnp.repeat(chosen < tiles, valid.shape[1])
    one = lambda x: x.astype(q.dtype)[None, :, None]
    out = jax.nn.dot_product_attention(
      one(q), one(collect(k)), one(collect(v)), mask=seen[None, None, None]
    )
    return out[0, :, 0]

  rows = jax.vmap(jax.vmap(head, (1, 2, 2, None, 0), 1))
  chosen = chosen_lib.lists(mask, most)
  xs = jnp.moveaxis(tiled(q, mask.shape[2]), 1, 0), jnp.moveaxis(chosen, 2, 0)
  out = jax.lax.map(lambda x: rows(x[0], k, v, valid, x[1]), xs)
  return jnp.moveaxis(out, 0, 1).reshape(q.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def kernel(name: str, c: Call, q, k, v, valid, mask):
  return KERNELS[name].forward(q, k, v, valid, mask, c.most, c.interpret)[0]


def forward(name, c, q, k, v, valid, mask):
  out, lse = KERNELS[name].forward(q, k, v, valid, mask, c.most, c.interpret)
  if c.kept:
    out, lse = (checkpoint_name(x, splash.SAVED) for x in (out, lse))
  return out, (q, k, v, valid, mask, out, lse)


def backward(name, c, kept, grad):
  return *KERNELS[name].backward(*kept, grad, c.most, c.interpret), None, None


kernel.defvjp(forward, backward)
