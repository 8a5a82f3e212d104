"""Tiles that tiles choose, as the kernels read them: lists of numbers instead of a mask."""

import jax
from jax.experimental import pallas as pl
import jax.numpy as jnp


def lists(mask) -> jax.Array:
  """int32 [... tiles]: which tiles are chosen, in order, of bool [... tiles].

  After them, the number of tiles.
  """
  count = mask.shape[-1]
  return jnp.sort(jnp.where(mask, jnp.arange(count, dtype=jnp.int32), count), -1)


def spans(mask, part: int) -> tuple[jax.Array, jax.Array]:
  """(starts, stops), int32 [c ...]: where in `lists` the tiles of each of c parts lie.

  A part is so many tiles, the last one what is left.
  """
  parts = -(-mask.shape[-1] // part)
  mask = jnp.pad(mask, [(0, 0)] * (mask.ndim - 1) + [(0, parts * part - mask.shape[-1])])
  counts = jnp.sum(mask.reshape(*mask.shape[:-1], parts, part), -1, dtype=jnp.int32)
  counts = jnp.moveaxis(counts, -1, 0)
  stops = jnp.cumsum(counts, 0)
  return stops - counts, stops


def tiled(x, tiles: int) -> jax.Array:
  """[b s n k] -> [b*n tiles tile k]."""
  b, s, n, k = x.shape
  return jnp.swapaxes(x, 1, 2).reshape(b * n, tiles, s // tiles, k)


def flat(x, like) -> jax.Array:
  """The inverse of `tiled`, for x of any dtype: [b s n k]."""
  b, s, n, k = like.shape
  return jnp.swapaxes(x.reshape(b, n, s, k), 1, 2).astype(like.dtype)


def cost(products: int, pairs: float, size: int, head: int) -> pl.CostEstimate:
  """Of so many matrix products for each pair of tiles of this size, which no compiler can count."""
  cells = round(pairs * size * size)
  return pl.CostEstimate(flops=2 * products * cells * head, transcendentals=cells, bytes_accessed=0)
