"""The order of tokens: row by row as patches are cut, or tile by tile, a tile a run of tokens.

Tiles are cuboids of a grid of patches.  Those that stick out of the grid are filled up with tokens
that are not there, behind those that are.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

Grid = tuple[int, int, int]


def fitted(tile: Grid, grid: Grid) -> Grid:
  """A tile of as many tokens for a grid thinner than the tile: what one side loses, others gain.

  So a still is cut into (1, 16, 16) where a clip is into (4, 8, 8).
  """
  tile = list(tile)
  for side in range(3):
    while tile[side] > 1 and tile[side] // 2 >= grid[side]:
      others = [i for i in range(3) if i != side and tile[i] < grid[i]]
      if not others:
        break
      tile[side] //= 2
      tile[min(others, key=lambda i: (tile[i] / grid[i], i))] *= 2
  return tuple(tile)


@functools.cache
def tiles(grid: Grid, tile: Grid) -> np.ndarray:
  """int32 [tiles * size]: which token of the row-by-row order lies here; their number: none."""
  tile = fitted(tile, grid)
  counts = [-(-side // step) for side, step in zip(grid, tile)]
  total = math.prod(grid)
  numbers = np.full([n * step for n, step in zip(counts, tile)], total, np.int32)
  numbers[: grid[0], : grid[1], : grid[2]] = np.arange(total, dtype=np.int32).reshape(grid)
  (a, b, c), (x, y, z) = counts, tile
  numbers = numbers.reshape(a, x, b, y, c, z).transpose(0, 2, 4, 1, 3, 5).reshape(a * b * c, -1)
  first = np.argsort(numbers == total, axis=1, kind='stable')
  return np.take_along_axis(numbers, first, 1).reshape(-1)


def rows(count: int, size: int) -> np.ndarray:
  """As `tiles`, of tokens that stay as they are: the last tile is filled up."""
  return np.arange(-(-count // size) * size, dtype=np.int32).clip(max=count)


def arranged(x: jax.Array, order: np.ndarray | None) -> jax.Array:
  """[b s ...] in this order; zero, or False, where no token is."""
  return x if order is None else jnp.take(x, order, 1, mode='fill', fill_value=0)


def restored(x: jax.Array, order: np.ndarray | None, count: int) -> jax.Array:
  """The inverse of `arranged`, for the `count` tokens that there are."""
  return x if order is None else jnp.take(x, np.argsort(order, kind='stable')[:count], 1)
