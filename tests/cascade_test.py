"""`sr4 sample --refine`: a base model's clips, keyframes and sound, made larger by a Refiner."""

import dataclasses

import numpy as np
import pytest
from safetensors import numpy as safetensors

from data_pipelines import media
from data_pipelines import mp4
from data_pipelines import stills
from data_pipelines import world
from data_pipelines.tasks import Row
from sr4 import pipeline
from sr4 import request
from sr4 import sample as sample_verb
from sr4.core import config as config_lib
from sr4.core.av import AV
from sr4.flow import refining
from sr4.models import system as system_lib
from tests import small_run

LARGE = dict(frames=9, height=16, width=16, fps=16.0)


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  """Workdirs of a base model and of a Refiner."""
  path = tmp_path_factory.mktemp('cascade')
  base = small_run.config(path)
  base.data.buckets.clips.update(height=8, width=8, keyframes=2, keyframe_scale=2)
  small_run.write_checkpoint(path / 'base', base)
  refiner = small_run.config(path)
  refiner.model.update(audio=False, sparse=dict(tile=(64,)))
  low = dict(frames=5, height=8, width=8, keyframes=2)
  bucket = dict(records=('large',), rows=4, sound=False, low=low)
  refiner.data.buckets = dict(large=LARGE | bucket)
  small_run.write_checkpoint(path / 'refiner', refiner)
  return path


def sample(home, out, base='base', refine='refiner', *more, code=0):
  told = '--checkpoint', home / base / 'checkpoints', '--refine', home / refine / 'checkpoints'
  given = *told, '--out', out, '--prompt', 'a red circle', *more
  return small_run.run('sample', *given, code=code)


def test_a_clip_is_twice_as_large_and_fast_with_its_sound(home, tmp_path):
  sample(home, tmp_path)
  info = media.probe(tmp_path / 'clip-000.mp4')
  assert (info.width, info.height, info.fps, info.has_audio) == (16, 16, 16, True)
  latents = safetensors.load((tmp_path / 'clip-000.safetensors').read_bytes())
  assert latents['video'].shape == (3, 4, 4, 16) and latents.keys() == {'video'}


def test_an_edit_is_refined_around_what_it_keeps(home, tmp_path):
  """The source is read once as small as the base model's clip and once as large as the result."""
  truth = world.World(world.Config.simple(**LARGE, sample_rate=8000, channels=1))[0].frames
  mp4.write(tmp_path / 'source.mp4', truth.repeat(4, 1).repeat(4, 2), 8.0, None, 8000)
  mask = np.zeros((64, 64, 3), np.uint8)
  mask[:, 32:] = 255
  (tmp_path / 'mask.png').write_bytes(stills.to_png(mask))
  given = '--video', tmp_path / 'source.mp4', '--mask_image', tmp_path / 'mask.png'
  sample(home, tmp_path, 'base', 'refiner', *given, '--frames', '5', '--strength', '0.5')
  like = dict(height=16, width=16, fps=16.0, frames=9, sample_rate=8000, channels=1)
  made = media.read(tmp_path / 'clip-000.mp4', **like).frames.astype(int)
  wanted = media.read(tmp_path / 'source.mp4', **like).frames
  assert np.abs(made - wanted)[:, :, :7].mean() < 5 < np.abs(made - wanted)[:, :, 8:].mean()


@pytest.mark.parametrize(
  'more, told',
  [(('--strength', '0'), 'strength=0.0'), (('--refine_steps', '0'), 'num_inference_steps=0')],
)
def test_a_wrong_way_to_refine(home, tmp_path, more, told):
  assert told in sample(home, tmp_path, 'base', 'refiner', *more, code=1)


def test_with_almost_no_noise_it_is_the_enlarged_clip_with_its_keyframes(home, relative):
  """Latents of the base model go into the Refiner as they are."""
  system, model, trained = pipeline.load(str(home / 'base' / 'checkpoints'))
  size = pipeline.size_of(system, trained)
  once = pipeline.Config(num_inference_steps=1)
  prompts, seeds = ['a red circle', 'a blue square'], [1, 2]
  clips = pipeline.Pipeline(system, model, size, once)(prompts, seeds)
  large, model, trained = pipeline.load(str(home / 'refiner' / 'checkpoints'))
  size = pipeline.refined_size(large, trained, system, size)
  refine = lambda strength, seeds: pipeline.Pipeline(
    large, model, size, dataclasses.replace(once, strength=strength)
  )(list(map(pipeline.to_refine, clips)), seeds)
  for clip, made in zip(clips, refine(1e-4, seeds)):
    told = refining.enlarged(clip.latents['video'][None], (3, 4, 4))
    wanted = np.array(told)[0]
    wanted[[0, 2]] = clip.latents['keyframes']
    assert relative(made.latents['video'], wanted) < 1e-2
    np.testing.assert_array_equal(made.samples, clip.samples)
    assert made.frames.shape == (9, 16, 16, 3)
  one, two = refine(1.0, seeds), refine(1.0, [1, 3])
  np.testing.assert_array_equal(one[0].frames, two[0].frames)
  assert np.any(one[1].frames != two[1].frames)
  with pytest.raises(ValueError, match='without a low clip'):
    pipeline.Pipeline(large, model, size, once)(prompts, seeds)


def test_a_refiner_is_guided_away_from_negative_prompts(monkeypatch):
  """Rows that are padded have one, too."""
  calls = []
  monkeypatch.setattr(pipeline, 'refined_size', lambda *_: None)
  monkeypatch.setattr(pipeline, 'to_refine', lambda clip, given: given)
  monkeypatch.setattr(request.Request, 'row', lambda *_: Row())
  monkeypatch.setattr(pipeline, 'Pipeline', lambda *_: lambda *given: calls.append(given))
  refiner = object.__new__(sample_verb.Refiner)
  refiner.base = refiner.system = refiner.model = refiner.trained = refiner.sampling = None
  asked = [request.Request('x', 'rain'), request.Request('y', 'snow', audio_negative_prompt='wind')]
  refiner(asked, [pipeline.Clip(one.prompt, *[None] * 4) for one in asked], [1, 2, 1], None)
  ((rows, seeds, away),) = calls
  assert len(rows) == len(seeds) == 3
  assert away == [AV('rain', 'rain'), AV('snow', 'wind'), AV('rain', 'rain')]


@pytest.mark.parametrize(
  'base, refine, told',
  [
    ('base', 'base', 'not trained on low clips'),
    ('refiner', 'refiner', 'its --refine this one'),
  ],
)
def test_checkpoints_that_do_not_go_together(home, tmp_path, monkeypatch, base, refine, told):
  monkeypatch.delattr(pipeline.Pipeline, '__call__')  # It is told before anything is sampled.
  assert told in sample(home, tmp_path, base, refine, code=1)


def test_latents_of_another_codec(home):
  system, _, trained = pipeline.load(str(home / 'base' / 'checkpoints'))
  size = pipeline.size_of(system, trained)
  _, _, trained = pipeline.load(str(home / 'refiner' / 'checkpoints'))
  trained['video_codec']['channels'] = 12
  with pytest.raises(config_lib.ConfigError, match='same video codec'):
    pipeline.refined_size(system_lib.build(trained), trained, system, size)


def test_keyframes_of_another_size(home):
  system, _, trained = pipeline.load(str(home / 'base' / 'checkpoints'))
  size = dataclasses.replace(pipeline.size_of(system, trained), keyframe_scale=4)
  large, _, trained = pipeline.load(str(home / 'refiner' / 'checkpoints'))
  with pytest.raises(config_lib.ConfigError, match='keyframes of 32 x 32'):
    pipeline.refined_size(large, trained, system, size)
