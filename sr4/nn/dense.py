"""Layers of frozen language models, laid out by the compiler and stored as they compute.

They run inside `sharding.on_rows`; a weight's shards over FSDP are collected for use.
"""

import math

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from sr4.core import sharding


class Dense(nnx.Module):
  """y = einsum(eqn, x, kernel) + bias in `dtype`, sums in fp32.

  eqn is 'input,kernel->output'; the bias, where there is one, has the kernel's axes of the output.
  The kernel is drawn with variance 1/fan-in.
  """

  def __init__(self, eqn: str, shape, spec, *, dtype: str, rngs: nnx.Rngs, bias: bool = False):
    operands, out = eqn.split('->')
    kernel = operands.split(',')[1]
    fan_in = math.prod(size for axis, size in zip(kernel, shape) if axis not in out)
    draw = (
      jax.random.normal(rngs.params(), shape, out_sharding=sharding.at_rest(*spec)) * fan_in**-0.5
    )
    self.kernel = nnx.Param(draw.astype(dtype))
    if bias:
      kept = [size for axis, size in zip(kernel, shape) if axis in out]
      self.bias = nnx.Param(jnp.zeros(kept, dtype))
    self.eqn, self.spec, self.biased = eqn, tuple(spec), bias

  def __call__(self, x: jax.Array) -> jax.Array:
    used = (None if sharding.collected(axes) else axes for axes in self.spec)
    kernel = sharding.constrained(self.kernel[...], P(*used))
    y = jnp.einsum(self.eqn, x.astype(kernel.dtype), kernel, preferred_element_type=jnp.float32)
    if self.biased:
      y = y + self.bias[...].astype(jnp.float32)
    return y.astype(kernel.dtype)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, seen: jax.Array) -> jax.Array:
  """softmax(q k^T / sqrt(k)) v with groups of query heads on one head of keys; softmax in fp32.

  Args:
    q: [... s n k]; k, v: [... r g k] with n a multiple of g; seen: bool [... s r].
  Returns:
    [... s n k]
  """
  *_, heads, size = q.shape
  groups = k.shape[-2]
  q = q.reshape(*q.shape[:-2], groups, heads // groups, size)
  logits = jnp.einsum('...sgnk,...rgk->...gnsr', q, k, preferred_element_type=jnp.float32)
  lowest = jnp.finfo(jnp.float32).min  # Not -inf: a row that sees nothing is no NaN.
  logits = jnp.where(seen[..., None, None, :, :], logits * size**-0.5, lowest)
  weights = jax.nn.softmax(logits, -1).astype(v.dtype)
  out = jnp.einsum('...gnsr,...rgk->...sgnk', weights, v, preferred_element_type=jnp.float32)
  return out.astype(v.dtype).reshape(*out.shape[:-3], heads, size)


def rotated(x: jax.Array, angle: jax.Array) -> jax.Array:
  """The halves of each head turned by angles in fp32: x [... s n k], angle [... s k/2]."""
  cos, sin = jnp.cos(angle)[..., None, :], jnp.sin(angle)[..., None, :]
  a, b = jnp.split(x.astype(jnp.float32), 2, -1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)
