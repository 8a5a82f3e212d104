"""launch/*.sh with small children in place of sr4: exit codes, signals, who is told what."""

import os
import pathlib
import re
import signal
import stat
import subprocess

import pytest

LAUNCH = pathlib.Path(__file__).parents[1] / 'launch'


def script(path: pathlib.Path, text: str) -> pathlib.Path:
  path.write_text(f'#!/usr/bin/env bash\n{text}\n')
  path.chmod(0o755)
  return path


def start(*command, **env) -> subprocess.Popen:
  return subprocess.Popen(
    [str(word) for word in command],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    env=os.environ | {name: str(value) for name, value in env.items()},
  )


def finish(process: subprocess.Popen) -> tuple[int, str]:
  out, _ = process.communicate(timeout=60)
  return process.returncode, out


@pytest.fixture
def entrypoint(tmp_path):
  """Starts launch/entrypoint.sh on a bash script, with a cache of its own."""

  def run(text: str, **env):
    child = script(tmp_path / 'child', text)
    return start(LAUNCH / 'entrypoint.sh', child, **({'SR4_CACHE': tmp_path / 'cache'} | env))

  return run


@pytest.mark.parametrize('code', [0, 1, 2, 42, 127, 134])
def test_codes_pass_through(entrypoint, code):
  assert finish(entrypoint(f'exit {code}'))[0] == code


def test_a_death_by_a_signal_is_one_to_restart(entrypoint):
  assert finish(entrypoint('kill -SEGV $$'))[0] == 128 + signal.SIGSEGV


def asked(process: subprocess.Popen, *signals) -> tuple[int, str]:
  """What it ends with, after these signals once it has said that it is ready."""
  ready = process.stdout.readline()
  for number in signals:
    process.send_signal(number)
  code, out = finish(process)
  return code, ready + out


@pytest.mark.parametrize(
  'on_term, code',
  [
    ('echo saved; exit 0', 42),  # sr4 train, when it was asked to stop
    ('exit 1', 1),  # ... and could not save for a reason that stays
    ('exit 42', 42),
    ('exit 127', None),  # 128 and the signal's number: either is to be restarted.
    ('trap - TERM; kill -TERM $$', 143),
  ],
)
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop(entrypoint, on_term, code, number):
  process = entrypoint(f"trap '{on_term}' TERM; echo ready; while :; do sleep 0.02; done")
  assert asked(process, number)[0] == (128 + number if code is None else code)


def test_a_long_save_is_waited_for_and_a_second_signal_is_passed_on(entrypoint, tmp_path):
  process = entrypoint(
    "trap 'n=$((n + 1)); echo got $n' TERM; n=0; echo ready\n"
    'until ((n == 2)); do sleep 0.02; done; echo saved'
  )
  process.stdout.readline()
  process.send_signal(signal.SIGTERM)
  assert process.stdout.readline() == 'got 1\n'
  process.send_signal(signal.SIGTERM)
  code, out = finish(process)
  assert code == 42 and out == 'got 2\nsaved\n'


def test_without_chips_there_is_no_training_on_a_tpu(entrypoint, monkeypatch):
  monkeypatch.delenv('JAX_PLATFORMS', raising=False)
  say = 'echo "[${JAX_PLATFORMS-}]"'
  assert finish(entrypoint(say, SR4_TPU='v5p'))[1] == '[tpu,cpu]\n'
  assert finish(entrypoint(say, SR4_TPU='v5p', JAX_PLATFORMS='proxy'))[1] == '[proxy]\n'
  assert finish(entrypoint(say))[1] == '[]\n'


def test_what_the_child_is_told(entrypoint, tmp_path, monkeypatch):
  environment = 'echo "$LIBTPU_INIT_ARGS|$JAX_COMPILATION_CACHE_DIR|$*"'
  monkeypatch.delenv('LIBTPU_INIT_ARGS', raising=False)
  _, out = finish(entrypoint(environment, SR4_TPU='v5p'))
  assert '--xla_tpu_scoped_vmem_limit_kib=65536' in out.split('|')[0].split()
  code, out = finish(entrypoint(environment, SR4_TPU='v6e', LIBTPU_INIT_ARGS='--mine=1'))
  flags, cache, _ = out.split('|')
  assert code == 0 and flags.endswith(' --mine=1') and '#' not in flags
  assert '--xla_tpu_scoped_vmem_limit_kib=98304' in flags.split()
  mode = os.stat(cache)
  assert cache.startswith(str(tmp_path / 'cache')) and mode.st_uid == os.getuid()
  assert stat.S_IMODE(mode.st_mode) == 0o700


def test_a_cache_that_others_may_write_is_closed_or_left(entrypoint, tmp_path):
  folder = tmp_path / 'cache' / f'compiled-{os.getuid()}'
  folder.mkdir(parents=True)
  folder.chmod(0o777)
  finish(entrypoint('true'))
  assert stat.S_IMODE(folder.stat().st_mode) == 0o700
  folder.rmdir()
  folder.parent.chmod(0o2770)  # A shared folder, whose group its folders get.
  _, out = finish(entrypoint('echo "[${JAX_COMPILATION_CACHE_DIR-none}]"'))
  assert out == f'[{folder}]\n' and folder.stat().st_mode & 0o7777 == 0o700
  folder.rmdir()
  elsewhere = tmp_path / 'elsewhere'
  elsewhere.mkdir()
  elsewhere.chmod(0o755)
  folder.symlink_to(elsewhere)
  _, out = finish(entrypoint('echo "[${JAX_COMPILATION_CACHE_DIR-none}]"'))
  assert 'not ours alone' in out and out.endswith('[none]\n')
  assert stat.S_IMODE(elsewhere.stat().st_mode) == 0o755


@pytest.mark.parametrize(
  'command, env, told',
  [
    ((), {}, 'no command'),
    (('no-such-command',), {}, 'no such command'),
    (('true',), {'SR4_TPU': 'v9'}, 'v5e.txt'),
  ],
)
def test_what_no_restart_would_mend_exits_1(command, env, told):
  code, out = finish(start(LAUNCH / 'entrypoint.sh', *command, **env))
  assert code == 1 and told in out


@pytest.fixture
def local(tmp_path):
  """Starts launch/local.sh with a bash script in place of sr4."""

  def run(count, text: str, *options):
    sr4 = script(tmp_path / 'sr4', text)
    return start(LAUNCH / 'local.sh', count, *options, '--', 'train', '--x', 'a b', SR4=sr4)

  return run


def lines_of(out: str, number: int) -> list[str]:
  return [line[4:] for line in out.splitlines() if line.startswith(f'[{number}] ')]


def test_each_process_is_told_its_place(local):
  say = 'echo "$JAX_COORDINATOR_ADDRESS $JAX_NUM_PROCESSES $JAX_PROCESS_ID $JAX_PLATFORMS|$*"'
  code, out = finish(local(3, f'{say}; echo "$XLA_FLAGS" >&2', '--devices', 4))
  told = [lines_of(out, i) for i in range(3)]
  address = told[0][0].split()[0]
  assert code == 0 and re.fullmatch(r'127\.0\.0\.1:\d+', address)
  for i in range(3):
    assert told[i][0] == f'{address} 3 {i} cpu|train --x a b'
    assert told[i][1].endswith('--xla_force_host_platform_device_count=4')


WAIT = "trap 'echo asked; exit {code}' TERM; echo ready; while :; do sleep 0.02; done"


def test_the_first_failure_ends_the_others_and_gives_the_code(local):
  code, out = finish(
    local(3, f'((JAX_PROCESS_ID == 1)) && exit 3\n{WAIT.format(code=0)}', '--grace', 1)
  )
  assert code == 3 and 'process 1 exited with code 3' in out
  assert lines_of(out, 0)[-1] == lines_of(out, 2)[-1] == 'asked'


def test_who_does_not_listen_is_killed(local):
  code, out = finish(
    local(
      2, "((JAX_PROCESS_ID)) && exit 5\ntrap '' TERM; while :; do sleep 0.02; done", '--grace', 1
    )
  )
  assert code == 5 and 'process 0 exited with code 137' in out


def test_in_the_grace_the_others_may_end_by_themselves(local):
  code, out = finish(local(2, '((JAX_PROCESS_ID)) && exit 42; sleep 0.2; exit 7', '--grace', 600))
  assert code == 42 and 'exited with code 7' in out and 'ending' not in out


def ready(process: subprocess.Popen, count: int) -> list[str]:
  """Its lines until `count` processes have said that they are ready."""
  said = []
  while sum(line.endswith('] ready\n') for line in said) < count:
    said.append(process.stdout.readline())
    assert said[-1], said
  return said


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_goes_to_all(local, number):
  process = local(3, WAIT.format(code=0))
  ready(process, 3)
  process.send_signal(number)
  code, out = finish(process)
  assert code == 0 and out.count('] asked\n') == 3


def test_one_process_is_asked_by_its_pid(local):
  process = local(2, WAIT.format(code='$((JAX_PROCESS_ID + 8))'), '--grace', 1)
  said = ''.join(ready(process, 2))
  os.kill(int(re.search(r'process 1 has pid (\d+)', said)[1]), signal.SIGTERM)
  code, out = finish(process)
  assert code == 9 and out.index('[1] asked') < out.index('[0] asked')


@pytest.mark.parametrize(
  'words, told',
  [
    ((), 'N (nothing)'),
    (('0', '--', 'train'), 'N 0'),
    (('2', '--devices', 'x', '--', 'train'), '--devices x'),
    (('2', '--device', '4', '--', 'train'), 'there are --devices'),
    (('2', 'train'), 'after --'),
    (('2',), 'after --'),
  ],
)
def test_wrong_words(words, told):
  code, out = finish(start(LAUNCH / 'local.sh', *words))
  assert code == 2 and told in out and out.count('\n') == 1


@pytest.mark.parametrize(
  'codes, attempts, code',
  [
    ((42, 137, 0), 3, 0),
    ((0,), 1, 0),
    ((42, 42, 0), 3, 0),
    ((42, 1), 2, 1),
    ((125, 0), 2, 0),
    ((1,), 1, 1),
    ((126,), 1, 126),
    ((137,) * 3, 3, 137),
  ],
)
def test_queued_restarts_what_the_contract_says(tmp_path, codes, attempts, code):
  """With a docker that gives these codes, one after the other."""
  script(
    tmp_path / 'docker',
    f'echo "$@" >>{tmp_path}/calls\ncodes=({" ".join(map(str, codes))})\n'
    f'exit ${{codes[$(wc -l <{tmp_path}/calls) - 1]}}',
  )
  settings = (
    'NAME=n IMAGE=i@sha256:0 GENERATION=v5p MOUNT=/mnt/t USER_ID=1000 GRACE=60 RESTARTS=2\n'
  )
  command = "COMMAND=(/app/launch/entrypoint.sh sr4 train --config 'a b')\n"
  text = settings + command + (LAUNCH / 'queued.sh').read_text()
  path = f'{tmp_path}:{os.environ["PATH"]}'
  got, _ = finish(start('bash', '-c', text, PATH=path, PAUSE=0))
  calls = (tmp_path / 'calls').read_text().splitlines()
  assert (got, len(calls)) == (code, attempts)
  assert calls[0].endswith(
    '--entrypoint /app/launch/entrypoint.sh i@sha256:0 sr4 train --config a b'
  )
  assert '--env SR4_TPU=v5p' in calls[0] and '--volume /mnt/t:/mnt/t' in calls[0]
