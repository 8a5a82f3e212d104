"""Normalisation: statistics in fp32, result in the input's dtype."""

from flax import nnx
import jax
import jax.numpy as jnp

EPS = 1e-6


def layer_norm(x: jax.Array) -> jax.Array:
  """(x - mean) / std over the last axis, fp32 out: modulation or an affine follows."""
  y = x.astype(jnp.float32)
  y = y - jnp.mean(y, -1, keepdims=True)
  return y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + EPS)


class RMSNorm(nnx.Module):
  """x / rms(x) * scale over the last axis: per-head norm of queries and keys."""

  def __init__(self, size: int):
    self.scale = nnx.Param(jnp.ones(size))

  def __call__(self, x: jax.Array) -> jax.Array:
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + EPS)
    return (y * self.scale[...]).astype(x.dtype)


class LayerNorm(nnx.Module):
  """Layer norm with a learnt scale and shift, as before text cross-attention (Wan)."""

  def __init__(self, size: int):
    self.scale, self.bias = nnx.Param(jnp.ones(size)), nnx.Param(jnp.zeros(size))

  def __call__(self, x: jax.Array) -> jax.Array:
    return (layer_norm(x) * self.scale[...] + self.bias[...]).astype(x.dtype)
