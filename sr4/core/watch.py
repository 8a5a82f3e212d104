"""How a host of a pod tells that it is there, and hears that another is gone.

Each host tells the coordinator (host 0) every moment that it is there, and where; host 0 says who
has gone, and everyone reads it.  So nobody waits for ever in a collective: they end with one line
and

  42   a host died, hangs or did not come: start all again (launch/ does)
  134  host 0 died: the same, but jax ends the process, in its own words
  1    a host met an error that another start would meet again; it is told on all hosts

Seconds may be set: SR4_JOIN_SECONDS (300) for all to come, SR4_DEAD_SECONDS (100) without a sign of
a host, SR4_STALL_SECONDS (3600) without a step of any, the longest compilation included.
"""

import contextlib
import dataclasses
import json
import os
import sys
import threading
import time
import traceback

from sr4.core import errors

RESTART = 42  # The exit code of what was not this program's fault.
OURS = ('RESOURCE_EXHAUSTED', 'INVALID_ARGUMENT', 'UNIMPLEMENTED')  # And of jax's errors these are.


@dataclasses.dataclass(frozen=True)
class Seconds:
  join: float = 300.0
  dead: float = 100.0
  stall: float = 3600.0

  @classmethod
  def of(cls, environ) -> 'Seconds':
    given = {}
    for field in dataclasses.fields(cls):
      name = f'SR4_{field.name.upper()}_SECONDS'
      if name in environ:
        try:
          given[field.name] = float(environ[name])
        except ValueError:
          given[field.name] = -1.0
        if not 1 <= given[field.name] <= 1e6:
          raise errors.UserError(f'{name}={environ[name]!r} must be a number of seconds, 1 or more')
    return cls(**given)


class Watch:
  """Tells the others that this host is there, and ends it when one of them is not.

  The keys: sr4/alive/HOST, 'COUNT STEP', and sr4/ended/first, the one end that all read.
  """

  def __init__(self, client, seconds: Seconds, steps: bool = True):
    import jax

    self.client, self.seconds, self.steps = client, seconds, steps
    self.host, self.hosts = jax.process_index(), jax.process_count()
    self.step, self.stopped = -1, threading.Event()
    self.period = min(5.0, seconds.dead / 10)
    self.heard = time.monotonic()  # when the coordinator last answered
    for run in (self._talk, self._listen):
      threading.Thread(target=run, daemon=True).start()

  def meet(self, name: str):
    """Waits for all hosts; the dead do not let it wait for ever."""
    self.client.wait_at_barrier(f'sr4/{name}', int(1e3 * self.seconds.stall))

  def _talk(self):
    """Each period: I am here; host 0 looks at all, the others at what it says."""
    count, roll = 0, Roll(self.hosts, self.seconds, self.steps)
    while not self.stopped.wait(self.period):
      with contextlib.suppress(Exception):  # Told by _listen, if it lasts.
        count += 1
        self.client.key_value_set(f'sr4/alive/{self.host}', f'{count} {self.step}', True)
        ended = self.client.key_value_dir_get('sr4/ended/')
        if not self.host and not ended:
          signs = dict(self.client.key_value_dir_get('sr4/alive/'))
          if why := roll.call({int(k.rpartition('/')[2]): v for k, v in signs.items()}):
            self._publish(why, RESTART)
        self.heard = time.monotonic()
        if ended and not self.stopped.is_set():
          told = json.loads(ended[0][1])
          time.sleep(2 * self.period * (not self.host))  # Until the others have read it.
          leave(told['why'], told['code'])

  def _listen(self):
    """Is the coordinator there?  Of its own, since a call of a host that hangs does not return."""
    looked = time.monotonic()
    while not self.stopped.wait(self.period):
      before, looked = looked, time.monotonic()
      if looked - before > self.seconds.dead / 2:  # This host slept, not the other.
        self.heard = looked
      if (silent := looked - self.heard) > self.seconds.dead:
        leave(
          f'host 0, the coordinator, has not answered host {self.host} for {silent:.0f} s '
          '(SR4_DEAD_SECONDS)',
          RESTART,
        )

  def _publish(self, why: str, code: int):
    with contextlib.suppress(Exception):  # Someone was first.
      self.client.key_value_set('sr4/ended/first', json.dumps({'why': why, 'code': code}))

  def end(self, error: BaseException):
    """This host met an error: it tells the others and leaves, or it is not the first to go."""
    user = isinstance(error, (errors.UserError, OSError))
    if isinstance(error, SystemExit) and not error.code:
      raise error
    why = ' '.join(str(error).split()) if user else f'{type(error).__name__}: {str(error)[:500]}'
    if lost := is_lost(error):  # Who went is known soon, and then _talk leaves.
      time.sleep(self.seconds.dead + 4 * self.period)
    if not user:
      traceback.print_exception(error)
    why, code = f'host {self.host} ended: {why}', RESTART if lost else 1
    self._publish(why, code)
    time.sleep(4 * self.period)  # _talk leaves first, if it is still well.
    leave(why, code)


def is_lost(error: BaseException | None) -> bool:
  """May it come of another host's end, or of this one's hardware?  A broken collective does."""
  import jax

  while error is not None:
    if isinstance(error, jax.errors.JaxRuntimeError) and not any(x in str(error) for x in OURS):
      return True
    if 'Gloo ' in str(error):  # Of a value that is read, a ValueError says it.
      return True
    error = error.__cause__ or error.__context__
  return False


class Roll:
  """What host 0 knows of all: when each was last heard, and when any last made a step."""

  def __init__(self, hosts: int, seconds: Seconds, stepping: bool = True, now=time.monotonic):
    self.seconds, self.stepping, self.now = seconds, stepping, now
    self.signs, self.steps = {}, {}
    self.heard = dict.fromkeys(range(hosts), now())
    self.moved = self.called = now()

  def call(self, signs: dict[int, str]) -> str:
    """Who is gone or hangs, and '' if nobody is.  signs: {host: 'COUNT STEP'} as they stand."""
    before, now = self.called, self.now()
    self.called = now
    if now - before > self.seconds.dead / 2:  # This host slept, not the others.
      self.heard = dict.fromkeys(self.heard, now)
    for host, sign in signs.items():
      if self.signs.get(host) != sign:
        self.heard[host] = now
      step = int(sign.split()[1])
      if self.steps.get(host) != step:
        self.moved = now
      self.signs[host], self.steps[host] = sign, step
    silent = {host: now - at for host, at in self.heard.items() if now - at > self.seconds.dead}
    if silent:
      longest = max(silent.values())
      return (
        f'{named(silent)} of {len(self.heard)}: no sign of life for {longest:.0f} s '
        '(SR4_DEAD_SECONDS); it died, or its machine did'
      )
    if self.stepping and now - self.moved > self.seconds.stall:
      last = min(self.steps.values())
      behind = [host for host, step in self.steps.items() if step == last]
      others = len(behind) < len(self.steps)
      where = named(behind) if others else 'all hosts'
      return (
        f'no step for {now - self.moved:.0f} s (SR4_STALL_SECONDS): {where} went no further than '
        f'step {last}' + f', the others to step {max(self.steps.values())}' * others
      )
    return ''


def named(hosts) -> str:
  """'hosts 1, 4'; of many the first eight."""
  names = sorted(hosts)
  more = f' and {len(names) - 8} more' if len(names) > 8 else ''
  return f'host{"s" * (len(names) > 1)} {", ".join(map(str, names[:8]))}{more}'


def leave(why: str, code: int):
  """Ends the process now, whatever its other threads wait for, and its children."""
  import multiprocessing

  print(f'\nsr4: {why}', file=sys.stderr, flush=True)
  sys.stdout.flush()
  for child in multiprocessing.active_children():
    child.kill()
  os._exit(code)
