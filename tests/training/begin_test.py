"""sr4/training/begin.py: weights of other runs, and data that is or is not the same."""

import numpy as np
import pytest

from sr4 import pipeline
from sr4.core import tree
from sr4.training import begin
from sr4.training import checkpoint
from sr4.training import compiled
from sr4.training import loop
from tests import small_run

TOLD = {'schedule': 'abc', 'phase': 1, 'start': 40}


@pytest.mark.parametrize(
  'schedule, phase, expected',
  [
    ('abc', 1, TOLD),  # Nothing changed.
    ('xyz', 2, {'schedule': 'xyz', 'phase': 2, 'start': 100}),
    ('abc', 2, {'schedule': 'abc', 'phase': 2, 'start': 100}),  # The same data from its beginning.
  ],
)
def test_phases(schedule, phase, expected):
  assert begin.data_phase(TOLD, schedule, phase, 100) == expected


@pytest.mark.parametrize('schedule, phase', [('xyz', 1), ('abc', 0), ('xyz', 0)])
def test_other_data_in_the_same_phase_is_refused(schedule, phase):
  with pytest.raises(checkpoint.CheckpointError, match=r'config\.data\.phase=2'):
    begin.data_phase(TOLD, schedule, phase, 100)


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  """A run in FIRST."""
  path = tmp_path_factory.mktemp('begin')
  small_run.write_clips(path / 'clips')
  small_run.write_checkpoint(path / 'first', small_run.config(path))
  return path


def _config(home, **init):
  config = small_run.config(home, steps=1)
  config.optimizer.update(learning_rate=0.0, warmup=0)
  config.init = init
  return config


def _averages(home):
  """The moving averages of the first run, by name."""
  step, _ = checkpoint.page(str(home / 'first' / 'checkpoints'))
  _, model, _ = pipeline.load(str(home / 'first' / 'checkpoints'), step)
  return {name: np.asarray(x) for name, x in tree.to_flat(model).items()}


def test_what_matches_comes_from_the_other_run_and_the_rest_is_new(home):
  init = dict(first=dict(checkpoints='../first/checkpoints', names=r'^video\.|\.video\.'))
  state, _ = loop.run(_config(home, **init), str(home / 'second'), progress=False)
  fresh, _ = loop.run(_config(home), str(home / 'third'), progress=False)
  old, new = tree.to_flat(state.model), tree.to_flat(fresh.model)
  for name, average in _averages(home).items():
    theirs = name.startswith('video.') or '.video.' in name
    np.testing.assert_array_equal(old[name], average if theirs else new[name], name)
  assert int(state.step) == 1
  ema = tree.to_flat(state.ema)
  assert all(np.array_equal(ema[name], x) for name, x in old.items())


@pytest.fixture
def nothing_compiled(monkeypatch):
  """What would compile a step is an error."""
  monkeypatch.setattr(compiled, 'compile_step', None)


@pytest.mark.parametrize(
  'init, told',
  [
    (dict(checkpoints='../nowhere/checkpoints'), 'no checkpoints'),
    (dict(checkpoints='../first/checkpoints', names='vidoe'), "names='vidoe' names no parameter"),
    (dict(checkpoints='../first/checkpoints', step=7), 'no checkpoint of step 7'),
  ],
)
def test_what_cannot_be_begun_from(home, nothing_compiled, init, told):
  with pytest.raises(checkpoint.CheckpointError) as error:
    loop.run(_config(home, first=init), str(home / 'fourth'), progress=False)
  assert told in str(error.value)


def test_a_model_of_another_width_is_refused(home, nothing_compiled):
  config = _config(home, first=dict(checkpoints='../first/checkpoints'))
  config.model.width = 32
  with pytest.raises(checkpoint.CheckpointError, match='of other shapes'):
    loop.run(config, str(home / 'fifth'), progress=False)


def test_a_run_goes_on_with_other_data_in_a_new_phase(home):
  """Refused at first; then the new data from its own beginning, and the step goes on."""
  small_run.write_clips(home / 'more', count=20)
  workdir = home / 'phases'
  loop.run(small_run.config(home, steps=2), str(workdir), progress=False)
  config = small_run.config(home, steps=4)
  config.data.buckets.clips.records = ('more',)
  with pytest.raises(checkpoint.CheckpointError, match=r'config\.data\.phase=1'):
    loop.run(config, str(workdir), progress=False)
  config.data.phase = 1
  state, _ = loop.run(config, str(workdir), progress=False)
  _, page = checkpoint.page(str(workdir / 'checkpoints'))
  assert int(state.step) == 4 and page['data']['phase'] == 1 and page['data']['start'] == 2
