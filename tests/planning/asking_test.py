"""sr4/planning/asking.py: what ends the compiler does not end the plan."""

import os
import tempfile
import threading
import time

import pytest

from sr4.core import errors
from sr4.planning import asking
from sr4.planning import topology


def work_on(folder):
  """As the compiler does, whose answer is there before it is done."""
  tempfile.mkdtemp(dir=folder)

  threading.Thread(target=time.sleep, args=(1000,)).start()
  return os.getpid(), folder


def write_and_end(code, folder):
  """As the compiler does that aborts while it writes."""
  tempfile.mkdtemp(dir=folder)
  os._exit(code)


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
