"""`sr4 sample`: clips from a checkpoint, the same bytes for the same seed, clear answers else."""

import argparse
import json
import os

import numpy as np
import pytest
from safetensors import numpy as safetensors

from data_pipelines import media
from data_pipelines import stills
from data_pipelines import tasks
from sr4 import pipeline
from sr4 import request
from sr4 import sample as sample_verb
from sr4.core import errors
from sr4.flow import segments
from sr4.models import system
from tests import small_run


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  path = tmp_path_factory.mktemp('sampled')
  small_run.write_checkpoint(path, small_run.config(path))
  return path


def sample(home, out, *arguments, code=0):
  told = '--checkpoint', home / 'checkpoints', '--out', out, *arguments
  return small_run.run('sample', *told, code=code)


def test_a_prompt_becomes_a_clip_with_sound_and_its_latents(home, tmp_path):
  sample(home, tmp_path, '--prompt', 'a red circle', '--prompt', 'a red circle')
  assert sorted(os.listdir(tmp_path)) == [
    'clip-000.mp4',
    'clip-000.safetensors',
    'clip-001.mp4',
    'clip-001.safetensors',
  ]
  one, other = ((tmp_path / f'clip-{i:03d}.safetensors').read_bytes() for i in range(2))
  assert one != other  # Its seed is one more.
  info = media.probe(tmp_path / 'clip-000.mp4')
  assert (info.width, info.height, info.has_audio) == (16, 16, True)
  clip = media.read(
    tmp_path / 'clip-000.mp4', height=16, width=16, fps=8, frames=5, sample_rate=8000, channels=1
  )
  assert clip.frames.shape == (5, 16, 16, 3) and clip.samples.shape == (5000, 1)
  latents = safetensors.load((tmp_path / 'clip-000.safetensors').read_bytes())
  assert latents['video'].shape == (2, 4, 4, 16) and latents['audio'].shape == (20, 32)


def test_a_seed_is_its_bytes(home, tmp_path):
  """In any process."""

  def made(name, *arguments):
    told = '--checkpoint', home / 'checkpoints', '--out', tmp_path / name, *arguments
    small_run.finish(small_run.start('sample', *told, '--prompt', 'a red circle'))
    return [(tmp_path / name / f'clip-000.{kind}').read_bytes() for kind in ('mp4', 'safetensors')]

  first = made('first', '--seed', '3')
  assert made('again', '--seed', '3') == first
  assert made('other', '--seed', '4')[1] != first[1]


def test_narrow_weights_of_layers_in_the_hosts_memory(home, tmp_path, relative):
  def made(name, *arguments):
    sample(home, tmp_path / name, '--prompt', 'a red circle', *arguments)
    return safetensors.load((tmp_path / name / 'clip-000.safetensors').read_bytes())

  exact, narrow = made('exact'), made('narrow', '--weights', 'float8', '--offload')
  assert all(0 < relative(narrow[name], exact[name]) < 0.05 for name in exact)
  told = sample(home, tmp_path, '--prompt', 'a', '--weights', 'int4', code=1)
  assert "weights='int4' is not among float32, bfloat16, float8" in told


def test_requests_of_many_kinds_are_made_in_their_order(home, tmp_path):
  """Each kind is a program of its own; a seed of a request is its own; what is given is kept."""
  picture = np.full((24, 48, 3), 200, np.uint8)
  (tmp_path / 'grey.png').write_bytes(stills.to_png(picture))
  given = dict(prompt='a red circle', first_frame_image=str(tmp_path / 'grey.png'))
  asked = [dict(prompt='a blue square'), given, dict(prompt='a blue square', seed=1)]
  asked += [dict(asked[2], mode='fast', num_inference_steps=3)]
  lines = '\n\n'.join(map(json.dumps, asked))
  (tmp_path / 'requests.jsonl').write_text(lines)
  out = tmp_path / 'out'
  several = '--requests', tmp_path / 'requests.jsonl', '--batch', 1
  sample(home, out, *several, '--seed', 1, '--preview_every', 1)
  steps = sorted(path.name for path in out.glob('clip-000-step-*.png'))
  assert steps == ['clip-000-step-001.png', 'clip-000-step-002.png']
  assert media.read_image(out / steps[0], 16, 80).std() > 1  # five frames of 16 x 16
  latents = [(out / f'clip-{i:03d}.safetensors').read_bytes() for i in range(4)]
  assert latents[0] == latents[2] and len(set(latents)) == 3
  first = media.read_image(out / 'clip-001.mp4', 8, 24)  # 1:2, as the picture is
  assert np.abs(first.astype(int) - 200).max() < 6


@pytest.mark.parametrize(
  'line, told',
  [
    ('{"prompt": "x", "bogus": 1}', "has no 'bogus'"),
    ('{"prompt": ', 'line 1 is no JSON'),
    ('[1]', 'has no fields'),
    ('{"prompt": "x", "duration": 2}', 'duration: 2 is not in 3 to 15'),
    ('{"prompt": "x", "num_inference_steps": 0}', 'num_inference_steps=0 must be at least 1'),
    ('{"prompt": "x", "video": "/nowhere.mp4"}', '/nowhere.mp4'),
  ],
)
def test_a_wrong_request_names_its_line_or_file(home, tmp_path, line, told):
  (tmp_path / 'requests.jsonl').write_text(line)
  out = sample(home, tmp_path, '--requests', tmp_path / 'requests.jsonl', code=1)
  assert told in out


@pytest.mark.parametrize(
  'arguments, told',
  [
    ([], 'no prompt'),
    (['--prompt', 'x', '--seed', '-1'], '--seed=-1'),
    (['--prompt', 'x', '--prompt', 'y', '--seed', '4294967295'], 'of 2 requests'),
    (['--prompt', 'x', '--frames', '0', '--seconds', '1', '--sound', 'false'], 'is empty'),
    (['--prompt', 'x', '--strength', '0.5'], '--strength is of a Refiner; give --refine'),
    (['--prompt', 'x', '--refine_steps', '4'], '--refine_steps is of a Refiner'),
    (['--prompt', 'x', '--batch', '0'], '--batch=0'),
    (['--prompt', 'x', '--decode_tile', '6'], 'must be a multiple of 4'),
    (['--prompt', 'x', '--mask_image', 'x.png'], 'mask_image: it says what of `video` changes'),
    (['--prompt', 'x', '--height', '20'], 'multiple of 8'),
    (['--prompt', 'x', '--prompt_optimizer', 'gpt'], 'URL#MODEL'),
    (['--prompt', 'x', '--frames', '6'], 'frames'),
    (['--prompt', 'x', '--solver', 'magic'], "'magic' is not among"),
    (['--prompt', 'x', '--step', '7'], 'it has steps [2]'),
    (['--prompt', '@image_1 jumps'], 'names @image_1, but 0 of kind image are given: give it'),
    (['--prompts', '/nowhere/prompts.txt'], '/nowhere/prompts.txt'),
  ],
)
def test_wrong_input_is_one_line(home, tmp_path, arguments, told):
  out = sample(home, tmp_path, *arguments, code=1)
  assert told in out
  assert out.startswith('sr4: ') and out.count('\n') == 1


def test_flags_are_of_requests_too_where_they_say_nothing(tmp_path):
  (tmp_path / 'asked').write_text('{"prompt": "x"}\n{"prompt": "y", "frames": 9, "mode": "pro"}')
  parser = argparse.ArgumentParser()
  sample_verb.arguments(parser)
  told = ['--checkpoint', 'x', '--out', 'y', '--requests', str(tmp_path / 'asked')]
  found = sample_verb.requests(parser.parse_args([*told, '--frames', '5', '--mode', 'fast']))
  assert [(one.frames, one.mode) for one in found] == [(5, 'fast'), (9, 'pro')]


def test_only_what_needs_several_batches_is_filled_up(tmp_path):
  trained = dict(small_run.config(tmp_path))
  asked = [request.Request('a')] * 3 + [request.Request('b', frames=9)]
  found = sample_verb.batches(asked, system.build(trained), trained, {}, 2)
  assert [(len(some), extra) for some, *_, extra in found] == [(2, 0), (1, 1), (1, 0)]


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_numbers_of_sampling_are_finite(value):
  for name in ('video_guidance_scale', 'shift', 'cache_threshold'):
    with pytest.raises(ValueError, match=f'{name}=.* must be a finite number'):
      pipeline.Config(**{name: value})


def test_a_config_may_say_nothing_of_sampling(tmp_path):
  """Training does not ask for it."""
  trained = dict(small_run.config(tmp_path))
  del trained['sample']
  ((_, _, sampling, _),) = sample_verb.batches(
    [request.Request('a')], system.build(trained), trained, dict(shift=2.0), 8
  )
  assert sampling == pipeline.Config(shift=2.0)


@pytest.mark.parametrize('flag', ['prompts', 'requests'])
def test_each_prompt_is_checked_before_a_model_is_loaded(tmp_path, flag):
  prompts = ['a red circle', '@image_1 jumps']
  of = (lambda prompt: json.dumps(dict(prompt=prompt))) if flag == 'requests' else str
  (tmp_path / 'asked').write_text('\n'.join(map(of, prompts)))
  out = sample(tmp_path / 'none', tmp_path, f'--{flag}', tmp_path / 'asked', code=1)
  assert 'names @image_1, but 0 of kind image are given' in out
  assert ('asked, line 2: ' in out) == (flag == 'requests')


@pytest.mark.parametrize('flag', ['prompts', 'requests'])
def test_a_file_of_another_encoding_is_named(home, tmp_path, flag):
  (tmp_path / 'latin').write_bytes('{"prompt": "ein gr\u00fcner Kreis"}\n'.encode('latin-1'))
  out = sample(home, tmp_path, f'--{flag}', tmp_path / 'latin', code=1)
  assert out.startswith(f'sr4: {tmp_path}/latin is not UTF-8 (') and out.count('\n') == 1


def test_sound_is_true_or_false(home, tmp_path):
  out = sample(home, tmp_path, '--prompt', 'x', '--sound', 'no', code=2)
  assert "argument --sound: invalid boolean value: 'no'" in out


def test_an_output_that_cannot_be_written(home, tmp_path):
  (tmp_path / 'file').write_text('')
  out = sample(home, tmp_path / 'file' / 'out', '--prompt', 'x', code=1)
  assert 'file' in out


def test_not_a_checkpoint(tmp_path):
  with pytest.raises(errors.UserError, match='has no checkpoints'):
    pipeline.load(str(tmp_path))


def _of_another_kind(path, **bucket):
  config = small_run.config(path)
  config.data.buckets.clips.update(bucket)
  small_run.write_checkpoint(path, config)


def test_keyframes_are_made_too_and_kept_as_pictures(tmp_path):
  _of_another_kind(tmp_path, height=8, width=8, keyframes=2, keyframe_scale=2)
  out = tmp_path / 'out'
  sample(tmp_path, out, '--prompt', 'a red circle', '--prompt_optimizer', 'rules')
  assert sorted(os.listdir(out)) == [
    'clip-000-keyframe-00.png',
    'clip-000-keyframe-01.png',
    'clip-000.mp4',
    'clip-000.safetensors',
  ]
  picture = media.read_image(out / 'clip-000-keyframe-01.png', 16, 16)
  latents = safetensors.load((out / 'clip-000.safetensors').read_bytes())
  assert latents['video'].shape == (2, 2, 2, 16) and latents['keyframes'].shape == (2, 4, 4, 16)
  codec = system.build(small_run.config(tmp_path)).codecs.video
  decoded = segments.to_uint8(codec.decode(latents['keyframes'][None, 1:]))
  np.testing.assert_array_equal(picture, decoded[0, 0])


@pytest.mark.parametrize(
  'bucket, file',
  [(dict(frames=0, seconds=0.5), 'clip-000.wav'), (dict(frames=1, sound=False), 'clip-000.png')],
)
def test_a_model_of_one_modality_makes_its_files(tmp_path, bucket, file):
  _of_another_kind(tmp_path, **bucket)
  sample(tmp_path, tmp_path / 'out', '--prompt', 'a red circle')
  assert file in os.listdir(tmp_path / 'out')


@pytest.mark.parametrize(
  'sound, frames, seconds', [(True, 5, 0.625), (False, 5, 0.625), (True, 0, 2)]
)
def test_the_optimizer_is_told_how_long_it_lasts(sound, frames, seconds):
  made, told = system.build(small_run.config('nowhere')), {}
  size = made.size(frames, 16, 16, 8.0, sound=sound, seconds=2.0)
  row = tasks.Row(caption='a circle')
  optimize = lambda caption, **given: told.update(given) or f'{caption}, seen'
  assert sample_verb.optimized(row, size, made, optimize).caption == 'a circle, seen'
  assert told == dict(references=[], seconds=seconds, sound=sound)
