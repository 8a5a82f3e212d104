"""Attention of tiles of tokens to chosen tiles: what Video Sparse Attention (nn/vsa.py) is made of.

One function, and implementations that agree (tests/nn/kernels/block_sparse_test.py):

  reference   the dense product under the mask: anywhere, and saves nothing
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
from sr4.nn.kernels import cudnn
from sr4.nn.kernels import splash

KERNELS = {'pallas_tpu': block_sparse_tpu, 'pallas_gpu': block_sparse_gpu}
IMPLEMENTATIONS = ('reference', *KERNELS)


def attend(
  q,
  k,
  v,
  valid,
  mask,
  reads: float | None = None,
  implementation: str | None = None,
  kept: bool = True,
  interpret: bool = False,
) -> jax.Array:
  """softmax(q k^T / sqrt(k)) v over the valid keys of the tiles that each tile of queries chose.

  The mask is a choice, and has no gradient.

  Args:
    q: [b s n k]; k, v: [b r n k]; valid: bool [b r].
    mask: bool [b n i j]: i tiles of queries by j tiles of keys, of s / i = r / j tokens each.
    reads: tiles that one chooses in the mean, for the compiler's estimate of the cost; None: all.
    implementation: one of IMPLEMENTATIONS; None: the platform's kernel where it fits.
    kept: name the results SAVED, so that a policy may keep them for the backward pass.
    interpret: run a kernel's program on the CPU, for tests.
  Returns:
    [b s n k]; zero where a query has no valid key.
  """
  count = mask.shape[3]
  c = Call(count if reads is None else reads, kept, interpret)
  if kept:
    # Made again for the backward pass, rounding might choose other tiles than the results are of.
    packed = checkpoint_name(jnp.packbits(mask, axis=-1), splash.SAVED)
    mask = jnp.unpackbits(packed, axis=-1, count=count).astype(bool)
  args = q, k, v, valid, mask
  chosen = functools.partial(run, c)
  if implementation:
    out = chosen(implementation)(*args)
  elif kernels := {at: chosen(name) for at, name in fitting(q, mask).items()}:
    out = jax.lax.platform_dependent(*args, **kernels, default=chosen('reference'))
  else:
    out = chosen('reference')(*args)
  seen = jnp.any(valid.reshape(len(valid), count, -1), -1)
  seen = jnp.any(mask & seen[:, None, None], -1).swapaxes(1, 2)  # [b i n]
  return jnp.where(jnp.repeat(seen, q.shape[1] // mask.shape[2], 1)[..., None], out, 0)


@dataclasses.dataclass(frozen=True)
class Call:
  """Arguments of `attend` that are no arrays."""

  reads: float
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
  named = lambda x: checkpoint_name(x, splash.SAVED) if c.kept else x
  return lambda *args: named(reference(*args))


def reference(q, k, v, valid, mask):
  tile = q.shape[1] // mask.shape[2]
  mask = jnp.repeat(jnp.repeat(mask, tile, 2), tile, 3)
  return jax.nn.dot_product_attention(q, k, v, mask=mask & valid[:, None, None])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def kernel(name: str, c: Call, q, k, v, valid, mask):
  return KERNELS[name].forward(q, k, v, valid, mask, c.reads, c.interpret)[0]


def forward(name, c, q, k, v, valid, mask):
  out, lse = KERNELS[name].forward(q, k, v, valid, mask, c.reads, c.interpret)
  if c.kept:
    out, lse = (checkpoint_name(x, splash.SAVED) for x in (out, lse))
  return out, (q, k, v, valid, mask, out, lse)


def backward(name, c, kept, grad):
  return *KERNELS[name].backward(*kept, grad, c.reads, c.interpret), None, None


kernel.defvjp(forward, backward)
