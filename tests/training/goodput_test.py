"""sr4/training/goodput.py, by a clock that only the test moves."""

import json

import pytest

from sr4.training import goodput


class Clock:
  def __init__(self, now: float = 1000.0):
    self.now = now

  def __call__(self) -> float:
    return self.now


def recorder(path, clock, **past):
  began = clock.now
  for name, seconds in past.items():
    clock.now += seconds
    past[name] = clock.now
  return goodput.Recorder(str(path), began, past, clock=clock)


def spend(clock, log, name: str, seconds: float):
  with log.span(name):
    clock.now += seconds


def steps(clock, log, numbers, wait: float = 1.0, seconds: float = 4.0):
  for number in numbers:
    spend(clock, log, 'data_loading', wait)
    log.step(number)
    clock.now += seconds


@pytest.fixture
def killed_and_resumed(tmp_path):
  """100 s of a run that saves at 2 and is killed in step 5, and of the one that goes on from 2."""
  clock, path = Clock(), tmp_path / 'goodput.jsonl'
  log = recorder(path, clock, imports=2.0, tpu_init=3.0)
  with log.span('training_prep'):
    clock.now += 1.0
    spend(clock, log, 'compile', 9.0)
  steps(clock, log, [1, 2])  # 10 s
  spend(clock, log, 'checkpoint_save', 2.0)
  steps(clock, log, [3, 4, 5])  # 15 s, the last 4 of them after the last line: no one saw them.
  log.file.write('{"data_loading_sta')  # Cut off by the kill.
  log.file.close()
  clock.now += 20.0
  with recorder(path, clock, imports=2.0, tpu_init=3.0) as log:
    with log.span('training_prep'):
      spend(clock, log, 'compile', 1.0)
      spend(clock, log, 'checkpoint_restore', 4.0)
    steps(clock, log, [3, 4, 5, 6])  # 20 s
    spend(clock, log, 'eval', 5.0)
    clock.now += 1.0  # Still of step 6.
    with log.leaving('checkpoint_save', _Leaving(clock, 2.0)):
      pass
  return path, clock.now - 1000.0


class _Leaving:
  def __init__(self, clock, seconds: float):
    self.clock, self.seconds = clock, seconds

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.clock.now += self.seconds


def test_shares_of_a_run_that_was_killed_and_resumed(killed_and_resumed):
  path, total = killed_and_resumed
  found = goodput.summary(goodput.read(str(path)))
  assert (found.seconds, found.runs, found.steps, total) == (100.0, 2, 6, 100.0)
  assert found.goodput + sum(found.badput.values()) == pytest.approx(1, abs=1e-12)
  seconds = {name: round(share * total, 6) for name, share in found.badput.items()}
  assert seconds == {
    'CUSTOM_BADPUT_EVENTS/imports': 4,
    'TPU_INITIALIZATION': 6,
    'TRAINING_PREP': 1,
    'PROGRAM_STARTUP': 10,
    'DATA_LOADING_SYNC': 9,
    'UNPRODUCTIVE_CHECKPOINT_SAVE_TIME': 4,
    'UNPRODUCTIVE_CHECKPOINT_RESTORE_TIME': 4,
    'WASTED_PROGRESS_FROM_DISRUPTION': 8,  # Steps 3 and 4 of the first run.
    'INFRASTRUCTURE_RECOVERY_FROM_DISRUPTION': 24,
    'CUSTOM_BADPUT_EVENTS/eval': 5,
  }
  assert found.goodput * total == pytest.approx(2 * 4 + 4 * 4 + 1)
  told = found.table()
  assert 'goodput 25.0%: 6 steps kept, in 100 s of wall time over 2 runs' in told
  assert '8.0%  WASTED_PROGRESS_FROM_DISRUPTION  (steps done again)' in told


def test_lines_have_the_keys_of_ml_goodput_measurement(killed_and_resumed):
  path, _ = killed_and_resumed
  lines = path.read_text().splitlines()
  assert sum(not line.endswith('}') for line in lines) == 1  # Nothing was glued to the cut line.
  keys = {frozenset(json.loads(line)) for line in lines if line.endswith('}')}
  custom = lambda edge: frozenset({'custom_badput_event_type', f'custom_badput_event_{edge}_time'})
  single = ('job', 'tpu_init', 'training_prep', 'data_loading')
  assert keys == {
    *(frozenset({f'{name}_{edge}_time'}) for name in single for edge in ('start', 'end')),
    frozenset({'step_count', 'step_start_time'}),
    custom('start'),
    custom('end'),
  }


def test_a_run_redone_twice_counts_each_kept_step_once(tmp_path):
  clock, path = Clock(), tmp_path / 'goodput.jsonl'
  for numbers in ([1, 2, 3, 4], [3, 4, 5], [], [2, 3, 4, 5]):
    with recorder(path, clock) as log:
      steps(clock, log, numbers, wait=0.0, seconds=1.0)
  found = goodput.of(str(tmp_path))
  assert (found.runs, found.steps) == (4, 5)
  assert found.goodput == pytest.approx(5 / 11)
  assert found.badput == {goodput.WASTED: pytest.approx(6 / 11)}


def test_lines_that_are_no_events_are_left_out(tmp_path):
  clock, path = Clock(), tmp_path / 'goodput.jsonl'
  with recorder(path, clock) as log:
    steps(clock, log, [1, 2, 3], wait=0.0, seconds=1.0)
  found = goodput.of(str(tmp_path))
  first, *rest = path.read_bytes().splitlines(keepends=True)
  path.write_bytes(first + b'{}\n[]\n\xff\n{"step_count": 4}\n{"st' + b'\n' + b''.join(rest))
  assert goodput.of(str(tmp_path)) == found


def test_a_clock_set_back_takes_no_time(tmp_path):
  clock, path = Clock(), tmp_path / 'goodput.jsonl'
  with recorder(path, clock) as log:
    steps(clock, log, [1], wait=0.0, seconds=3.0)
    spend(clock, log, 'eval', -60.0)
    steps(clock, log, [2], wait=0.0, seconds=61.0)
  found = goodput.summary(goodput.read(str(path)))
  assert (found.seconds, found.goodput, found.badput) == (4.0, 1.0, {})


def test_an_error_in_a_span_ends_it_and_the_job(tmp_path):
  clock, path = Clock(), tmp_path / 'goodput.jsonl'
  with pytest.raises(ZeroDivisionError), recorder(path, clock) as log, log.span('compile'):
    clock.now += 2.0
    raise ZeroDivisionError
  assert [next(key for key in event if key.endswith('_time')) for event in goodput.read(path)] == [
    'job_start_time',
    'custom_badput_event_start_time',
    'custom_badput_event_end_time',
    'job_end_time',
  ]


def test_startup_is_told_until_the_first_step(tmp_path):
  clock, told = Clock(), []
  log = goodput.Recorder(None, 998.0, {'imports': 1000.0}, told.append, clock)
  spend(clock, log, 'compile', 3.0)
  steps(clock, log, [7, 8])
  assert [line.split('  ')[-1] for line in told] == [
    'imports took 2.0 s',
    'compile took 3.0 s',
    'data_loading took 1.0 s',
    'step 7 begins',
  ]
  assert told[-1] == '   6.0 s  step 7 begins'


def test_no_log_no_summary(tmp_path):
  assert goodput.of(str(tmp_path)) is None
