"""Many hosts as one run: how one joins, and how it hears that another is gone.

  JAX_COORDINATOR_ADDRESS=ADDRESS:PORT JAX_NUM_PROCESSES=4 JAX_PROCESS_ID=0 sr4 train ...

A host is a process.  On TPU slices of several hosts nothing need be set: jax finds them.  Each host
tells the coordinator (host 0) every moment that it is there, and where; host 0 says who has gone,
and everyone reads it.  So nobody waits for ever in a collective: they end with one line and

  42   a host died, hangs or did not come: start all again (launch/ does)
  134  host 0 died: the same, but jax ends the process, in its own words
  1    a host met an error that another start would meet again; it is told on all hosts

Seconds may be set: SR4_JOIN_SECONDS (300) for all to come, SR4_DEAD_SECONDS (100) without a sign of
a host, SR4_STALL_SECONDS (3600) without a step of any, the longest compilation included.
"""

import contextlib
import dataclasses
import glob
import importlib.util
import json
import os
import socket
import sys
import threading
import time
import traceback
import uuid

from sr4.core import errors

NAMES = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')
RESTART = 42  # The exit code of what was not this program's fault.
OURS = ('RESOURCE_EXHAUSTED', 'INVALID_ARGUMENT', 'UNIMPLEMENTED')  # And of jax's errors these are.


class PodError(errors.UserError):
  """An environment that names no pod, or one that cannot be joined."""


@dataclasses.dataclass(frozen=True)
class Place:
  """Which host this is, of which pod."""

  address: str  # of the coordinator, host:port
  hosts: int
  host: int


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
          raise PodError(f'{name}={environ[name]!r} must be a number of seconds, 1 or more')
    return cls(**given)


def place_of(environ) -> Place | None:
  """What the three variables say; None where none of them is set.

  Raises:
    PodError: one of three is missing, or is not what it should be.
  """
  given = {name: environ[name] for name in NAMES if environ.get(name)}
  if not given:
    return None
  if missing := [name for name in NAMES if name not in given]:
    raise PodError(
      f'{", ".join(f"{k}={v}" for k, v in given.items())}: {" and ".join(missing)} must be set, '
      'too; a pod is named by all three, a run of one process by none'
    )
  address, *numbers = (given[name] for name in NAMES)
  for name, text in zip(NAMES[1:], numbers):
    if not text.isdecimal():
      raise PodError(f'{name}={text!r} must be a whole number')
  hosts, host = map(int, numbers)
  if host >= hosts:
    raise PodError(
      f'JAX_PROCESS_ID={host} must be below JAX_NUM_PROCESSES={hosts}: hosts count from 0'
    )
  if not address.rpartition(':')[0] or not address.rpartition(':')[2].isdecimal():
    raise PodError(f'JAX_COORDINATOR_ADDRESS={address!r} must be ADDRESS:PORT of host 0')
  return Place(address, hosts, host)


def is_tpu(environ) -> bool:
  """Is this a host of TPU chips, alone or among others?  jax then knows where the others are."""
  wanted = environ.get('JAX_PLATFORMS', '')
  if (wanted and 'tpu' not in wanted) or importlib.util.find_spec('libtpu') is None:
    return False
  return is_named(environ) or bool(glob.glob('/dev/accel[0-9]*') or glob.glob('/dev/vfio/[0-9]*'))


def is_named(environ) -> bool:
  """Does the environment of a TPU host name other hosts?"""
  several = ',' in environ.get('TPU_WORKER_HOSTNAMES', '')
  return several or 'MEGASCALE_COORDINATOR_ADDRESS' in environ


@contextlib.contextmanager
def joined(environ=os.environ, steps: bool = True):
  """A context in which this process is a host of its pod; nothing where there is none.

  Args:
    steps: what follows says how far it is (`at_step`), and hangs if it says nothing for long.
  Raises:
    PodError: the environment names no pod that can be.
  """
  place, seconds = place_of(environ), Seconds.of(environ)
  if place is None and not is_tpu(environ):
    yield
    return
  _join(place, seconds, environ)
  import jax
  from jax._src import distributed  # Its store of keys and values has no public name.

  if distributed.global_state.client is None or jax.process_count() == 1:
    with alone(on_tpu=is_tpu(environ)):
      yield
    return
  global _watch
  _watch = Watch(distributed.global_state.client, seconds, steps)
  try:
    yield
    _watch.meet('end')
  except BaseException as error:
    _watch.end(error)
  finally:
    _watch.stopped.set()
    _watch = None
  jax.distributed.shutdown()


@contextlib.contextmanager
def alone(on_tpu: bool):
  """A context of the only host: what its chips do is to be started again, as in a pod."""
  try:
    yield
  except Exception as error:
    if not on_tpu or not is_lost(error):
      raise
    traceback.print_exception(error)
    leave(f'this host ended: {type(error).__name__}: {str(error)[:500]}', RESTART)


def _join(place: Place | None, seconds: Seconds, environ):
  """jax.distributed.initialize, which knows no errors: it would end the process by abort()."""
  import jax

  who = f'host {place.host} of {place.hosts}' if place else 'this host'
  where = f' at {place.address}' if place else ''
  come = threading.Event()

  def give_up():
    if not come.wait(seconds.join):
      leave(
        f'{who}: the pod{where} was not complete after {seconds.join:g} s (SR4_JOIN_SECONDS); look '
        'at the hosts that have said nothing',
        RESTART,
      )

  threading.Thread(target=give_up, daemon=True).start()
  try:
    arguments = {}
    if place:
      print(f'{who} joins the pod{where}', flush=True)
      _reach(place, seconds.join)
      arguments = dict(
        coordinator_address=place.address, num_processes=place.hosts, process_id=place.host
      )
      jax.config.update('jax_cpu_collectives_implementation', 'gloo')  # Without it, of no use.
    jax.distributed.initialize(
      **arguments,
      initialization_timeout=int(seconds.join) + 60,  # We speak first, here
      heartbeat_timeout_seconds=2 * int(seconds.dead) + 10,  # and here.
      shutdown_timeout_seconds=int(seconds.dead),
    )
  except (ValueError, RuntimeError, OSError) as error:
    if place or is_named(environ):
      raise PodError(f'{who} cannot join the pod{where}: {error}') from error
    print(f'this host of TPU chips is alone, since jax finds no others: {error}', flush=True)
  finally:
    come.set()


def _reach(place: Place, seconds: float):
  """Leaves unless the coordinator's port opens in time; host 0 opens it itself."""
  address, _, port = place.address.rpartition(':')
  until = time.monotonic() + seconds
  while place.host:
    try:
      socket.create_connection((address.strip('[]'), int(port)), timeout=seconds).close()
      return
    except OSError as error:
      if time.monotonic() > until - 1:
        leave(
          f'host {place.host} of {place.hosts}: the coordinator, host 0 at {place.address}, cannot '
          f'be reached for {seconds:g} s (SR4_JOIN_SECONDS): {error}; does it run there?',
          RESTART,
        )
      time.sleep(0.5)


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
        f'{_named(silent)} of {len(self.heard)}: no sign of life for {longest:.0f} s '
        '(SR4_DEAD_SECONDS); it died, or its machine did'
      )
    if self.stepping and now - self.moved > self.seconds.stall:
      last = min(self.steps.values())
      behind = [host for host, step in self.steps.items() if step == last]
      others = len(behind) < len(self.steps)
      where = _named(behind) if others else 'all hosts'
      return (
        f'no step for {now - self.moved:.0f} s (SR4_STALL_SECONDS): {where} went no further than '
        f'step {last}' + f', the others to step {max(self.steps.values())}' * others
      )
    return ''


def _named(hosts) -> str:
  names = sorted(hosts)
  more = f' and {len(names) - 8} more' if len(names) > 8 else ''
  return f'host{"s" * (len(names) > 1)} {", ".join(map(str, names[:8]))}{more}'


_watch: Watch | None = None  # of this process


def at_step(step: int):
  """Says that this host works on this step."""
  if _watch:
    _watch.step = step


def gather(text: str) -> list[str]:
  """What each host says, in their order.  All call it, as often as each other."""
  import jax
  from jax._src import distributed

  if jax.process_count() == 1:
    return [text]
  global _gathered
  _gathered += 1
  client, key = distributed.global_state.client, f'sr4/gather/{_gathered}'
  client.key_value_set(f'{key}/{jax.process_index()}', text)
  wait = int(1e3 * Seconds.of(os.environ).stall)
  return [
    client.blocking_key_value_get(f'{key}/{host}', wait) for host in range(jax.process_count())
  ]


_gathered = 0


def check_shared(directory: str):
  """PodError unless all hosts see the same folder.  All call it."""
  import jax

  os.makedirs(directory, exist_ok=True)
  name = f'.shared-{uuid.uuid4().hex[:12]}'
  if first := jax.process_index() == 0:
    open(os.path.join(directory, name), 'w').close()
  token = os.path.join(directory, gather(name)[0])
  seen = gather('yes' if os.path.exists(token) else 'no')
  if first:
    os.unlink(token)
  if 'no' in seen:
    blind = [host for host, told in enumerate(seen) if told == 'no']
    raise PodError(
      f'{directory} on {_named(blind)} is not that of host 0: --workdir must be a file system that '
      'all hosts share (Filestore, Lustre, a mounted bucket)'
    )


def leave(why: str, code: int):
  """Ends the process now, whatever its other threads wait for, and its children."""
  import multiprocessing

  print(f'\nsr4: {why}', file=sys.stderr, flush=True)
  sys.stdout.flush()
  for child in multiprocessing.active_children():
    child.kill()
  os._exit(code)
