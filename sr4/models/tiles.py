"""Large frames in tiles that overlap, one after another, blended where they do.

tiled      in one program
on_host    in one program a tile, put together on the host: the device never holds the whole clip
"""

from collections.abc import Callable
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

OVERLAP = 0.25  # of a tile, at least


def tiled(f: Callable, x: jax.Array, tile: int, unit: int) -> jax.Array:
  """f(x) [b t' h' w' c'] of x [b t h w c]; where a side is longer than `tile`, tile by tile.

  Near its border a tile sees zeros in place of what is beyond: its weight falls linearly to there.

  Args:
    tile: rows and columns; 0: x is one tile, however large.
    unit: rows and columns of x that f turns into a whole number of its own.
  """
  h, w = x.shape[2:4]
  if not tile or max(h, w) <= tile:
    return f(x)
  high, wide = min(h, tile), min(w, tile)
  cut = lambda top, left: jax.lax.dynamic_slice(
    x, (0, 0, top, left, 0), (*x.shape[:2], high, wide, x.shape[-1])
  )
  like = jax.eval_shape(lambda: f(cut(0, 0)))
  b, t, out_high, _, c = like.shape
  grown = lambda n: n * out_high // high
  rows, columns = (starts(side, tile, unit) for side in (h, w))
  fade_rows, fade_columns = (
    weights([grown(start) for start in of], grown(size), grown(side))
    for of, size, side in ((rows, high, h), (columns, wide, w))
  )

  def add(canvas, place):
    i, j = place
    y = f(cut(jnp.array(rows)[i], jnp.array(columns)[j]))
    y *= jnp.asarray(fade_rows)[i][:, None, None] * jnp.asarray(fade_columns)[j][:, None]
    at = (0, 0, grown(jnp.array(rows)[i]), grown(jnp.array(columns)[j]), 0)
    there = jax.lax.dynamic_slice(canvas, at, y.shape)
    return jax.lax.dynamic_update_slice(canvas, there + y, at), None

  canvas = jnp.zeros((b, t, grown(h), grown(w), c), like.dtype)
  places = np.array([*itertools.product(range(len(rows)), range(len(columns)))])
  return jax.lax.scan(add, canvas, (jnp.array(places[:, 0]), jnp.array(places[:, 1])))[0]


def on_host(f: Callable, x: jax.Array, tile: int, factor: int) -> np.ndarray:
  """f(x), uint8 [b T H W 3] of x [b t h w c], put together on the host from tiles of x.

  Args:
    f: [b t h' w' c] -> numpy float32 in [-1, 1], [b T h' * factor w' * factor 3].
    tile: rows and columns of x.
  """
  h, w = x.shape[2:4]
  high, wide = min(h, tile), min(w, tile)
  rows, columns = starts(h, tile, 1), starts(w, tile, 1)
  fade_rows, fade_columns = (
    weights([n * factor for n in of], size * factor, side * factor)
    for of, size, side in ((rows, high, h), (columns, wide, w))
  )
  made, band = [], None
  for i, top in enumerate(rows):
    # What of the tiles above lies in these, too.
    carried = None if band is None else band[:, :, (top - rows[i - 1]) * factor :]
    for j, left in enumerate(columns):
      y = f(x[:, :, top : top + high, left : left + wide])
      if not j:
        band = np.zeros((*y.shape[:2], high * factor, w * factor, y.shape[-1]), np.float32)
      across = slice(left * factor, (left + wide) * factor)
      band[:, :, :, across] += y * fade_rows[i][:, None, None] * fade_columns[j][:, None]
    if carried is not None:
      band[:, :, : carried.shape[2]] += carried
    done = (rows[i + 1] if i + 1 < len(rows) else top + high) - top
    whole = band[:, :, : done * factor]
    made.append(np.clip(np.rint((whole + 1) * 127.5), 0, 255).astype(np.uint8))
  return np.concatenate(made, 2)


def starts(side: int, tile: int, unit: int) -> list[int]:
  """Where tiles begin, evenly over a side, in whole units."""
  if side <= tile:
    return [0]
  steps = math.ceil((side - tile) / (tile * (1 - OVERLAP)))
  return [round(i * (side - tile) / steps / unit) * unit for i in range(steps + 1)]


def weights(begins: list[int], size: int, side: int) -> np.ndarray:
  """float32 [tiles size]: of each tile's places, such that those of one place sum to 1."""
  at = np.arange(size) + 0.5
  total, found = np.zeros(side), []
  for begin in begins:
    left = at if begin else np.full(size, size)  # No fade at the frame's own border.
    right = size - at if begin + size < side else np.full(size, size)
    found.append(np.minimum(np.minimum(left, right), size * OVERLAP))
    total[begin : begin + size] += found[-1]
  return np.float32([w / total[b : b + size] for w, b in zip(found, begins)])
