"""Where a run's numbers go: JSONL, TensorBoard, a bar.  Read one step late, never waited for."""

import json
import os
import time

import jax
import numpy as np
import tensorboardX
import tqdm


class Metrics:
  """Writes a row each `every` steps; the means of what happened since the last row.

  A step's metrics are fetched when the next one has been started, so that the device never waits.
  """

  def __init__(self, workdir: str, total: int, start: int, every: int, progress: bool = True):
    os.makedirs(workdir, exist_ok=True)
    self.path = os.path.join(workdir, 'metrics.jsonl')
    drop_after(self.path, start)
    self.file = open(self.path, 'a')
    self.board = tensorboardX.SummaryWriter(os.path.join(workdir, 'tensorboard'), purge_step=start)
    self.bar = tqdm.tqdm(
      total=total, initial=start, disable=not progress, mininterval=1, dynamic_ncols=True
    )
    self.every, self.pending, self.rows = every, None, []
    self.clock = time.monotonic()

  def push(self, step: int, metrics: dict, examples: int, waited: float, bucket='') -> dict | None:
    """Takes the device's metrics of this step; gives back the host's of the step before.

    Where a bucket is named, its losses have rows of their own, 'video/BUCKET'.
    """
    before, self.pending = self.pending, (step, metrics, examples, waited, bucket)
    return self._read(before) if before else None

  def flush(self) -> dict | None:
    before, self.pending = self.pending, None
    return self._read(before) if before else None

  def _read(self, pending) -> dict:
    step, metrics, examples, waited, bucket = pending
    row = {name: float(x) for name, x in jax.device_get(metrics).items()}
    if bucket:
      row |= {f'{name}/{bucket}': row[name] for name in ('video', 'audio') if name in row}
    now = time.monotonic()
    row |= {
      'step_seconds': now - self.clock,
      'data_wait_seconds': waited,
      'samples_per_second': examples / max(now - self.clock, 1e-9),
    }
    self.clock = now
    self.rows.append(row)
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
    self.write(step, mean)
    shown = {name: f'{mean[name]:.3f}' for name in ('video', 'audio') if name in mean}
    self.bar.set_postfix(shown | {'samples/s': f'{mean["samples_per_second"]:.0f}'}, refresh=False)
    self.rows.clear()

  def write(self, step: int, row: dict):
    """One line of metrics.jsonl, and its curves."""
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
    self.file.close()
    self.board.close()
    self.bar.close()


def drop_after(path: str, step: int):
  """Forgets the rows that a resumed run will write again."""
  if not os.path.exists(path):
    return
  rows = read(path)
  with open(path, 'w') as f:
    f.writelines(json.dumps(row) + '\n' for row in rows if row['step'] <= step)


def read(path: str) -> list[dict]:
  """The rows of a metrics.jsonl; a last line cut off by a kill is left out."""
  rows = []
  with open(path) as f:
    for line in f:
      if line.endswith('\n'):
        rows.append(json.loads(line))
  return rows
