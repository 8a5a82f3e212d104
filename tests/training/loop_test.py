"""Whole runs: what a kill, a SIGTERM and bad input leave behind."""
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import ml_collections
import pytest

from data_pipelines import records
from data_pipelines import world
from sr4.core import config as config_lib
from sr4.training import checkpoint
from sr4.training import loop
from sr4.training import metrics

STEPS = 12


def small_config(data: str, **train) -> ml_collections.ConfigDict:
  """The smallest run there is: 5 frames of 16x16."""
  return ml_collections.ConfigDict(dict(
      model=dict(size='debug', dtype='float32', remat='none', dual_layers=1, single_layers=1),
      video_codec=dict(name='dct', space_factor=4, channels=16),
      audio_codec=dict(name='mdct', sample_rate=8000, audio_channels=1, hop=256, bands=32),
      text=dict(name='bytes', width=32, tokens=8),
      data=dict(root=data, buckets=(dict(name='t2av', records=('clips',), frames=5, height=16,
                                         width=16, fps=8.0, rows=4),)),
      flow=dict(), optimizer=dict(learning_rate=1e-3, warmup=2), step=dict(), mesh=dict(),
      sample=dict(num_inference_steps=2), preview=dict(every=0, prompts=('a red circle',)),
      train=dict(steps=STEPS, save_every=3, log_every=1) | train))


def write_world(folder, count=16):
  source = world.World(world.Config.simple(
      height=16, width=16, frames=5, fps=8.0, sample_rate=8000, channels=1))
  samples = [source[i] for i in range(count)]
  records.write(folder, (records.Record(str(i), s.frames, 8.0, s.samples, 8000, s.captions)
                         for i, s in enumerate(samples)))


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  """A folder with data, and a config file that trains on it."""
  path = tmp_path_factory.mktemp('run')
  write_world(path / 'clips')
  page = json.dumps(config_lib.to_json(small_config(str(path))))
  (path / 'config.py').write_text(
      f'import json, ml_collections\n\ndef get_config():\n'
      f'  c = json.loads({page!r})\n  c["data"]["buckets"] = tuple(c["data"]["buckets"])\n'
      f'  return ml_collections.ConfigDict(c)\n')
  return path


def train(home, workdir, *overrides):
  """`sr4 train` in a process of its own, on one device."""
  env = os.environ | {'XLA_FLAGS': '', 'JAX_COMPILATION_CACHE_DIR': str(home / 'cache'),
                      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
  return subprocess.Popen(
      [sys.executable, '-m', 'sr4.train', '--config', str(home / 'config.py'),
       '--workdir', str(workdir), *overrides],
      env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process) -> str:
  out, _ = process.communicate(timeout=300)
  assert process.returncode == 0, out
  return out


def saved_digests(workdir) -> dict:
  step, page = checkpoint.page(str(workdir / 'checkpoints'))
  assert step == STEPS
  return page['digests']


@pytest.fixture(scope='module')
def uninterrupted(home):
  workdir = home / 'straight'
  finish(train(home, workdir))
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
  wait_for_step(workdir, random.SystemRandom().randrange(4, STEPS - 1), process)
  process.kill()
  process.communicate()
  assert checkpoint.page(str(workdir / 'checkpoints'))[0] < STEPS
  finish(train(home, workdir))
  assert saved_digests(workdir) == uninterrupted
  steps = [row['step'] for row in metrics.read(workdir / 'metrics.jsonl')]
  assert steps == list(range(1, STEPS + 1))


def test_sigterm_saves_and_exits_0_and_the_rest_follows(home, uninterrupted):
  workdir = home / 'asked'
  process = train(home, workdir, '--config.train.save_every=100')
  wait_for_step(workdir, 4, process)
  process.send_signal(signal.SIGTERM)
  finish(process)
  saved, _ = checkpoint.page(str(workdir / 'checkpoints'))
  assert 0 < saved <= STEPS
  finish(train(home, workdir, '--config.train.save_every=100'))
  assert saved_digests(workdir) == uninterrupted


def test_another_seed_ends_elsewhere(home, uninterrupted):
  workdir = home / 'seed'
  finish(train(home, workdir, '--config.train.seed=1'))
  assert saved_digests(workdir) != uninterrupted


@pytest.mark.parametrize('overrides, told', [
    (['--config.train.stepz=3'], "did you mean 'train.steps'"),
    (['--config.train.steps=many'], 'not of type int'),
    (['--config.model.heads=3'], 'width 64 / heads 3'),
    (['--config.data.root=/nowhere'], '/nowhere'),
    (['--config.model.size=huge'], "'huge' is not among"),
])
def test_bad_input_is_one_line(home, tmp_path, overrides, told):
  process = train(home, tmp_path, *overrides)
  out, _ = process.communicate(timeout=120)
  assert process.returncode == 1
  assert told in out and 'Traceback' not in out
  assert out.startswith('sr4: ') and out.count('\n') == 1


def test_a_checkpoint_of_another_config_or_other_data_is_refused(home, uninterrupted):
  config = small_config(str(home))
  config.model.size = 'tiny'
  with pytest.raises(checkpoint.CheckpointError, match='another config'):
    loop.run(config, str(home / 'straight'), progress=False)
  config = small_config(str(home), seed=5)
  with pytest.raises(checkpoint.CheckpointError, match='schedule'):
    loop.run(config, str(home / 'straight'), progress=False)


def test_a_flipped_byte_is_found(home, uninterrupted):
  root = home / 'straight' / 'checkpoints'
  largest = max((p for p in (root / str(STEPS)).rglob('d/*') if p.is_file()),
                key=lambda p: p.stat().st_size)
  data = bytearray(largest.read_bytes())
  config = small_config(str(home))
  undamaged = bytes(data)
  try:
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    with pytest.raises((checkpoint.CheckpointError, ValueError)):
      loop.run(config, str(home / 'straight'), progress=False)
  finally:
    largest.write_bytes(undamaged)
  assert int(loop.run(config, str(home / 'straight'), progress=False).step) == STEPS


def test_a_run_that_only_skips_stops(home, tmp_path):
  config = small_config(str(home))
  config.optimizer.learning_rate = float('inf')
  config.step.patience = 3
  with pytest.raises(loop.Diverged, match='3 steps in a row'):
    loop.run(config, str(tmp_path), progress=False)


def test_previews_are_written(home, tmp_path):
  config = small_config(str(home), steps=2)
  config.optimizer.warmup = 1
  config.preview.every = 2
  loop.run(config, str(tmp_path), progress=False)
  assert (pathlib.Path(tmp_path) / 'previews' / '0000002' / '00.mp4').stat().st_size > 500


def test_clips_without_sound_train_the_video_alone(home, tmp_path):
  source = world.World(world.Config.simple(height=16, width=16, frames=5, fps=8.0))
  records.write(tmp_path / 'clips', (
      records.Record(str(i), source[i].frames, 8.0, None, 8000, source[i].captions)
      for i in range(8)))
  config = small_config(str(tmp_path), steps=2)
  config.optimizer.warmup = 1
  loop.run(config, str(tmp_path / 'work'), progress=False)
  rows = metrics.read(tmp_path / 'work' / 'metrics.jsonl')
  assert all(row['audio'] == 0 and row['video'] > 0 for row in rows)


def test_devices_share_the_rows(home, tmp_path):
  assert jax.device_count() == 8
  config = small_config(str(home), steps=2)
  config.optimizer.warmup = 1
  config.mesh = dict(data=2, fsdp=2)
  loop.run(config, str(tmp_path / 'four'), progress=False)
  config.mesh = dict(fsdp=1)
  loop.run(config, str(tmp_path / 'one'), progress=False)
  last = lambda name: metrics.read(tmp_path / name / 'metrics.jsonl')[-1]
  assert last('four')['loss'] == pytest.approx(last('one')['loss'], rel=1e-5)
