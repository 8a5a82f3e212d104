"""Being asked to stop: SIGTERM (or Ctrl-C) becomes a checkpoint at the same step on every host."""

import signal

import jax
from jax.experimental import multihost_utils


class Preemption:
  """A context in which SIGTERM and SIGINT set a flag; a second one is obeyed at once."""

  def __init__(self):
    self.asked = False

  def __enter__(self):
    self.previous = {s: signal.signal(s, self._ask) for s in (signal.SIGTERM, signal.SIGINT)}
    return self

  def __exit__(self, *_):
    for number, handler in self.previous.items():
      signal.signal(number, handler)

  def _ask(self, number, _):
    self.asked = True
    signal.signal(number, self.previous[number])

  def reached(self, step: int) -> bool:
    """Should this step be the last?  In a pod all hosts agree on it, whoever was asked."""
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return self.asked
