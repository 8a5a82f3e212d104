"""sr4/metrics/instruction.py: right about the world, through the codec and under noise."""

import numpy as np
import pytest

from data_pipelines import world
from sr4 import evaluate
from sr4.metrics import foreground
from sr4.metrics import instruction
from sr4.models import codec


@pytest.fixture(scope='module')
def shapes():
  return instruction.gallery({shape: evaluate.silhouette(shape) for shape in world.SHAPES})


@pytest.fixture(scope='module')
def clips():
  """(frames [n t h w 3], [(color, shape)]) of the world that `make demo` learns."""
  source = world.World(world.Config.simple(height=32, width=32, frames=17), seed=5)
  samples = [source[i] for i in range(96)]
  names = [(thing.color, thing.shape) for thing in (s.truth.objects[0] for s in samples)]
  return np.stack([sample.frames for sample in samples]), names


def coded(frames):
  video = codec.build_video({'name': 'dct', 'space_factor': 4, 'channels': 16})
  return np.uint8(np.round((np.asarray(video.decode(video.encode(frames))) + 1) * 127.5))


def noisy(frames):
  noise = np.random.default_rng(0).normal(0, 20, frames.shape)
  return np.uint8(np.clip(frames + noise, 0, 255))


@pytest.mark.parametrize(
  'through',
  [lambda x: x, coded, lambda x: noisy(coded(x))],
  ids=['truth', 'codec', 'codec and noise'],
)
def test_colour_and_shape_of_the_world(clips, shapes, through):
  frames, names = clips
  seen = [instruction.attributes(clip, world.COLORS, shapes) for clip in through(frames)]
  assert np.mean([a[0] == b[0] for a, b in zip(seen, names)]) >= 0.98
  assert np.mean([a[1] == b[1] for a, b in zip(seen, names)]) >= 0.95


def test_a_wrong_colour_is_seen_and_the_shape_stays(clips, shapes):
  frames, names = clips
  i = [color for color, _ in names].index('red')
  swapped = frames[i][..., ::-1]  # Red is blue now.
  assert instruction.attributes(swapped, world.COLORS, shapes) == ('blue', names[i][1])


def test_the_larger_of_two_things_counts(clips, shapes):
  frames, names = clips
  spotted = frames[0].copy()
  spotted[:, :2, :2] = 245
  assert instruction.attributes(spotted, world.COLORS, shapes) == names[0]


def test_a_few_bad_frames_do_not_count(clips, shapes):
  frames, names = clips
  gone = frames.copy()
  gone[:, 3:8] = frames[0, 0, 0, 0]
  seen = [instruction.attributes(clip, world.COLORS, shapes) for clip in gone[:24]]
  assert sum(a == b for a, b in zip(seen, names)) >= 23


@pytest.mark.parametrize(
  'frames',
  [
    np.zeros((5, 32, 32, 3), np.uint8),
    np.full((5, 32, 32, 3), 200, np.uint8),
    noisy(np.full((5, 32, 32, 3), 60, np.uint8)) // 4 + 40,
  ],
  ids=['black', 'grey', 'faint noise'],
)
def test_nothing_is_nothing(frames, shapes):
  assert instruction.attributes(frames, world.COLORS, shapes) == (None, None)


def test_track_is_where_the_object_is():
  source = world.World(world.Config.simple(height=32, width=48, frames=9), seed=6)
  sample = next(
    s for s in map(source.__getitem__, range(99)) if s.truth.objects[0].shape == 'square'
  )
  found = foreground.track(sample.frames) / (48, 32)
  np.testing.assert_allclose(found, sample.truth.tracks[0], atol=0.002)


def test_the_largest_blob():
  mask = np.zeros((6, 8), bool)
  mask[0, :3] = mask[2, 5] = mask[3, 4] = mask[4, 5] = mask[5, 6] = True
  mask[0, 7] = mask[2, 0] = True
  expected = mask.copy()
  expected[:, 0] = expected[0] = False  # Three in a row against four that touch by their corners.
  np.testing.assert_array_equal(foreground.largest_blob(mask), expected)
  np.testing.assert_array_equal(foreground.largest_blob(mask[::-1]), expected[::-1])
  assert not foreground.largest_blob(np.zeros((4, 4), bool)).any()
