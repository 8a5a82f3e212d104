"""Codecs and text encoder with weights, by name: training and sampling without a special case."""

import os

import ml_collections
import numpy as np
import pytest
from safetensors import numpy as safetensors

from data_pipelines import media
from sr4.convert import weights
from sr4.flow import segments
from sr4.models import system as system_lib
from sr4.training import loop
from sr4.training import metrics
from tests import small_codecs
from tests import small_run
from tests import small_text


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  """A workdir of two steps."""
  path = tmp_path_factory.mktemp('real')
  small_run.write_clips(path / 'clips')
  config = small_run.config(path, steps=2)
  small_text.write(path / 'qwen')
  text = small_text.FIELDS | dict(name='qwen3-vl-8b', weights=str(path / 'qwen'))
  for name, fields in (small_codecs.write(path) | dict(text=text)).items():
    config[name] = ml_collections.ConfigDict(fields)
  loop.run(config, str(path), progress=False)
  return path, config


def test_it_trains(home):
  path, _ = home
  rows = metrics.read(str(path / 'metrics.jsonl'))
  assert [row['step'] for row in rows] == [1, 2]
  assert all(np.isfinite(row[name]) for row in rows for name in ('video', 'audio'))


def test_a_prompt_becomes_a_clip_with_sound(home, tmp_path):
  path, config = home
  asked = ('--checkpoint', path / 'checkpoints', '--out', tmp_path, '--prompt', 'a red circle')
  small_run.run('sample', *asked)
  assert sorted(os.listdir(tmp_path)) == ['clip-000.mp4', 'clip-000.safetensors']
  clip = media.read(
    tmp_path / 'clip-000.mp4', height=16, width=16, fps=8, frames=5, sample_rate=8000, channels=1
  )
  latents = safetensors.load((tmp_path / 'clip-000.safetensors').read_bytes())
  assert latents['video'].shape == (2, 2, 2, 4) and latents['audio'].shape == (4, 8)
  video = weights.load(system_lib.build(config)).codecs.video
  decoded = np.asarray(segments.to_uint8(video.decode(latents['video'][None])))[0]
  grey = [x.mean(-1).ravel() for x in (clip.frames, decoded)]  # H.264 halves the colours' sides.
  assert np.corrcoef(*grey)[0, 1] > 0.8
  assert clip.samples.shape == (5000, 1)
