"""sr4/training/validation.py: the same question each time."""

import pytest

from sr4.core import errors
from sr4.training import compiled
from sr4.training import loop
from sr4.training import metrics
from tests import small_run


def test_held_out_losses_are_the_same_for_the_same_model(tmp_path):
  """And are of the held-out records: nothing random is left in them."""
  small_run.write_clips(tmp_path / 'clips')
  small_run.write_clips(tmp_path / 'held_out' / 'clips', count=4)
  rows = []
  for name in ('a', 'b'):
    config = small_run.config(tmp_path, steps=2)
    config.optimizer.learning_rate = 0.0
    config.validate = dict(every=2, batches=2, root=str(tmp_path / 'held_out'))
    loop.run(config, str(tmp_path / name), progress=False)
    rows += [
      r for r in metrics.read(str(tmp_path / name / 'metrics.jsonl')) if 'held_out/video' in r
    ]
  assert [row['step'] for row in rows] == [0, 2, 0, 2]
  first = {k: v for k, v in rows[0].items() if k != 'step'}
  for row in rows:  # The learning rate is 0.
    assert {k: v for k, v in row.items() if k != 'step'} == first
  assert set(first) == {f'held_out/{m}{b}' for m in ('video', 'audio') for b in ('', '/clips')}


def test_what_is_held_out_is_looked_for_before_anything_is_compiled(tmp_path, monkeypatch):
  small_run.write_clips(tmp_path / 'clips')
  config = small_run.config(tmp_path, steps=2)
  config.validate = dict(every=2, root=str(tmp_path / 'held_out'))
  monkeypatch.setattr(compiled, 'compile_step', None)
  with pytest.raises(errors.UserError, match=r'validate.root=.*no such folder.*validate.every=0'):
    loop.run(config, str(tmp_path / 'run'), progress=False)
