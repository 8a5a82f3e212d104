"""Pods that train and save: kills, signals, fewer hosts, and nothing is lost."""

import re
import shutil
import signal

import jax
import numpy as np
import pytest

from sr4 import verify
from sr4.core import watch
from sr4.training import checkpoint
from sr4.training import loop
from sr4.training import metrics
from tests import small_pod
from tests import small_run
from tests.small_run import STEPS

# A run of training, told by what happens to it.
RTOL = 1e-5  # of losses; fp32 sums in another order.  Measured: 6e-7.


def silent(home, **mesh):
  """Each host compiles for itself."""
  config = small_run.config(home, sound=False, save_every=3)
  config.mesh.update(mesh)
  return config


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  path = tmp_path_factory.mktemp('pod')
  small_run.write_clips(path / 'clips', sound=False)
  small_run.write_config(path / 'config.py', silent(path, fsdp=-1))
  return path


@pytest.fixture(scope='module')
def straight(home):
  """The losses of one process that nothing happens to."""
  loop.run(silent(home), str(home / 'straight'), progress=False)
  return losses(home / 'straight')


def losses(workdir) -> dict[int, float]:
  return {row['step']: row['video'] for row in metrics.read(workdir / 'metrics.jsonl')}


def train(count: int, home, workdir, *overrides, **others) -> small_pod.Hosts:
  workdir.mkdir(exist_ok=True)
  command = ('-m', 'sr4', 'train', '--config', home / 'config.py', '--workdir', workdir)
  return small_pod.Hosts(count, workdir, *command, *overrides, **others)


def at_step(workdir, step: int) -> bool:
  path = workdir / 'metrics.jsonl'
  return path.exists() and any(row['step'] >= step for row in metrics.read(path))


def test_killed_in_a_step_then_asked_to_stop_on_fewer_hosts(home, straight):
  """4 hosts, two by two with the same rows; 2 of 2 devices; 1: the losses of an undisturbed run."""
  workdir = home / 'story'
  saved = workdir / 'checkpoints'

  with train(4, home, workdir, '--config.mesh.fsdp=2', '--config.mesh.seq=2') as hosts:
    hosts.until(lambda: (saved / '3').exists() and at_step(workdir, 4))
    hosts.kill(2)
    assert hosts.codes() == [watch.RESTART, watch.RESTART, -signal.SIGKILL, watch.RESTART]
    for host in (0, 1, 3):
      assert re.search(r'\nsr4: host 2 of 4: no sign of life for \d+ s', hosts.said(host))
  assert 3 in checkpoint.steps(str(saved))

  with train(2, home, workdir, '--config.mesh.data=2', '--verify=fast', devices=2) as hosts:
    hosts.until(lambda: at_step(workdir, 7))
    hosts.kill(1, signal.SIGTERM)
    assert hosts.codes() == [watch.RESTART] * 2
  last = checkpoint.steps(str(saved))[-1]
  assert 7 < last <= STEPS and f'step {last} of {STEPS} is saved' in hosts.said(0)

  loop.run(silent(home), str(workdir), progress=False)
  found = losses(workdir)
  assert list(found) == list(straight) == list(range(1, STEPS + 1))
  np.testing.assert_allclose(list(found.values()), list(straight.values()), rtol=RTOL)


# A host that saves each step, without a model: 'w' is the step's number, everywhere.
SAVING = """
import sys
from sr4.core import pod, sharding
with pod.joined():
  import jax, jax.numpy as jnp
  from sr4.training import checkpoint
  with jax.set_mesh(sharding.make_mesh()), checkpoint.Checkpoints(sys.argv[1]) as saves:
    w = jnp.zeros((64, 256, 1024), out_sharding=jax.P('fsdp'))
    for step in range(1, 1000):
      pod.at_step(step)
      w = jax.jit(jnp.add, donate_argnums=0)(w, 1.0)
      saves.save(step, {'w': w}, {'step': step})
"""


@pytest.mark.parametrize('host', [0, 1])
def test_killed_in_a_save(tmp_path, host):
  """That save is lost, and nothing else."""
  saved = tmp_path / 'checkpoints'
  with small_pod.Hosts(2, tmp_path, '-c', SAVING, saved) as hosts:
    hosts.until(lambda: (saved / '2').exists() and list(saved.glob('*.orbax-checkpoint-tmp')))
    hosts.kill(host)
    codes = hosts.codes()
  # jax itself looks after the coordinator.
  assert codes[host] == -signal.SIGKILL
  assert codes[1 - host] == (watch.RESTART if host else -signal.SIGABRT)
  words = 'the leader task was preempted/died' if host == 0 else 'host 1 of 2: no sign of life'
  assert words in ' '.join(hosts.said(1 - host).lower().split())
  last = checkpoint.steps(str(saved))[-1]
  assert last >= 2 and not verify.look(str(saved / str(last))).wrong
  one = jax.NamedSharding(jax.sharding.get_mesh(), jax.P())
  w = jax.ShapeDtypeStruct((64, 256, 1024), np.float32, sharding=one)
  found = checkpoint.restore(str(saved), last, {'w': w})['w']
  np.testing.assert_array_equal(found, float(last))
  with checkpoint.Checkpoints(str(saved)) as saves:  # And it goes on.
    assert saves.latest({'w': w}) == last
    saves.save(last + 1, {'w': found}, {})
  assert checkpoint.steps(str(saved))[-1] == last + 1 and not list(saved.glob('*tmp*'))


# The same with emergency checkpoints alone; begins where all hosts can.
OWN = """
import sys, time
from sr4.core import pod, sharding
with pod.joined():
  import jax, jax.numpy as jnp, numpy as np
  from sr4.training import checkpoint
  mesh, (main, own) = sharding.make_mesh(), sys.argv[1:]
  with jax.set_mesh(mesh), checkpoint.Checkpoints(main, local_dir=own) as saves:
    w = jnp.zeros((8, 1024), out_sharding=jax.P('fsdp'))
    like = {'w': jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=w.sharding)}
    if start := saves.latest(like) or 0:
      w = saves.restore(start, like)['w']
    assert all((np.asarray(s.data) == start).all() for s in w.addressable_shards)
    print('begins at', start, flush=True)
    for step in range(start + 1, 1000):
      w = jax.jit(jnp.add, donate_argnums=0)(w, 1.0)
      assert float(w.sum()) == step * w.size  # Nobody is ahead by more than a step.
      saves.save_local(step, {'w': w}, {'step': step})
      print('step', step, flush=True)
      time.sleep(0.2 * jax.process_index())
"""


def test_the_emergency_checkpoint_that_all_hosts_have_is_taken_up(tmp_path):
  """One host is ahead of the other."""
  command = ('-c', OWN, tmp_path / 'checkpoints', tmp_path / 'own')
  whole = lambda host: [
    int(p.name) for p in tmp_path.glob(f'own/*-{host}-of-2/*') if p.name.isdigit()
  ]
  with small_pod.Hosts(2, tmp_path, *command) as hosts:
    hosts.until(lambda: max(whole(1), default=0) >= 4)
  for path in tmp_path.glob('own/*-1-of-2/*'):  # It died before the last was whole.
    if path.name.isdigit() and int(path.name) >= max(whole(0)):
      shutil.rmtree(path)
  common = max(set(whole(0)) & set(whole(1)))
  with small_pod.Hosts(2, tmp_path, *command) as hosts:
    hosts.until(lambda: all('step' in log.read_text() for log in hosts.logs))
    for host in (0, 1):
      assert f'begins at {common}\n' in hosts.said(host)


def test_an_error_on_one_host_is_told_on_all(home, straight):
  """Host 1 has other data than the checkpoint; host 0 finds nothing wrong, and goes on."""
  seed = lambda host: ['--config.train.seed=5'] * host
  with train(2, home, home / 'straight', of=seed) as hosts:
    assert hosts.codes() == [1, 1]
    for host in (0, 1):
      told = hosts.said(host).splitlines()[-1]
      assert told.startswith(f'sr4: host 1 ended: step {STEPS} was reached on other data')
      assert 'Traceback' not in hosts.said(host)


def test_a_workdir_that_is_not_shared_is_refused(home):
  there = lambda host: ['--workdir', home / f'own-{host}']
  with train(2, home, home / 'own', of=there) as hosts:
    assert hosts.codes() == [1, 1]
    for host in (0, 1):
      assert '/checkpoints on host 1 is not that of host 0' in hosts.said(host)
