"""sr4/training/metrics.py: means over the steps that have a number, read one step late."""

import json

import numpy as np
import pytest

from sr4.training import accounting
from sr4.training import metrics

WORK = accounting.Work(rows=8, tokens=100, clip_seconds=4.0, flops=1e9)


def rows(folder) -> list[dict]:
  return [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]


def test_metrics_of_buckets_without_a_modality(tmp_path):
  """Each modality's mean is over the steps that had it, and each bucket has its own curve."""
  with metrics.Metrics(str(tmp_path), 4, 0, every=4, progress=False) as m:
    for step, (bucket, row) in enumerate(
      [
        ('clips', dict(video=1.0, audio=3.0)),
        ('images', dict(video=3.0)),
        ('clips', dict(video=2.0, audio=5.0)),
        ('images', dict(video=6.0)),
      ],
      1,
    ):
      m.push(step, row, WORK, 0.0, bucket)
  (row,) = rows(tmp_path)
  assert (row['video'], row['audio']) == (3.0, 4.0)
  assert (row['video/clips'], row['video/images'], row['audio/clips']) == (1.5, 4.5, 4.0)


def test_rates_are_of_the_window_and_leave_out_the_pauses(tmp_path, monkeypatch):
  now = [100.0]
  monkeypatch.setattr(metrics.time, 'monotonic', lambda: now[0])
  with metrics.Metrics(str(tmp_path), 4, 0, every=2, progress=False) as m:
    for step, (seconds, rows_) in enumerate([(1.0, 8), (3.0, 16), (2.0, 4), (2.0, 4)], 1):
      now[0] += seconds
      m.push(step, {'loss': 1.0}, accounting.Work(rows_, 100 * rows_, rows_ / 2, 1e12 * rows_), 0.5)
      m.flush()
      now[0] += 1000.0  # A checkpoint.
      m.pause()
  first, second = rows(tmp_path)
  assert (first['samples_per_second'], second['samples_per_second']) == (6.0, 2.0)
  assert (first['step_seconds'], second['step_seconds']) == (2.0, 2.0)
  assert first['tokens_per_second'] == 600.0 and first['data_wait_seconds'] == 0.5
  devices = first['tokens_per_second'] / first['tokens_per_second_per_device']
  assert first['tflops_per_device'] == pytest.approx(6.0 / devices)
  assert first['clip_seconds_per_device_hour'] == pytest.approx(3600 * 3.0 / devices)
  assert 'mfu' not in first  # The peak of a CPU is not known.
  assert first['process_peak_gib'] > 0


def test_of_a_pod_the_first_host_writes(tmp_path, monkeypatch):
  """All read, so that all stop where the run does."""
  monkeypatch.setattr(metrics.jax, 'process_index', lambda: 1)
  with metrics.Metrics(str(tmp_path), 2, 0, every=1, progress=False) as m:
    m.push(1, {'loss': 3.0}, WORK, 0.0)
    assert m.push(2, {'loss': 4.0}, WORK, 0.0)['loss'] == 3.0
  assert not list(tmp_path.iterdir())


class Unread:
  """A device's scalar that remembers how many steps had been started when it was read."""

  def __init__(self, started):
    self.started, self.read_at = started, None

  def __array__(self, dtype=None, copy=None):
    self.read_at = self.started[0]
    return np.asarray(1.0, dtype)


def test_a_step_is_read_when_the_next_has_been_started(tmp_path):
  started, made = [0], []
  with metrics.Metrics(str(tmp_path), 6, 0, every=2, progress=False) as m:
    for step in range(1, 7):
      started[0] = step
      made.append(Unread(started))
      m.push(step, {'loss': made[-1]}, WORK, 0.0)
  assert [x.read_at for x in made] == [2, 3, 4, 5, 6, 6]  # The last at the end.


@pytest.mark.parametrize('line', [b'{"step": 4, "lo\n', b'[]\n', b'{}\n', b'\xff\n', b'{"step": 5'])
def test_a_broken_line_is_left_out(tmp_path, line):
  """Wherever it is: a run goes on."""
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes(b'{"step": 3, "loss": 1.0}\n' + line + b'\n{"step": 6, "loss": 0.5}\n')
  assert [row['step'] for row in metrics.read(str(path))] == [3, 6]
  metrics.drop_after(str(path), 5)
  assert path.read_bytes() == b'{"step": 3, "loss": 1.0}\n'
