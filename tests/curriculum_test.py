"""The whole training of Table 1 at the scale of a toy: every stage, each from the one before."""

import collections
import pathlib
import re

import jax
import pytest

from configs import skyreels_v4
from data_pipelines import buckets
from data_pipelines import loader
from data_pipelines import tasks
from data_pipelines.world import __main__ as world_main
from sr4 import pipeline
from sr4.core import config as config_lib
from sr4.models import system as system_lib
from sr4.training import checkpoint
from sr4.training import data
from sr4.training import loop
from sr4.training import metrics
from sr4.training import validation

STEPS = 30
PROGRAM = str(pathlib.Path(skyreels_v4.__file__))
# Buckets like those of a stage before, or of the same with another size: each is a program.
ELSEWHERE = dict(
  video2='images',
  video3='images',
  video4='images',
  video5='images',
  joint='sounds',
  sft1='image_ref|video_ref|clips-17x32x32',
  sft2='image_ref|video_ref|clips-17x32x32',
  refiner='image_ref|video_ref|images',
)


def _config(root, stage):
  """As `sr4 train` would load it, a little smaller."""
  changes = {
    'data.root': root / 'data',
    'validate.root': root / 'data' / 'held_out',
    'model.dual_layers': 1,
    'model.single_layers': 1,
    'mesh.fsdp': 1,
    'train.steps': STEPS,
    'train.save_every': STEPS,
    'validate.every': STEPS,
    'step.sparsify_every': STEPS // 4,
  }
  overrides = [f'{key}={value}' for key, value in changes.items()]
  config = config_lib.load(f'{PROGRAM}:{stage},debug,world', overrides)
  for name in [*config.data.buckets]:
    if stage in ELSEWHERE and re.match(ELSEWHERE[stage], name):
      del config.data.buckets[name]
  return config


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """The folder of a run of all stages, as the docstring of the config says."""
  root = tmp_path_factory.mktemp('curriculum')
  for stage in skyreels_v4.STAGES:
    changes = [
      f'--config.{key}={value}'
      for key, value in (('data.root', root / 'data'), ('validate.root', root / 'data/held_out'))
    ]
    told = ['--config', f'{PROGRAM}:{stage},debug,world', '--count', '256', *changes]
    world_main.main(told)
    loop.run(_config(root, stage), str(root / stage), progress=False)
  return root


def _held_out(root, stage, step) -> dict:
  """{name: loss} that the run of a stage wrote at a step."""
  rows = metrics.read(str(root / stage / 'metrics.jsonl'))
  found = [{k: v for k, v in row.items() if 'held_out' in k} for row in rows if row['step'] == step]
  (losses,) = filter(None, found)
  return losses


@pytest.mark.parametrize('stage', skyreels_v4.STAGES)
def test_a_stage_lowers_its_held_out_loss(trained, stage):
  before, after = _held_out(trained, stage, 0), _held_out(trained, stage, STEPS)
  learnt = [name for name in ('held_out/video', 'held_out/audio') if name in before]
  assert learnt and all(after[name] < before[name] for name in learnt), (before, after)


def test_the_last_model_is_better_than_each_stage_began(trained):
  _, model, _ = pipeline.load(str(trained / 'sft2' / 'checkpoints'))
  worse = []
  for stage in ('video3', 'video6', 'audio', 'joint'):
    config = _config(trained, stage)
    system = system_lib.build(config)
    c = loop.Sections.of(config)
    load = data.make_held_out(config, system, 0, c.validate.root, c.validate.batches)
    held_out = validation.HeldOut(system, c.flow, load, jax.random.key(0))
    now, before = held_out(model), _held_out(trained, stage, 0)
    for name in ('held_out/video', 'held_out/audio'):
      if name in before:
        print(f'{stage:<8} {name:<16} {before[name]:.3f} -> {now[name]:.3f}')
        worse += [(stage, name)] if now[name] >= before[name] else []
  assert not worse


@pytest.mark.parametrize('stage', skyreels_v4.STAGES)
def test_what_a_stage_freezes_stays(trained, stage):
  """Weights and their average are the same bytes exactly where nothing was trained."""
  _, page = checkpoint.page(str(trained / stage / 'checkpoints'))
  digests, frozen = page['digests'], skyreels_v4.STAGES[stage].frozen
  names = [name.removeprefix('ema.') for name in digests if name.startswith('ema.')]
  same = {name for name in names if digests[f'model.{name}'] == digests[f'ema.{name}']}
  still = {name for name in names if any(re.search(pattern, name) for pattern in frozen)}
  assert still <= same
  assert any(name not in same for name in names)
  assert bool(still) == (stage not in ('joint', 'sft1', 'sft2', 'refiner'))


def test_the_shares_of_table_1():
  """5 % each of the four new tasks of video 3, 20 % and 20 % and 60 % of video 6."""
  for stage, expected in (
    ('video3', {'inpaint': 0.05, 'i2v': 0.05, 'extend': 0.05, 'edit': 0.05}),
    ('video6', {'image_ref': 0.2, 'video_ref': 0.2, 't2v': 0.6}),
    ('sft1', {'t2av': 0.8}),
    ('refiner', {'image_ref': 0.05, 'video_ref': 0.05, 't2v': 0.4 * 0.475}),
  ):
    config, rows = skyreels_v4.get_config(stage), collections.Counter()
    for bucket in config.data.buckets.values():
      whole = bucket.weight * bucket.rows / sum(bucket.tasks.values())
      for name, share in bucket.tasks.items():
        rows[name] += whole * share
    for name, share in expected.items():
      assert rows[name] / rows.total() == pytest.approx(share), (stage, name)


@pytest.mark.parametrize('stage', skyreels_v4.STAGES)
def test_the_stages_of_the_report_can_be_built(stage):
  """Sizes divide, tasks fit their buckets, the schedule gives every bucket some steps."""
  config = config_lib.load(f'{PROGRAM}:{stage},large')
  system = system_lib.build(config)
  asked = config_lib.build(loader.Config, config.data)
  sizes = {name: system.size(**b.size()) for name, b in asked.buckets.items()}
  mix = []
  for name, bucket in asked.buckets.items():
    for task in bucket.tasks or {tasks.natural(sizes[name]): 1}:
      tasks.check(task, sizes[name])
    mix.append(buckets.Bucket(name, sizes[name], bucket.rows, bucket.weight, 1))
  assert buckets.Schedule(0, tuple(mix)).shares.min() > 0
  assert len(mix) <= 11 and all(b.rows % 64 == 0 for b in mix)


@pytest.mark.parametrize('arg', ['video7', 'video1,base,large', 'joint,huge'])
def test_an_unknown_stage_or_size(arg):
  with pytest.raises(config_lib.ConfigError):
    system_lib.build(config_lib.load(f'{PROGRAM}:{arg}'))
