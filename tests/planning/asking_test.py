"""sr4/planning/asking.py: what ends the compiler does not end the plan."""

import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time

import pytest

from sr4.core import errors
from sr4.planning import asking
from sr4.planning import topology

ROOT = pathlib.Path(__file__).parents[2]


def work_on(folder):
  """As the compiler does, whose answer is there before it is done."""
  tempfile.mkdtemp(dir=folder)

  threading.Thread(target=time.sleep, args=(1000,)).start()
  return os.getpid(), folder


def write_and_end(code, folder):
  """As the compiler does that aborts while it writes."""
  tempfile.mkdtemp(dir=folder)
  os._exit(code)


def tell_and_sleep(path, folder):
  pathlib.Path(path).write_text(str(os.getpid()))
  time.sleep(1000)


def parse(name, folder):
  return topology.parse(name)


def test_a_process_ends_with_its_answer():
  began = time.monotonic()
  pid, folder = asking.elsewhere(work_on)
  assert pid != os.getpid() and not os.path.exists(folder)
  assert time.monotonic() - began < 500
  with pytest.raises(ProcessLookupError):
    os.kill(pid, 0)


def test_a_process_that_is_lost_leaves_nothing(monkeypatch, tmp_path):
  monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
  with pytest.raises(asking.CompilerAborted, match=r'write_and_end\(7,\).*the TPU compiler ended'):
    asking.elsewhere(write_and_end, 7)
  assert not os.listdir(tmp_path)


def test_what_is_raised_there_is_raised_here():
  with pytest.raises(errors.UserError, match='v9'):
    asking.elsewhere(parse, 'v9')


def test_who_asked_is_killed(tmp_path):
  """What a sweep ends when its time is up does not compile on."""
  path = tmp_path / 'pid'
  code = (
    'import sys\nfrom tests.planning import asking_test as test\n'
    'test.asking.elsewhere(test.tell_and_sleep, sys.argv[1])'
  )
  asks = subprocess.Popen([sys.executable, '-c', code, path], cwd=ROOT)
  wait(lambda: path.exists() and path.read_text())
  asks.send_signal(signal.SIGKILL)
  asks.wait()
  wait(lambda: not pathlib.Path(f'/proc/{path.read_text()}').exists())


def wait(until):
  end = time.monotonic() + 60
  while not until():
    assert time.monotonic() < end
    time.sleep(0.05)
