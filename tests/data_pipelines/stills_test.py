"""Stills: the smaller of two formats, sizes that fit, and panels."""

import numpy as np
import pytest

from data_pipelines import media
from data_pipelines import stills


def smooth(height, width):
  """A picture of waves with noise: uint8 [h w 3]."""
  h, w = np.ogrid[:height, :width]
  waves = np.stack([np.sin(h / 9 + w / 20), np.cos(h / 17 + 0 * w), np.sin(w / 7 + 0 * h)], -1)
  noise = np.random.default_rng(0).normal(0, 2, (height, width, 3))
  return np.clip(128 + 90 * waves + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize('size', [(64, 96), (63, 97), (1, 1)])
def test_a_picture_comes_back(size):
  want = smooth(*size)
  data = stills.to_bytes(want)
  got = media.read_image(data, *size)
  assert media.displayed(data) == size
  assert abs(got.astype(int) - want).mean() < 2 and abs(got.astype(int) - want).max() < 16
  assert all(stills.to_bytes(want) == data for _ in range(4))


def test_the_quantizer_counts(monkeypatch):
  sizes = []
  for quantizer in (1, stills.QUANTIZER, 5):
    monkeypatch.setattr(stills, 'QUANTIZER', quantizer)
    sizes.append(len(stills.to_bytes(smooth(64, 96))))
  assert sizes[0] > sizes[1] > sizes[2]


def test_colour_is_kept_at_full_resolution():
  stripes = smooth(64, 64)
  stripes[:, ::2, 0], stripes[:, 1::2, 0] = 200, 60  # One pixel wide: 4:2:0 would blend them.
  data = stills.to_bytes(stripes)
  got = media.read_image(data, 64, 64)
  assert data[:2] == b'\xff\xd8' and abs(got[:, ::2, 0] - 200.0).mean() < 6


def test_scaling():
  picture = np.zeros((40, 60, 3), np.uint8)
  picture[:20, :30], picture[20:, 30:] = (200, 100, 50), 255
  got = stills.scaled(picture, 20, 30)
  np.testing.assert_array_equal(got[:8, :13], np.broadcast_to([200, 100, 50], (8, 13, 3)))
  assert got.shape == (20, 30, 3) and (got[12:, 17:] == 255).all() and not got[:8, 17:].any()
  np.testing.assert_array_equal(stills.scaled(picture, 40, 60), picture)


def test_drawings_lose_nothing():
  flat = np.zeros((64, 64, 3), np.uint8)
  flat[10:30, 20:50] = 250, 40, 30
  data = stills.to_bytes(flat)
  assert data[1:4] == b'PNG'
  np.testing.assert_array_equal(media.read_image(data, 64, 64), flat)


@pytest.mark.parametrize(
  'size, limit, multiple, want',
  [
    ((100, 50), (40, 40), 1, (40, 20)),
    ((50, 101), (40, 40), 1, (20, 40)),
    ((30, 20), (40, 40), 1, (30, 20)),
    ((1000, 3), (10, 10), 1, (10, 1)),
    ((31, 33), (40, 40), 2, (30, 32)),
    ((90, 90), (45, 63), 2, (44, 44)),
    ((1, 1), (40, 40), 2, (2, 2)),
  ],
)
def test_sizes_fit_and_are_never_enlarged(size, limit, multiple, want):
  assert stills.fit(size, limit, multiple) == want


def test_panels_in_reading_order_without_blank_ones():
  rng = np.random.default_rng(0)
  want = rng.integers(0, 256, (6, 10, 12, 3), np.uint8)
  grid = np.full((20, 36, 3), 254, np.uint8)
  for i, panel in enumerate(want):
    grid[10 * (i // 3) :, 12 * (i % 3) :][:10, :12] = panel
  grid[10:, 12:24] = 254 + rng.integers(0, 2, (10, 12, 3))  # Plain, as JPEG would leave it.
  got = stills.panels(grid, 3, 2)
  assert len(got) == 5
  for panel, right in zip(got, want[[0, 1, 2, 3, 5]]):
    np.testing.assert_array_equal(panel, right)


def test_panels_cover_what_the_grid_does_not_divide():
  picture = np.random.default_rng(0).integers(0, 256, (31, 32, 3), np.uint8)
  got = stills.panels(picture)
  rows = [np.concatenate(got[i : i + 3], 1) for i in (0, 3, 6)]
  np.testing.assert_array_equal(np.concatenate(rows), picture)
  assert {panel.shape[0] for panel in got} == {10, 11}


def test_a_png_loses_nothing():
  want = smooth(30, 41)
  np.testing.assert_array_equal(media.read_image(stills.to_png(want), 30, 41), want)


@pytest.mark.parametrize('size, place', [((8, 6), (4, 5, 8, 6)), ((32, 8), (0, 6, 16, 4))])
def test_a_letterbox_holds_the_whole_picture(size, place):
  """A small one unchanged, a large one shrunk, both in the middle of black."""
  picture = np.full((*size, 3), 200, np.uint8)
  got = stills.letterbox(picture, 16, 16)
  top, left, height, width = place
  inside = np.zeros((16, 16), bool)
  inside[top : top + height, left : left + width] = True
  assert abs(got[inside].astype(int) - 200).max() <= 1 and not got[~inside].any()


def test_a_shrunk_pixel_is_the_mean_of_those_it_covers():
  frames = np.arange(2 * 4 * 6 * 3, dtype=np.uint8).reshape(2, 4, 6, 3)
  got = stills.shrunk(frames, 2)
  assert got.shape == (2, 2, 3, 3)
  np.testing.assert_array_equal(got[1, 1, 2], np.rint(frames[1, 2:4, 4:6].mean((0, 1))))
