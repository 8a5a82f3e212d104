"""Many hosts as one run: how one joins, and what all of them say or see.

  JAX_COORDINATOR_ADDRESS=ADDRESS:PORT JAX_NUM_PROCESSES=4 JAX_PROCESS_ID=0 sr4 train ...

A host is a process.  On TPU slices of several hosts nothing need be set: jax finds them.  Until it
leaves, each is watched by the others (sr4/core/watch.py).
"""

import contextlib
import dataclasses
import glob
import importlib.util
import os
import socket
import threading
import time
import traceback
import uuid

from sr4.core import errors
from sr4.core import watch

NAMES = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')


class PodError(errors.UserError):
  """An environment that names no pod, or one that cannot be joined."""


@dataclasses.dataclass(frozen=True)
class Place:
  """Which host this is, of which pod."""

  address: str  # of the coordinator, host:port
  hosts: int
  host: int


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
  place, seconds = place_of(environ), watch.Seconds.of(environ)
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
  _watch = watch.Watch(distributed.global_state.client, seconds, steps)
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
    if not on_tpu or not watch.is_lost(error):
      raise
    traceback.print_exception(error)
    watch.leave(f'this host ended: {type(error).__name__}: {str(error)[:500]}', watch.RESTART)


def _join(place: Place | None, seconds: watch.Seconds, environ):
  """jax.distributed.initialize, which knows no errors: it would end the process by abort()."""
  import jax

  who = f'host {place.host} of {place.hosts}' if place else 'this host'
  where = f' at {place.address}' if place else ''
  come = threading.Event()

  def give_up():
    if not come.wait(seconds.join):
      watch.leave(
        f'{who}: the pod{where} was not complete after {seconds.join:g} s (SR4_JOIN_SECONDS); look '
        'at the hosts that have said nothing',
        watch.RESTART,
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
        watch.leave(
          f'host {place.host} of {place.hosts}: the coordinator, host 0 at {place.address}, cannot '
          f'be reached for {seconds:g} s (SR4_JOIN_SECONDS): {error}; does it run there?',
          watch.RESTART,
        )
      time.sleep(0.5)


_watch: watch.Watch | None = None  # of this process


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
  wait = int(1e3 * watch.Seconds.of(os.environ).stall)
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
      f'{directory} on {watch.named(blind)} is not that of host 0: --workdir must be a file '
      'system that all hosts share (Filestore, Lustre, a mounted bucket)'
    )
