"""A Refiner from records to a step: data, what it is told, weights of the video model, errors."""

import dataclasses

import jax
import numpy as np
import pytest

from configs import skyreels_v4
from data_pipelines import degrade
from data_pipelines import tasks
from sr4.core import config as config_lib
from sr4.core.batch import Low
from sr4.core.batch import Size
from sr4.models import system as system_lib

SIZE = Size(17, 32, 48, 16.0, 0, low=Low(9, 16, 24, keyframes=2))


def smooth(t=17, h=32, w=48):
  axes = np.meshgrid(
    np.linspace(0, 1, t), np.linspace(0, 1, h), np.linspace(0, 1, w), indexing='ij'
  )
  return np.uint8(np.stack([200 * a + 20 for a in axes], -1))


def test_low_clips_are_means_of_every_other_frame():
  low = dataclasses.replace(SIZE.low, degrade=0.0)
  found = degrade.degraded(smooth(), low, np.random.default_rng(0))
  assert found.shape == (9, 16, 24, 3)
  wanted = smooth()[::2].reshape(9, 16, 2, 24, 2, 3).mean((2, 4))
  assert np.abs(found - wanted).max() <= 1


def test_copies_suffer_as_much_as_they_are_told_and_as_drawn():
  clean = degrade.degraded(
    smooth(), dataclasses.replace(SIZE.low, degrade=0.0), np.random.default_rng(1)
  )
  error = lambda seed, amount: np.abs(
    degrade.degraded(
      smooth(), dataclasses.replace(SIZE.low, degrade=amount), np.random.default_rng(seed)
    )
    - clean.astype(float)
  ).mean()
  assert 0 < error(3, 0.2) < error(3, 1.0) and error(3, 1.0) == error(3, 1.0) != error(4, 1.0)


@pytest.mark.parametrize('sides', [(16, 16), (30, 52)])
def test_copies_are_the_same_each_time(sides):
  """FFmpeg's gblur is not, of frames of 16 x 16."""
  low = Low(5, *sides)
  clip = np.random.default_rng(0).integers(0, 256, (9, 32, 64, 3), np.uint8)
  one, *others = (degrade.degraded(clip, low, np.random.default_rng(1)) for _ in range(20))
  assert all(np.array_equal(one, other) for other in others)


def test_keyframes_are_at_the_ends_of_latents_and_sometimes_missing():
  random = np.random.default_rng(0)
  draws = [tasks.chosen(SIZE.low, random, 4) for _ in range(400)]
  assert {tuple(at) for at in draws} == {(0, 4), (0, 8), (4, 8), (-1, -1)}
  assert 0.05 < np.mean([at[0] < 0 for at in draws]) < 0.15


CONFIG = skyreels_v4.get_config('refiner,debug,world')


def test_the_stage_is_a_video_model_with_sparse_attention():
  """Its parameters are the video model's, but for what reads the sound, and the gates."""
  names = lambda stage: set(flat(system_lib.build(skyreels_v4.get_config(f'{stage},debug,world'))))
  base, refiner = names('sft2'), names('refiner')
  video = {name for name in base if '.audio.' not in name and not name.startswith('audio.')}
  assert (
    {name for name in refiner - video} == {name for name in refiner if '.gate.' in name} != set()
  )
  assert all('.video.cross' in name for name in video - refiner)


def flat(system):
  from sr4.core import tree

  return tree.to_flat(tree.abstract(system.model, jax.random.key(0)))


@pytest.mark.parametrize(
  'low, told',
  [
    (dict(frames=8, height=16, width=24), 'low: a clip of 8'),
    (dict(frames=13, height=16, width=24), 'frames must be 1 \\+ n'),
    (dict(frames=9, height=64, width=24), 'no side may be smaller'),
    (dict(frames=9, height=16, width=24, keyframes=4), 'low.keyframes=4 is not in 0 to 3'),
  ],
)
def test_low_clips_that_fit_no_large_one(low, told):
  with pytest.raises(config_lib.ConfigError, match=told):
    system_lib.build(CONFIG).size(17, 32, 48, sound=False, low=low)


def test_a_model_without_sound():
  with pytest.raises(config_lib.ConfigError, match='set sound=False'):
    system_lib.build(CONFIG).size(17, 32, 48)
