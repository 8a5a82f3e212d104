"""configs/world.py: each variant can be built, and those of the cascade fit each other."""

import pathlib

import pytest

from data_pipelines import loader
from data_pipelines import tasks
from sr4 import pipeline
from sr4.core import config as config_lib
from sr4.models import system as system_lib

WORLD = pathlib.Path(__file__).parents[1] / 'configs' / 'world.py'


def built(variant: str):
  """(config, system, {bucket: Size})."""
  config = config_lib.load(f'{WORLD}:{variant}')
  system, asked = system_lib.build(config), config_lib.build(loader.Config, config.data)
  return config, system, {name: system.size(**b.size()) for name, b in asked.buckets.items()}


@pytest.mark.parametrize(
  'variant', ['', 'demo', 'demo,real', 'tasks', 'low', 'refiner', 'refiner,sparse']
)
def test_a_variant_can_be_built(variant):
  config, _, sizes = built(variant)
  for name, size in sizes.items():
    for task in config.data.buckets[name].get('tasks', {}):
      tasks.check(task, size)


def test_the_refiner_takes_the_clips_of_the_low_model():
  _, base, sizes = built('low')
  config, refiner, wanted = built('refiner')
  (low,), (large,) = sizes.values(), wanted.values()
  found = pipeline.refined_size(refiner, config.to_dict(), base, low)
  assert (found.frames, found.height, found.width, found.fps) == (33, 16, 16, 32.0)
  assert (found.frames, found.low.frames) == (large.frames, large.low.frames)
  assert (found.low.height, found.low.width) == (large.low.height, large.low.width)


def test_an_unknown_variant_is_told():
  with pytest.raises(config_lib.ConfigError, match="'refiner,sparse'"):
    config_lib.load(f'{WORLD}:refined')
