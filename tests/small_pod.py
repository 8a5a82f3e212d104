"""Processes on this machine as the hosts of a pod."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

LIMIT = 300  # seconds that any process may take
DEAD = 4  # seconds without a sign


class Hosts:
  """Processes of one pod.  Leaving kills what is left."""

  def __init__(
    self, count: int, folder, *command, devices: int = 1, of=lambda host: (), first=0, **seconds
  ):
    with socket.socket() as s:
      s.bind(('127.0.0.1', 0))
      address = f'127.0.0.1:{s.getsockname()[1]}'
    self.logs = [pathlib.Path(folder) / f'host-{host}.log' for host in range(count)]
    # Each host compiles for itself on a CPU; without these emitters in half the time.
    flags = (
      f'--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0 '
      '--xla_cpu_use_fusion_emitters=false'
    )
    self.processes = []
    for host, log in enumerate(self.logs):
      env = os.environ | {
        'XLA_FLAGS': flags,
        'JAX_COORDINATOR_ADDRESS': address,
        'JAX_NUM_PROCESSES': str(seconds.get('named', count)),
        'JAX_PROCESS_ID': str(first + host),
        'SR4_JOIN_SECONDS': str(seconds.get('join', 60)),
        'SR4_DEAD_SECONDS': str(DEAD),
        'SR4_STALL_SECONDS': str(seconds.get('stall', LIMIT)),
      }
      self.processes.append(
        subprocess.Popen(
          [sys.executable, *map(str, command), *map(str, of(host))],
          env=env,
          stdout=log.open('w'),
          stderr=subprocess.STDOUT,
        )
      )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    for process in self.processes:
      with contextlib.suppress(ProcessLookupError):
        process.kill()
      process.wait()

  def kill(self, host: int, number=signal.SIGKILL):
    self.processes[host].send_signal(number)

  def said(self, host: int) -> str:
    return self.logs[host].read_text()

  def until(self, true):
    """Waits for something while all are there."""
    end = time.monotonic() + LIMIT
    while not true():
      assert time.monotonic() < end, [self.said(host) for host in range(len(self.logs))]
      assert all(p.poll() is None for p in self.processes), [log.read_text() for log in self.logs]
      time.sleep(0.02)

  def codes(self, seconds: float = LIMIT) -> list[int]:
    """How each ended."""
    end = time.monotonic() + seconds
    for process, log in zip(self.processes, self.logs):
      try:
        process.wait(max(0.1, end - time.monotonic()))
      except subprocess.TimeoutExpired:
        raise AssertionError(f'{log.name} goes on: {log.read_text()}') from None
    return [process.returncode for process in self.processes]
