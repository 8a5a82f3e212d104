"""The order of tokens: row by row as patches are cut, or tile by tile, a tile a run of tokens.

Tiles are cuboids of a grid of patches.  Where one has fewer tokens than its run, at the edge of the
grid or everywhere, tokens that are not there fill it up, behind those that are.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

Grid = tuple[int, int, int]
SLENDER = 3  # how many times as long as another a side of a cuboid may be, unless the grid is thin


@functools.cache
def cuboid(tile: tuple[int, ...], grid: Grid) -> Grid:
  """The sides of a tile in a grid: as given, or, of a number of tokens, those that fill it best.

  That is the fewest tiles, and among such the most compact.  A grid thinner than the given sides
  has the sides of as many tokens.
  """
  if len(tile) == 3 and all(side <= length for side, length in zip(tile, grid)):
    return tile
  size, found = math.prod(tile), []
  for t in range(1, min(size, grid[0]) + 1):
    for h in range(1, min(size // t, grid[1]) + 1):
      counts = [-(-n // side) for n, side in zip(grid, (t, h, min(size // (t * h), grid[2])))]
      sides = tuple(-(-n // count) for n, count in zip(grid, counts))  # As even as they can be.
      free = [side for side, length in zip(sides, grid) if side < length]
      if max(sides) <= SLENDER * min(free or sides):
        found.append((math.prod(counts), max(sides) / min(sides), sides))
  return min(found)[2] if found else (1, 1, min(size, grid[2]))


@functools.cache
def tiles(grid: Grid, tile: tuple[int, ...]) -> np.ndarray:
  """int32 [tiles * size]: which token of the row-by-row order lies here; their number: none."""
  sides, size, total = cuboid(tile, grid), math.prod(tile), math.prod(grid)
  counts = [-(-n // side) for n, side in zip(grid, sides)]
  numbers = np.full([n * side for n, side in zip(counts, sides)], total, np.int32)
  numbers[: grid[0], : grid[1], : grid[2]] = np.arange(total, dtype=np.int32).reshape(grid)
  (a, b, c), (x, y, z) = counts, sides
  numbers = numbers.reshape(a, x, b, y, c, z).transpose(0, 2, 4, 1, 3, 5).reshape(a * b * c, -1)
  first = np.argsort(numbers == total, axis=1, kind='stable')
  numbers = np.take_along_axis(numbers, first, 1)
  return np.pad(numbers, ((0, 0), (0, size - x * y * z)), constant_values=total).reshape(-1)


def rows(count: int, size: int) -> np.ndarray:
  """As `tiles`, of tokens that stay as they are: the last tile is filled up."""
  return np.arange(-(-count // size) * size, dtype=np.int32).clip(max=count)


def arranged(x: jax.Array, order: np.ndarray | None) -> jax.Array:
  """[b s ...] in this order; zero, or False, where no token is."""
  return x if order is None else jnp.take(x, order, 1, mode='fill', fill_value=0)


def restored(x: jax.Array, order: np.ndarray | None, count: int) -> jax.Array:
  """The inverse of `arranged`, for the `count` tokens that there are."""
  return x if order is None else jnp.take(x, np.argsort(order, kind='stable')[:count], 1)
