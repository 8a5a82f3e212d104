"""Where a run's numbers go: JSONL, TensorBoard, a bar.  Read one step late, never waited for."""

import contextlib
import json
import os
import time

import jax
import numpy as np
import tqdm

from sr4.core import files
from sr4.training import accounting


class Metrics:
  """Writes a row each `every` steps; the means of what happened since the last row.

  A step's metrics are fetched when the next one has been started, so that the device never waits.
  """

  def __init__(self, workdir: str, total: int, start: int, every: int, progress: bool = True):
    self.writes = jax.process_index() == 0
    if self.writes:
      import tensorboardX  # It imports torch where there is one: half of a start's time.

      os.makedirs(workdir, exist_ok=True)
      self.path = os.path.join(workdir, 'metrics.jsonl')
      drop_after(self.path, start)
      self.file = open(self.path, 'a')
      board = os.path.join(workdir, 'tensorboard')
      self.board = tensorboardX.SummaryWriter(board, purge_step=start)
    shown = progress and self.writes
    self.bar = tqdm.tqdm(
      total=total, initial=start, disable=not shown, mininterval=1, dynamic_ncols=True
    )
    self.peak = accounting.peak_tflops(jax.devices()[0].device_kind)
    self.every, self.pending, self.rows, self.works = every, None, [], []
    self.clock = time.monotonic()

  def push(self, step: int, metrics: dict, work: accounting.Work, waited: float, bucket=''):
    """Takes the device's metrics of this step; gives back the host's of the step before, or None.

    Where a bucket is named, its losses have rows of their own, 'video/BUCKET'.
    """
    before, self.pending = self.pending, (step, metrics, work, waited, bucket)
    return self._read(before) if before else None

  def flush(self) -> dict | None:
    before, self.pending = self.pending, None
    return self._read(before) if before else None

  def _read(self, pending) -> dict:
    step, metrics, work, waited, bucket = pending
    row = {name: float(x) for name, x in jax.device_get(metrics).items()}
    if bucket:
      row |= {f'{name}/{bucket}': row[name] for name in ('video', 'audio') if name in row}
    now = time.monotonic()
    row |= {'step_seconds': now - self.clock, 'data_wait_seconds': waited}
    self.clock = now
    self.rows.append(row)
    self.works.append(work)
    self.bar.update(1)
    if step % self.every == 0:
      self._write(step)
    return row

  def _write(self, step: int):
    """Means over the rows since the last that have it; a counter is written as it stands."""
    names = dict.fromkeys(name for row in self.rows for name in row)
    of = lambda name: [row[name] for row in self.rows if name in row]
    mean = {
      name: of(name)[-1] if name.startswith('skipped') else float(np.mean(of(name)))
      for name in names
    }
    seconds = sum(row['step_seconds'] for row in self.rows)
    mean |= accounting.rates(self.works, seconds, jax.sharding.get_mesh().size, self.peak)
    mean |= accounting.high_water(jax.local_devices())
    self.write(step, mean)
    shown = {name: f'{mean[name]:.3f}' for name in ('video', 'audio') if name in mean}
    self.bar.set_postfix(shown | {'samples/s': f'{mean["samples_per_second"]:.0f}'}, refresh=False)
    self.rows.clear()
    self.works.clear()

  def write(self, step: int, row: dict):
    """One line of metrics.jsonl, and its curves; of a pod the first host writes it."""
    if not self.writes:
      return
    self.file.write(json.dumps({'step': step, **row}) + '\n')
    self.file.flush()
    for name, value in row.items():
      self.board.add_scalar(name, value, step)

  def pause(self):
    """Leaves out of the step time what was done between two steps (saving, sampling)."""
    self.clock = time.monotonic()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.flush()
    if self.writes:
      self.file.close()
      self.board.close()
    self.bar.close()


def drop_after(path: str, step: int):
  """Forgets the rows that a resumed run will write again."""
  if not os.path.exists(path):
    return
  kept = ''.join(json.dumps(row) + '\n' for row in read(path) if row['step'] <= step)
  files.save(path, kept.encode())


def read(path: str) -> list[dict]:
  """The rows of a metrics.jsonl; what a kill or a full disk has cut is left out."""
  rows = []
  with open(path, errors='replace') as f:
    for line in f:
      with contextlib.suppress(json.JSONDecodeError):
        row = json.loads(line)
        if isinstance(row, dict) and 'step' in row:
          rows.append(row)
  return rows
