"""sr4/core/pod.py and watch.py with real processes: who joins, who is lost, who is told."""

import contextlib
import re
import signal

import jax
import pytest

from sr4.core import errors
from sr4.core import pod
from sr4.core import watch
from tests import small_pod

# A host that steps, without a model: `f(host, step)` may do something else.
STEPPING = """
import sys, time
from sr4.core import errors, pod
import jax
with pod.joined():
  host = jax.process_index()
  for step in range(10_000 if {forever} else 3):
    {what}
    pod.at_step(step)
    print('step', step, end=' ', flush=True)
    time.sleep(0.05)
print('over', flush=True)
"""


def stepping(count, folder, what='pass', forever=True, **others) -> small_pod.Hosts:
  return small_pod.Hosts(count, folder, '-c', STEPPING.format(what=what, forever=forever), **others)


ROWS = (
  'import numpy as np; from sr4 import pipeline; from sr4.core import sharding\n'
  '    from jax.experimental.multihost_utils import process_allgather\n'
  '    whole, at = np.arange(24.).reshape(8, 3), jax.devices()\n'
  '    for devices, seq in ((at, 1), (at[::-1], 1), (at[::2] + at[1::2], 2), (at, 4)):\n'
  '      with jax.set_mesh(sharding.make_mesh(devices, data=-1, fsdp=1, seq=seq)):\n'
  '        parts, of = sharding.parts()\n'
  '        mine = np.concatenate([whole.reshape(of, -1, 3)[part] for part in parts])\n'
  '        all = sharding.rows(mine)\n'
  '        found = process_allgather(all, tiled=True)\n'
  '        assert (found == whole).all() and (pipeline.own_rows(all) == mine).all()\n'
  '    time.sleep(0.5 * host)\n'
)


def test_all_end_well(tmp_path):
  """And what a host gives to the mesh, it gets back, wherever its devices are in it."""
  with stepping(2, tmp_path, ROWS, forever=False, devices=2) as hosts:
    assert hosts.codes(30) == [0, 0]
    assert 'over' in hosts.said(0) and 'over' in hosts.said(1)


def test_a_host_that_hangs_or_dies_ends_the_others(tmp_path):
  """Stopped, the coordinator stopped, one that makes no steps, one with an error: at once."""
  folders = {name: tmp_path / name for name in ('hangs', 'first', 'stalls', 'error')}
  for folder in folders.values():
    folder.mkdir()
  wrong = "if host == 1 and step == 2: raise errors.UserError('no more bread; bake some')"
  stall = 'while step == (2 if host else 6): time.sleep(1)'
  with (
    stepping(3, folders['hangs']) as hangs,
    stepping(2, folders['first']) as first,
    stepping(2, folders['stalls'], stall, stall=2) as stalls,
    stepping(2, folders['error'], wrong) as error,
  ):
    assert error.codes(40) == [1, 1]
    assert stalls.codes(40) == [watch.RESTART] * 2
    for pods, host in ((hangs, 2), (first, 0)):
      pods.until(lambda pods=pods: all('step 5' in log.read_text() for log in pods.logs))
      pods.kill(host, signal.SIGSTOP)
    for pods, host in ((hangs, 2), (first, 0)):
      ended = [p for i, p in enumerate(pods.processes) if i != host]
      assert [p.wait(5 * small_pod.DEAD) for p in ended] == [watch.RESTART] * len(ended)
    assert error.said(1).splitlines()[-1] == 'sr4: host 1 ended: no more bread; bake some'
    assert 'sr4: host 1 ended: no more bread; bake some' in error.said(0)
    assert 'Traceback' not in error.said(0) + error.said(1)
    for host in (0, 1):
      assert 'host 1 went no further than step 1' in stalls.said(host)
      assert 'host 2 of 3: no sign of life' in hangs.said(host)
    assert 'host 0, the coordinator, has not answered host 1' in first.said(1)


# Hosts of their own speed stop where `stop` says so.
STOPPING = """
import sys, time
from sr4.core import pod
with pod.joined():
  import jax
  from sr4.training import preemption
  with preemption.Preemption() as stop:
    step = 0
    while not stop.reached(step):
      step += 1
      print('step', step, flush=True)
      time.sleep(0.02 * (1 + jax.process_index()))
      if step == 40 and jax.process_index() and sys.argv[1] == 'late':
        stop.time_is_up()
    code = stop.code()
sys.exit(code)
"""


def test_asked_on_one_host_all_stop_at_one_step(tmp_path):
  """By SIGTERM, by Ctrl-C, or by the host itself when its time is over."""
  names = ('SIGTERM', 'SIGINT', 'late')
  for name in names:
    (tmp_path / name).mkdir()
  with contextlib.ExitStack() as stack:
    asked = [
      stack.enter_context(small_pod.Hosts(2, tmp_path / n, '-c', STOPPING, n)) for n in names
    ]
    for name, hosts in zip(names, asked):
      if name != 'late':
        hosts.until(lambda hosts=hosts: all('step 9' in log.read_text() for log in hosts.logs))
        hosts.kill(1, signal.Signals[name])
    for name, hosts in zip(names, asked):
      assert hosts.codes(60) == [0 if name == 'late' else watch.RESTART] * 2
      assert hosts.said(0).split()[-1] == hosts.said(1).split()[-1]


def test_who_does_not_come_is_told(tmp_path):
  arguments = ('-m', 'sr4', 'train', '--config', 'configs/world.py', '--workdir', tmp_path)
  for name in ('first', 'second'):
    (tmp_path / name).mkdir()
  with (
    small_pod.Hosts(1, tmp_path / 'first', *arguments, named=2, join=3) as first,
    small_pod.Hosts(1, tmp_path / 'second', *arguments, named=2, join=3, first=1) as second,
  ):
    assert first.codes(30) == second.codes(30) == [watch.RESTART]
  assert re.search('sr4: host 0 of 2: the pod .* was not complete after 3 s', first.said(0))
  assert re.search('sr4: host 1 of 2: the coordinator, .* cannot be reached', second.said(0))


@pytest.mark.parametrize(
  'given, told',
  [
    (('a:1', '2', None), 'JAX_PROCESS_ID must be set, too'),
    ((None, '2', '0'), 'JAX_COORDINATOR_ADDRESS must be set, too'),
    (('a:1', '2', '2'), 'JAX_PROCESS_ID=2 must be below JAX_NUM_PROCESSES=2'),
    (('a:1', 'two', '0'), "JAX_NUM_PROCESSES='two' must be a whole number"),
    (('a:1', '2', '-1'), "JAX_PROCESS_ID='-1' must be a whole number"),
    (('a', '2', '0'), "'a' must be ADDRESS:PORT"),
  ],
)
def test_an_environment_that_names_no_pod(given, told):
  environ = {name: value for name, value in zip(pod.NAMES, given) if value is not None}
  with pytest.raises(pod.PodError, match=re.escape(told)):
    with pod.joined(environ):
      raise AssertionError('not reached')


def test_seconds_are_seconds():
  with pytest.raises(errors.UserError, match='SR4_DEAD_SECONDS=.soon. must be a number'):
    watch.Seconds.of({'SR4_DEAD_SECONDS': 'soon'})
  assert watch.Seconds.of({'SR4_DEAD_SECONDS': '7'}) == watch.Seconds(dead=7)


def test_one_process_without_the_variables_is_no_pod():
  with pod.joined({'JAX_PLATFORMS': 'cpu'}):
    assert pod._watch is None
    pod.at_step(3)
    assert pod.gather('here') == ['here']


@pytest.mark.parametrize(
  'on_tpu, told, lost',
  [(True, 'UNAVAILABLE: TPU device error', True), (True, 'RESOURCE_EXHAUSTED: HBM', False)]
  + [(False, 'UNAVAILABLE: TPU device error', False)],
)
def test_a_lone_host_starts_again_where_its_chips_failed(monkeypatch, on_tpu, told, lost):
  left = []
  monkeypatch.setattr(watch, 'leave', lambda why, code: left.append((why, code)))
  with pytest.raises(Exception, match=told) if not lost else contextlib.nullcontext():
    with pod.alone(on_tpu):
      raise jax.errors.JaxRuntimeError(told)
  assert left == ([(f'this host ended: JaxRuntimeError: {told}', watch.RESTART)] if lost else [])


def test_who_makes_no_steps_does_not_hang():
  """Of two hosts that live for longer than a stall, a training and an import."""
  clock = [0.0]
  rolls = [
    watch.Roll(2, watch.Seconds(stall=9), steps, now=lambda: clock[0]) for steps in (True, False)
  ]
  for count in range(5):
    clock[0] = 5.0 * count
    said = [roll.call({0: f'{count} -1', 1: f'{count} -1'}) for roll in rolls]
  assert said[1] == ''
  assert said[0] == 'no step for 20 s (SR4_STALL_SECONDS): all hosts went no further than step -1'
