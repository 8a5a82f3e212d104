"""sr4/training/preemption.py in one process: whom a second signal reaches."""

import os
import signal

from sr4.training import preemption


def test_only_a_second_ctrl_c_is_obeyed_at_once():
  """Supervisors repeat SIGTERM, and what they ask for is being done."""
  reached = []
  before = {
    number: signal.signal(number, lambda number, _: reached.append(number))
    for number in (signal.SIGTERM, signal.SIGINT)
  }
  try:
    with preemption.Preemption() as asked:
      assert not asked.reached(1)
      for _ in range(3):
        os.kill(os.getpid(), signal.SIGTERM)
      assert asked.reached(2) and not reached
      os.kill(os.getpid(), signal.SIGINT)
      assert not reached
      os.kill(os.getpid(), signal.SIGINT)
      assert reached == [signal.SIGINT]
    os.kill(os.getpid(), signal.SIGTERM)
    assert reached == [signal.SIGINT, signal.SIGTERM]
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
