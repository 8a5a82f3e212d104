"""Axes that are cut and joined, and products that lose nothing, of codecs without weights."""

import jax
import jax.numpy as jnp
import numpy as np


def split(x: jax.Array, axis: int, size: int) -> jax.Array:
  """One axis to two, [.. n ..] -> [.. n/size size ..]; an Explicit mesh takes one at a time."""
  return x.reshape(*x.shape[:axis], x.shape[axis] // size, size, *x.shape[axis + 1 :])


def merge(x: jax.Array, axis: int) -> jax.Array:
  """The axis and the next become one."""
  return x.reshape(*x.shape[:axis], x.shape[axis] * x.shape[axis + 1], *x.shape[axis + 2 :])


def product(equation: str, x: jax.Array, weights: np.ndarray) -> jax.Array:
  """In full fp32: the default of an accelerator is bf16, which would be the larger loss."""
  return jnp.einsum(equation, x, weights, precision=jax.lax.Precision.HIGHEST)
