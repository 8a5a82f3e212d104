"""Whole runs: what a kill, a SIGTERM and bad input leave behind."""

import functools
import random
import signal
import subprocess
import time

import jax
from jax._src import array
import pytest

from sr4.training import accounting
from sr4.training import checkpoint
from sr4.training import compiled
from sr4.training import goodput
from sr4.training import loop
from sr4.training import metrics
from tests import small_run
from tests.small_run import STEPS

silent = functools.partial(small_run.config, sound=False)


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  """A folder with data, and a config file that trains on it."""
  path = tmp_path_factory.mktemp('run')
  small_run.write_clips(path / 'clips')
  small_run.write_config(path / 'config.py', silent(path))
  return path


def told(home, workdir, *overrides):
  return ('train', '--config', home / 'config.py', '--workdir', workdir, *overrides)


def train(home, workdir, *overrides):
  return small_run.start(*told(home, workdir, *overrides))


def saved_digests(workdir) -> dict:
  step, page = checkpoint.page(str(workdir / 'checkpoints'))
  assert step == STEPS
  return page['digests']


@pytest.fixture(scope='module')
def uninterrupted(home):
  workdir = home / 'straight'
  small_run.finish(train(home, workdir))
  return saved_digests(workdir)


def wait_for_step(workdir, step, process):
  path = workdir / 'metrics.jsonl'
  while process.poll() is None:
    if path.exists() and len(metrics.read(path)) >= step:
      return
    time.sleep(0.01)


def test_kill_at_a_random_step_then_resume_is_bit_identical(home, uninterrupted):
  workdir = home / 'killed'
  process = train(home, workdir)
  # A save waits for the one before it, so at step 7 that of step 3 is whole.
  wait_for_step(workdir, random.SystemRandom().randrange(7, 10), process)
  process.kill()
  process.communicate()
  assert checkpoint.page(str(workdir / 'checkpoints'))[0] < STEPS
  small_run.finish(train(home, workdir))
  assert saved_digests(workdir) == uninterrupted
  steps = [row['step'] for row in metrics.read(workdir / 'metrics.jsonl')]
  assert steps == list(range(1, STEPS + 1))
  spent = goodput.of(str(workdir))
  assert (spent.runs, spent.steps) == (2, STEPS) and 0 < spent.goodput < 1
  assert spent.goodput + sum(spent.badput.values()) == pytest.approx(1)
  assert {goodput.WASTED, 'UNPRODUCTIVE_CHECKPOINT_RESTORE_TIME'} <= spent.badput.keys()


def test_sigusr1_traces_sigterm_saves_and_exits_0_and_the_rest_follows(home):
  workdir = home / 'asked'
  process = train(home, workdir, '--config.train.steps=100000', '--config.train.save_every=50000')
  wait_for_step(workdir, 4, process)
  process.send_signal(signal.SIGUSR1)
  while process.poll() is None and not list(workdir.glob('profiles/*/**/*.xplane.pb')):
    time.sleep(0.01)
  process.send_signal(signal.SIGTERM)
  small_run.finish(process)
  (traced,) = workdir.glob('profiles/*')
  assert int(traced.name) > 4
  saved, _ = checkpoint.page(str(workdir / 'checkpoints'))
  assert 4 <= saved < 50000
  out = small_run.finish(train(home, workdir, f'--config.train.steps={saved + 2}'))
  assert f'step {saved} of {saved + 2}' in out
  assert checkpoint.page(str(workdir / 'checkpoints'))[0] == saved + 2


def test_another_seed_ends_elsewhere(home, uninterrupted):
  workdir = home / 'seed'
  small_run.run(*told(home, workdir, '--config.train.seed=1'))
  assert saved_digests(workdir) != uninterrupted


@pytest.mark.parametrize(
  'overrides, told',
  [
    (['--config.train.stepz=3'], "did you mean 'steps'"),
    (['--config.train.steps=many'], 'not of type int'),
    (['--config.train.steps=2.5'], 'config.train.steps=2.5: it must be of type int'),
    (['--config.model.heads=3'], 'width 64 / heads 3'),
    (['--config.data.root=/nowhere'], '/nowhere'),
    (['--config.trian.steps=3'], "did you mean 'train.steps'"),
    (['--config.step.accumulate=3'], 'rows=4 must be a multiple'),
    (['--config.mesh.seq=3'], 'does not divide the 8'),
    (['--config.model.size=huge'], "'huge' is not among"),
    (['--config.train.keep=0'], 'train.keep=0 must be 1 or more'),
    (['--config.step.accumulate=0'], 'step.accumulate=0 must be 1 or more'),
    (['--config.preview.every=6', '--config.preview.prompts=()'], 'without preview.prompts'),
    (['--config.step.sparsify=0.1'], 'model.sparse.tile=() is dense'),
    (['--config.optimizer.clip=0'], 'optimizer.clip=0.0 must be above 0'),
    (['--config.optimizer.learning_rate=-1.0'], 'learning_rate=-1.0 must be 0 or more'),
    (['--config.optimizer.learning_rate=1e999'], 'learning_rate=inf must be 0 or more, and finite'),
    (['--config.optimizer.b2=1.0'], 'b2=1.0 must be in [0, 1)'),
    (['--config.optimizer.warmup=-1'], 'optimizer.warmup=-1'),
    (['--config.step.patience=0'], 'step.patience=0 1 or more'),
    (['--config.step.ema=1.0'], 'step.ema=1.0 must be 0 or more and below 1'),
    (['--config.train.max_seconds=-5'], 'train.max_seconds=-5.0 must be 0 (off) or more'),
    (['--config.preview.every=-1'], 'preview.every=-1 must be 0 (never) or more'),
    (['--config.validate.every=-2'], 'validate.every=-2 must be 0 (never) or more'),
    (['--config.model.dtype=int8'], "model.dtype='int8' is not among"),
    (['--config.data.buckets.clips.fps=0.0'], 'fps=0.0 must be above 0, and finite'),
    (['--config.train.profile=(5,0)'], 'profile=(5, 0) is (a step or 0, 1 step or more)'),
    (['--config.train.compile_cache=/dev/null/xla'], 'compiled programs cannot be kept there'),
  ],
)
def test_bad_input_is_one_line(home, tmp_path, overrides, told):
  given = '--config', home / 'config.py', '--workdir', tmp_path, *overrides
  out = small_run.run('train', *given, code=1)
  assert told in out
  assert out.startswith('sr4: ') and out.count('\n') == 1


def test_a_checkpoint_of_another_config_or_other_data_is_refused(home, uninterrupted):
  config = silent(home)
  config.model.size = 'tiny'
  with pytest.raises(checkpoint.CheckpointError, match='another config'):
    loop.run(config, str(home / 'straight'), progress=False)
  config = silent(home, seed=5)
  with pytest.raises(checkpoint.CheckpointError, match='schedule'):
    loop.run(config, str(home / 'straight'), progress=False)


def test_a_flipped_byte_is_found(home, uninterrupted):
  root = home / 'straight' / 'checkpoints'
  largest = max(
    (p for p in (root / str(STEPS)).rglob('d/*') if p.is_file()), key=lambda p: p.stat().st_size
  )
  data = bytearray(largest.read_bytes())
  config = silent(home)
  undamaged = bytes(data)
  try:
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    with pytest.raises(checkpoint.CheckpointError):
      loop.run(config, str(home / 'straight'), progress=False)
  finally:
    largest.write_bytes(undamaged)
  state, code = loop.run(config, str(home / 'straight'), progress=False)
  assert int(state.step) == STEPS and code == 0


def test_a_run_that_only_skips_stops(home, tmp_path):
  config = silent(home)
  config.optimizer.learning_rate = 1e38  # The next loss is not finite.
  config.step.patience = 3
  with pytest.raises(loop.Diverged, match='3 steps in a row'):
    loop.run(config, str(tmp_path), progress=False)


def test_what_does_not_fit_is_refused_before_step_0(home, tmp_path, monkeypatch):
  monkeypatch.setattr(accounting, 'limit_gib', lambda devices: 0.001)
  told = r"bucket 'clips' does not fit: its step needs 0\.01 GiB of .* which has 0\.00 GiB"
  with pytest.raises(compiled.DoesNotFit, match=told):
    loop.run(silent(home), str(tmp_path), progress=False)
  assert not (tmp_path / 'metrics.jsonl').exists() and not list(tmp_path.glob('checkpoints/*'))


def test_all_buckets_are_compiled_before_the_first_step(home, tmp_path):
  """One step is one bucket; both are compiled."""
  config = silent(home, steps=1)
  config.optimizer.warmup = 0
  config.data.buckets.fewer = dict(config.data.buckets.clips, rows=2)
  loop.run(config, str(tmp_path), progress=False)
  told = [
    event.get('custom_badput_event_type', 'step')
    for event in goodput.read(tmp_path / 'goodput.jsonl')
    if 'step_count' in event or 'custom_badput_event_start_time' in event
  ]
  assert told == ['imports', 'open_data', 'compile', 'compile', 'init', 'step'] + 2 * [
    'checkpoint_save'
  ]


def test_no_step_is_waited_for_before_the_next_is_started(home, tmp_path, monkeypatch):
  """Every array of a step that the host reads, and when."""
  started, step_of, kept, read = 0, {}, [], []
  call, value = compiled.Program.__call__, array.ArrayImpl._value

  def run(program, *arguments):
    nonlocal started
    made = call(program, *arguments)
    started += 1
    step_of.update({id(x): started for x in jax.tree.leaves(made)})
    kept.append(made)  # Or another array may get its id.
    return made

  def note(x):
    if id(x) in step_of:
      read.append((step_of[id(x)], started))

  def waits(x):
    jax.tree.map(note, x)
    return x

  monkeypatch.setattr(compiled.Program, '__call__', run)
  monkeypatch.setattr(array.ArrayImpl, '_value', property(lambda x: note(x) or value.fget(x)))
  monkeypatch.setattr(array.ArrayImpl, 'block_until_ready', waits)
  monkeypatch.setattr(jax, 'block_until_ready', waits)
  loop.run(silent(home, save_every=100), str(tmp_path), progress=False)
  hot = [(step, at) for step, at in read if at < STEPS]
  assert {step for step, _ in hot} == set(range(1, STEPS - 1))  # Each was read.
  assert all(step < at for step, at in hot)


def test_a_profile_by_config(home, tmp_path):
  # In a process of its own: the profiler has crashed one that had run a thousand tests.
  given = '--config.train.steps=5', '--config.train.profile=(2,2)'
  small_run.finish(train(home, tmp_path, *given))
  assert [p.name for p in tmp_path.glob('profiles/*')] == ['0000002']
  (page,) = tmp_path.rglob('*.xplane.pb')
  assert b'jit_update' in page.read_bytes()


def test_rows_have_the_accounts(home, uninterrupted):
  row = metrics.read(home / 'straight' / 'metrics.jsonl')[-1]
  assert row['tokens_per_second'] == pytest.approx(8 * row['samples_per_second'])
  # 5 frames at 8 a second; a device is there.
  seconds = row['clip_seconds_per_device_hour'] / 3600
  assert seconds == pytest.approx(5 / 8 * row['samples_per_second'])
  assert row['tflops_per_device'] > 0 and row['process_peak_gib'] > 0.1
  assert 'mfu' not in row and 'device_peak_gib' not in row


def test_previews_are_written(home, tmp_path):
  config = silent(home, steps=2)
  config.preview.every = 2
  loop.run(config, str(tmp_path), progress=False)
  assert (tmp_path / 'previews' / '0000002' / '00.mp4').stat().st_size > 500


def test_clips_without_sound_train_the_video_alone(home, tmp_path):
  small_run.write_clips(tmp_path / 'clips', sound=False)
  config = small_run.config(tmp_path, steps=2)
  loop.run(config, str(tmp_path / 'work'), progress=False)
  rows = metrics.read(tmp_path / 'work' / 'metrics.jsonl')
  assert all(row['audio'] == 0 and row['video'] > 0 for row in rows)


@pytest.fixture
def disk(tmp_path):
  """A file system of 3 MB."""
  folder = tmp_path / 'disk'
  folder.mkdir()
  if subprocess.run(
    ['mount', '-t', 'tmpfs', '-o', 'size=3m', 'tmpfs', folder], capture_output=True, check=False
  ).returncode:
    pytest.skip('only root can mount a small file system')
  yield folder
  subprocess.run(['umount', folder], check=True)


def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_room(home, disk):
  out = small_run.finish(train(home, disk / 'run'), code=1)
  assert out.splitlines()[-1].startswith('sr4: ') and 'no space left on device' in out
  assert 'Traceback' not in out
  subprocess.run(['mount', '-o', 'remount,size=200m', disk], check=True)
  small_run.run(*told(home, disk / 'run'))
