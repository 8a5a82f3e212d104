"""sr4/nn/order.py: the tiles of a grid, by what defines them."""

import jax.numpy as jnp
import numpy as np
import pytest

from sr4.nn import order

GRIDS = [(8, 16, 16), (21, 30, 52), (5, 3, 7), (1, 16, 16), (1, 1, 1), (2, 40, 6)]
TILES = [(4, 4, 4), (4, 8, 8), (64,), (128,), (256,)]


@pytest.mark.parametrize('tile', TILES)
@pytest.mark.parametrize('grid', GRIDS)
def test_every_token_lies_in_the_tile_of_its_cuboid(grid, tile):
  found = order.tiles(grid, tile)
  total, size = np.prod(grid), np.prod(tile)
  assert found.size % size == 0
  assert sorted(found[found < total]) == list(range(total))
  shape = order.cuboid(tile, grid)
  places = np.stack(np.unravel_index(np.minimum(found, total - 1), grid), -1) // shape
  for tokens, place in zip(found.reshape(-1, size), places.reshape(-1, size, 3)):
    there = tokens < total
    assert there[0] and np.all(there[:-1] >= there[1:])  # What is not there lies behind.
    assert len(np.unique(place[there], axis=0)) == 1


@pytest.mark.parametrize('tile', TILES)
@pytest.mark.parametrize('grid', GRIDS)
def test_a_cuboid_holds_no_more_than_its_tile(grid, tile):
  sides = order.cuboid(tile, grid)
  assert np.prod(sides) <= np.prod(tile)
  assert all(side <= length for side, length in zip(sides, grid))


def test_sides_that_are_given_are_taken():
  assert order.cuboid((4, 4, 4), (21, 30, 52)) == (4, 4, 4)


def test_stills_are_cut_into_squares():
  assert order.cuboid((4, 4, 4), (1, 64, 64)) == (1, 8, 8)
  assert order.cuboid((256,), (1, 64, 64)) == (1, 16, 16)


@pytest.mark.parametrize('size', [64, 128, 256])
@pytest.mark.parametrize('grid', [(21, 30, 52), (21, 45, 80), (41, 68, 120), (121, 68, 120)])
def test_fitted_cuboids_fill_grids_of_clips(grid, size):
  """480p and 720p of 5 s at 16 fps, 1080p of 5 s and 15 s at 32 fps."""
  assert order.tiles(grid, (size,)).size < 1.08 * np.prod(grid)
  sides = order.cuboid((size,), grid)
  assert max(sides) <= 3 * min(sides)


def test_rows_fill_up_the_last_tile():
  np.testing.assert_array_equal(order.rows(5, 4), [0, 1, 2, 3, 4, 5, 5, 5])


@pytest.mark.parametrize('places', [order.tiles((3, 5, 6), (4, 4, 4)), order.rows(90, 64), None])
def test_restored_undoes_arranged(places):
  x = jnp.arange(2 * 90 * 3.0).reshape(2, 90, 3) + 1
  there = jnp.sum(order.arranged(jnp.ones((2, 90), bool), places), 1)
  moved = order.arranged(x, places)
  np.testing.assert_array_equal(there, [90, 90])
  assert jnp.sum(moved) == jnp.sum(x)
  np.testing.assert_array_equal(order.restored(moved, places, 90), x)
