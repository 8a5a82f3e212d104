"""Attention that never holds the logits, on NVIDIA GPUs: cuDNN's behind the house's interface.

Its plain reference is nn/attention.py `plain`.  cuDNN takes a mask as a whole matrix, but a number
of keys as it is.  Keys may come in any order, so those that are there go first.
"""

import functools

import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from sr4.nn.kernels import splash


def fits(q: jax.Array) -> bool:
  """Is there a GPU, and does it have a kernel for such heads?"""
  half = q.dtype in (jnp.bfloat16, jnp.float16)
  return half and q.shape[-1] % 8 == 0 and q.shape[-1] <= widest()


@functools.cache
def widest() -> int:
  """The widest head of this machine's kernels; 0 where it has no NVIDIA GPU."""
  if jax.default_backend() != 'gpu' or 'cuda' not in jax.devices()[0].client.platform_version:
    return 0
  return 256 if float(jax.devices()[0].compute_capability) >= 9 else 128


def attend(q, k, v, valid, kept=True, implementation='cudnn') -> jax.Array:
  """softmax(q k^T / sqrt(k)) v over the valid keys; what a row without any gets is not defined.

  Args:
    q: [b s n k]; k, v: [b r n k]; valid: bool [b r].
    kept: name the result SAVED.
    implementation: of jax.nn.dot_product_attention; 'xla' runs anywhere, for tests.
  """
  first = jnp.argsort(~valid, axis=1, stable=True)[:, :, None, None]
  k, v = (jnp.take_along_axis(x, first, 1) for x in (k, v))
  # A row without any reads one, lest it be divided by zero.
  count = jnp.maximum(jnp.sum(valid, 1, dtype=jnp.int32), 1)
  out = jax.nn.dot_product_attention(
    q, k, v, key_value_seq_lengths=count, implementation=implementation
  )
  return checkpoint_name(out, splash.SAVED) if kept else out
