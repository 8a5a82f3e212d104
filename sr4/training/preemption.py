"""Being asked to stop: SIGTERM (or Ctrl-C) becomes a checkpoint at the same step on every host."""

import os
import signal

import jax
from jax.experimental import multihost_utils

from sr4.core import pod
from sr4.core import watch


class Preemption:
  """A context in which SIGTERM and SIGINT ask for an end; a second Ctrl-C is obeyed at once, and a
  second SIGTERM, which supervisors send, is the first once more.

  In a pod SIGTERM belongs to jax, which tells all hosts and finds the step that all can reach.
  """

  def __init__(self):
    self.asked = self.clock = False

  def __enter__(self):
    ours = (signal.SIGINT,) if jax.process_count() > 1 else (signal.SIGTERM, signal.SIGINT)
    self.previous = {s: signal.signal(s, self._on_signal) for s in ours}
    return self

  def __exit__(self, *_):
    for number, handler in self.previous.items():
      signal.signal(number, handler)

  def _on_signal(self, number, _):
    if number == signal.SIGINT:
      signal.signal(number, self.previous[number])
    self.ask()

  def ask(self):
    """Asks for an end as a signal would; any host may, for all."""
    if jax.process_count() > 1 and not self.asked:
      os.kill(os.getpid(), signal.SIGTERM)
    self.asked = True

  def time_is_up(self):
    """Asks for an end that nobody is to undo by a restart."""
    self.clock = True
    self.ask()

  def reached(self, step: int) -> bool:
    """Should this step be the last?  In a pod all hosts agree on it, whoever was asked."""
    pod.at_step(step)
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return self.asked

  def code(self) -> int:
    """Of a process that stopped before its last step: in a pod, watch.RESTART on every host.

    A process alone leaves it to whoever asked it (launch/entrypoint.sh).  All hosts call this.
    """
    if jax.process_count() == 1 or 'clock' in pod.gather('clock' if self.clock else ''):
      return 0
    return watch.RESTART
