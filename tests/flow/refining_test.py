"""sr4/flow/refining.py: what a Refiner is told, by what each latent must be."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sr4.core.batch import Latents
from sr4.core.batch import Low
from sr4.core.batch import Size
from sr4.flow import refining
from sr4.models import dct

CODEC = dct.DctVideo(dct.DctConfig(space_factor=4, channels=12))
SIZE = Size(17, 32, 48, 16.0, 0, low=Low(9, 16, 24, keyframes=2))  # 5 x 8 x 12 of 3 x 4 x 6 latents
ROWS = 2


def latents():
  random = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(random.standard_normal((ROWS, *shape)), jnp.float32)
  return Latents(low=draw(3, 4, 6, 12), keyframes=draw(2, 8, 12, 12), video=draw(5, 8, 12, 12))


@pytest.mark.parametrize('source, target', [(4, 8), (3, 7), (5, 5), (1, 4), (6, 9)])
def test_space_is_enlarged_as_pictures_are(source, target, relative):
  x = jnp.asarray(np.random.default_rng(0).standard_normal((source, 3)), jnp.float32)
  wanted = jax.image.resize(x, (target, 3), 'linear', antialias=False)
  assert relative(refining.linear(source, target, ends=False) @ x, wanted) < 1e-6


def test_time_is_enlarged_from_end_to_end():
  """Latents at every second place are those of the low clip, and means of two between them."""
  low = np.asarray(latents().low)
  found = refining.enlarged(jnp.asarray(low), (5, 4, 6))
  np.testing.assert_allclose(found[:, ::2], low, atol=1e-6)
  np.testing.assert_allclose(found[:, 1::2], (low[:, 1:] + low[:, :-1]) / 2, atol=1e-6)


def test_a_clip_that_is_linear_stays_linear():
  """A ramp in time, rows and columns is enlarged exactly, away from the border."""
  axes = lambda t, h, w: np.meshgrid(
    np.linspace(0, 1, t), (np.arange(h) + 0.5) / h, (np.arange(w) + 0.5) / w, indexing='ij'
  )
  ramp = lambda *grid: np.float32(sum(a * x for a, x in zip((1, 2, 3), axes(*grid))))[
    None, ..., None
  ]
  found = refining.enlarged(jnp.asarray(ramp(3, 4, 6)), (5, 8, 12))
  np.testing.assert_allclose(found[:, :, 1:-1, 1:-1], ramp(5, 8, 12)[:, :, 1:-1, 1:-1], rtol=1e-5)


def test_keyframes_and_the_source_take_their_places():
  given = latents()
  known = np.zeros((ROWS, 17, 32, 48), bool)
  known[0, :9, :16] = True  # Whole latents,
  known[0, 9:, 30:] = True  # and half of some.
  at = jnp.array([[0, 8], [4, -1]])
  segment = refining.video(CODEC, SIZE, (1, 2, 2), given, at, jnp.asarray(known))
  plain = refining.enlarged(given.low, (5, 8, 12))
  expected, mask = np.array(plain), np.zeros((ROWS, 5, 8, 12, 1), np.float32)
  for row, k, place, share in ((0, 0, 0, 1), (0, 1, 4, 1 / 4), (1, 0, 2, 1 / 4)):
    expected[row, place], mask[row, place] = given.keyframes[row, k], share
  expected[0, :3, :4], mask[0, :3, :4] = given.video[0, :3, :4], 1
  mask[0, 3:, 7] = 1 / 2
  np.testing.assert_allclose(segment.known, expected, atol=1e-6)
  np.testing.assert_allclose(segment.mask, mask)
  assert segment.generated and segment.positions.shape == (ROWS, 5 * 4 * 6, 3)
  np.testing.assert_allclose(segment.positions[0, -1], [1.0, 3, 5])


def test_without_keyframes_or_a_source_it_is_the_low_clip():
  size = dataclasses.replace(SIZE, low=Low(9, 16, 24))
  segment = refining.video(CODEC, size, (1, 2, 2), Latents(low=latents().low))
  np.testing.assert_array_equal(segment.known, refining.enlarged(latents().low, (5, 8, 12)))
  assert not np.any(segment.mask)


def test_stills():
  size = Size(1, 32, 48, 16.0, 0, low=Low(1, 16, 24))
  segment = refining.video(CODEC, size, (1, 2, 2), Latents(low=latents().low[:, :1]))
  assert segment.known.shape == (ROWS, 1, 8, 12, 12)
