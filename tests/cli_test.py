"""The command line: help at once, and one line for what is wrong."""

import subprocess
import sys

import pytest

from sr4 import cli


def _sr4(*arguments):
  return subprocess.run(
    [sys.executable, '-m', 'sr4', *arguments], capture_output=True, text=True, check=False
  )


@pytest.mark.parametrize('arguments', [['--help'], *([verb, '--help'] for verb in cli.VERBS)])
def test_help_loads_nothing_heavy(arguments):
  code = (
    'import sys\nfrom sr4 import cli\n'
    f'try: cli.main({arguments!r})\n'
    'except SystemExit as e: assert not e.code\n'
    'print(sorted({"jax", "numpy", "av", "grain", "flax"} & set(sys.modules)))'
  )
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert done.stdout.splitlines()[-1] == '[]'


def test_no_verb_is_help_and_an_unknown_one_is_told():
  assert 'sr4 VERB --help' in _sr4().stdout
  wrong = _sr4('tarin')
  assert wrong.returncode == 2 and "'tarin'" in wrong.stderr and 'train' in wrong.stderr


def test_ctrl_c_is_one_line(tmp_path):
  """At any time: here when the verb asks for its config."""
  config = tmp_path / 'slow.py'
  config.write_text('import os, signal\n\nos.kill(os.getpid(), signal.SIGINT)\n')
  code = (
    'import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n'
    f'from sr4 import cli; cli.main(["train", "--config", {str(config)!r}, "--workdir", "/tmp/no"])'
  )
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
  assert done.returncode == 130
  assert done.stderr == 'sr4: interrupted; what is written is whole\n'


@pytest.mark.parametrize(
  'verb, needed',
  [
    ('sample', ('checkpoint', 'out')),
    ('evaluate', ('checkpoint', 'out')),
    ('export', ('checkpoint', 'out')),
    ('import', ('export', 'out')),
    ('report', ('workdir',)),
    ('verify', ('checkpoint',)),
  ],
)
def test_overrides_of_no_config_are_told(tmp_path, verb, needed):
  given = [word for name in needed for word in (f'--{name}', str(tmp_path / name))]
  with pytest.raises(SystemExit) as end:
    cli.main([verb, *given, '--config.sample.shift=2'])
  assert str(end.value) == (
    'sr4: --config.sample.shift=2: nothing here reads a config; leave it out'
  )


def test_a_missing_config_is_one_line():
  done = _sr4('train', '--config', 'nowhere.py', '--workdir', '/tmp/never')
  assert done.returncode == 1
  assert done.stderr == (
    'sr4: --config=nowhere.py: no such file; give the path of a config, such as configs/world.py\n'
  )
