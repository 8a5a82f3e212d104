"""configs/world.py: each variant can be built, and those of the cascade fit each other."""

import pathlib

import pytest

from data_pipelines import loader
from data_pipelines import tasks
from sr4 import pipeline
from sr4.core import config as config_lib
from sr4.models import system as system_lib
from sr4.training import loop

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
  loop.Sections.of(config)
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


def test_clips_are_as_large_as_those_trained_on_most():
  """Not pictures, however many."""
  _, system, _ = built('demo')
  clip = lambda frames, weight: dict(frames=frames, height=16, width=16, fps=8.0, weight=weight)
  buckets = dict(pictures=clip(1, 9.0), short=clip(5, 1.0), long=clip(9, 2.0), longer=clip(17, 1.0))
  assert pipeline.size_of(system, dict(data=dict(buckets=buckets))).frames == 9


def test_an_unknown_variant_is_told():
  with pytest.raises(config_lib.ConfigError, match="'refiner,sparse'"):
    config_lib.load(f'{WORLD}:refined')
