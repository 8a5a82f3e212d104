"""sr4/training/metrics.py: means over the steps that have a number."""

import json

from sr4.training import metrics


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
      m.push(step, row, 8, 0.0, bucket)
  (line,) = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  row = json.loads(line)
  assert (row['video'], row['audio']) == (3.0, 4.0)
  assert (row['video/clips'], row['video/images'], row['audio/clips']) == (1.5, 4.5, 4.0)
