"""sr4/training/validation.py: the same question each time, of what training does not see."""

import dataclasses

import jax
import numpy as np
import pytest

from data_pipelines import records
from sr4 import pipeline
from sr4.core import errors
from sr4.flow import conditioning
from sr4.training import compiled
from sr4.training import data
from sr4.training import loop
from sr4.training import metrics
from sr4.training import validation
from tests import small_run


def test_held_out_losses(tmp_path):
  """Of the average of the weights, on what is held out, with nothing dropped and nothing random."""
  small_run.write_clips(tmp_path / 'clips')
  small_run.write_clips(tmp_path / 'held_out' / 'clips', count=4, seed=1)
  config = small_run.config(tmp_path, steps=2)
  config.optimizer.update(learning_rate=0.01, warmup=0)
  config.validate = dict(every=2, batches=1, root=str(tmp_path / 'held_out'))
  loop.run(config, str(tmp_path / 'run'), progress=False)
  rows = metrics.read(str(tmp_path / 'run' / 'metrics.jsonl'))
  before, after = (row for row in rows if 'held_out/video' in row)
  names = {f'held_out/{m}{b}' for m in ('video', 'audio') for b in ('', '/clips')}
  assert (before.pop('step'), after.pop('step')) == (0, 2) and set(before) == set(after) == names
  assert before != after

  c, path = loop.Sections.of(config), str(tmp_path / 'run' / 'checkpoints')
  system, average, _ = pipeline.load(path)
  load = data.make_held_out(config, system, 0, c.validate.root, 1)
  seen = np.concatenate([clips.frames for _, _, clips in load(0, load.schedule.cycle)])
  held = records.Source(tmp_path / 'held_out' / 'clips')
  frames = [held[i].frames for i in range(len(held))]
  assert len(seen) and all(any(np.array_equal(x, y) for y in frames) for x in seen)
  everything = conditioning.DropConfig(text=1.0, references=1.0, modality=1.0)
  flow = dataclasses.replace(c.flow, drop=everything)  # HeldOut must ignore it.
  ask = validation.HeldOut(system, flow, load, jax.random.key(c.train.seed))
  assert ask(average) == ask(average) == pytest.approx(after, rel=1e-5)
  assert ask(pipeline.load(path, ema=False)[1]) != pytest.approx(after, rel=1e-5)


def test_what_is_held_out_is_looked_for_before_anything_is_compiled(tmp_path, monkeypatch):
  small_run.write_clips(tmp_path / 'clips')
  config = small_run.config(tmp_path, steps=2)
  config.validate = dict(every=2, root=str(tmp_path / 'held_out'))
  monkeypatch.setattr(compiled, 'compile_step', None)
  with pytest.raises(errors.UserError, match=r'validate.root=.*no such folder.*validate.every=0'):
    loop.run(config, str(tmp_path / 'run'), progress=False)
