"""`sr4 evaluate`: of a small model as a whole, and what it says of clips made to fail."""

import json
import os
import types

import av
import numpy as np
import pytest

from data_pipelines import media
from data_pipelines import world
from sr4 import evaluate
from sr4.core import errors
from sr4.core.batch import Size
from sr4.models import codec
from tests import small_run


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  path = tmp_path_factory.mktemp('evaluated')
  small_run.write_checkpoint(path, small_run.config(path))
  return path


def evaluated(home, out, *arguments, code=0):
  told = '--checkpoint', home / 'checkpoints', '--out', out, '--count', 3, '--batch', 4
  return small_run.run('evaluate', *told, *arguments, code=code)


def test_a_checkpoint_becomes_figures_and_clips(home, tmp_path):
  printed = evaluated(home, tmp_path, '--began', 1)
  figures = json.loads((tmp_path / 'metrics.json').read_text())
  assert figures['steps'] == 2 and figures['count'] == 3
  assert figures['seconds'] > 1.7e9 and figures['seconds_since'] == 'began'
  for prefix in ('', 'truth_', 'codec_'):
    assert 0 <= figures[f'{prefix}color_accuracy'] <= 1
    assert 0 <= figures[f'{prefix}shape_accuracy'] <= 1
    assert {f'{prefix}onset_error_ms', f'{prefix}onset_error_shuffled_ms'} <= figures.keys()
  assert figures['truth_color_accuracy'] == 1 and figures['chance_color_accuracy'] == 1 / 8
  assert figures['diversity'] > 0 and figures['codec_psnr_db'] > 15
  assert figures['sampling']['num_inference_steps'] == 2
  clips = json.loads((tmp_path / 'clips.json').read_text())
  assert len(clips) == 3 and clips[0]['made'].keys() == {'color', 'shape', 'rings', 'bounces'}
  assert json.loads((tmp_path / 'config.json').read_text())['model']['size'] == 'debug'
  assert sorted(os.listdir(tmp_path / 'clips')) == [
    f'{i:03d}{end}' for i in range(3) for end in ('.mp4', '.npz', '.truth.mp4')
  ]
  assert media.probe(tmp_path / 'clips' / '000.mp4').width == 256
  with av.open(tmp_path / 'clips' / '000.mp4') as made:
    assert clips[0]['prompt'] in made.metadata['comment']
  assert 'colour accuracy' in printed and 'no skill' in printed
  again = tmp_path / 'again'
  evaluated(home, again, '--num_inference_steps', '2')
  for name in ('clips.json', 'clips/000.npz'):
    assert (again / name).read_bytes() == (tmp_path / name).read_bytes()


def test_wrong_input_is_one_line(home, tmp_path):
  out = evaluated(home, tmp_path, '--count', '0', code=1)
  assert out == 'sr4: --count=0 must be at least 1\n'
  out = evaluated(home, tmp_path, '--seed', '-1', code=1)
  assert out == 'sr4: --seed=-1 must be at least 0\n'
  out = evaluated(home, tmp_path, '--solver', 'magic', code=1)
  assert "'magic' is not among" in out and out.count('\n') == 1


def test_a_model_whose_clips_the_world_cannot_draw_is_told():
  audio = types.SimpleNamespace(sample_rate=16_000, audio_channels=1)
  with pytest.raises(errors.UserError, match='SR4-World has no clips like those of this model'):
    evaluate.held_out(Size(17, 8, 8, 16.0, 17_000), audio, 1, 2)


@pytest.mark.parametrize(
  'bucket, told',
  [
    (dict(sound=False), 'makes no sound, and SR4-World is seen and heard'),
    (dict(frames=0, seconds=0.5), 'makes no picture'),
  ],
)
def test_a_model_of_one_modality_is_told(tmp_path, bucket, told):
  config = small_run.config(tmp_path)
  config.data.buckets.clips.update(bucket)
  small_run.write_checkpoint(tmp_path, config)
  assert told in evaluated(tmp_path, tmp_path / 'out', code=1)


@pytest.fixture(scope='module')
def truth():
  source = world.World(world.Config.simple(height=32, width=32, frames=17, channels=1), 7)
  return [source[i] for i in range(24)]


def scores(clips, truth):
  rows = evaluate.look_and_listen(clips, types.SimpleNamespace(fps=16.0), 16_000)
  return evaluate.scores(rows, [sample.truth.objects[0] for sample in truth])


def like(clip, frames=None, samples=None):
  return types.SimpleNamespace(
    frames=clip.frames if frames is None else frames,
    samples=clip.samples if samples is None else samples,
  )


def test_the_truth_is_right(truth):
  figures = scores(truth, truth)
  assert figures['color_accuracy'] == figures['shape_accuracy'] == 1
  assert figures['onset_error_ms'] < 2 and figures['onset_error_shuffled_ms'] > 300


def test_other_clips_are_wrong(truth):
  figures = scores(truth[1:] + truth[:1], truth)
  assert figures['color_accuracy'] < 0.4 and figures['shape_accuracy'] < 0.5


def test_other_sounds_are_out_of_time(truth):
  figures = scores(
    [like(a, samples=b.samples) for a, b in zip(truth, truth[1:] + truth[:1])], truth
  )
  assert figures['color_accuracy'] == 1 and figures['onset_error_ms'] > 200


@pytest.mark.parametrize('frames, samples', [(None, 0), (0, None)], ids=['silent', 'black'])
def test_half_a_clip_is_as_wrong_as_can_be(truth, frames, samples):
  zero = lambda x, how: None if how is None else np.zeros_like(x)
  clips = [like(c, zero(c.frames, frames), zero(c.samples, samples)) for c in truth]
  figures = scores(clips, truth)
  assert figures['onset_error_ms'] == 1000
  assert figures['color_accuracy'] == (0 if frames == 0 else 1)


def test_empty_clips_are_not_in_time(truth):
  figures = scores(
    [like(c, np.zeros_like(c.frames), np.zeros_like(c.samples)) for c in truth], truth
  )
  assert figures['onset_clips'] == 0 and np.isnan(figures['onset_error_ms'])
  assert figures['color_accuracy'] == figures['shape_accuracy'] == 0


def test_diversity_tells_a_model_that_always_makes_the_same(truth):
  assert evaluate.diversity(truth[:1] * 8) == 0
  assert evaluate.diversity(truth[:8]) > 5


def test_round_trip_is_each_clip_through_the_codecs(truth):
  codecs = types.SimpleNamespace(
    video=codec.build_video({'name': 'dct', 'channels': 16}),
    audio=codec.build_audio({'name': 'mdct', 'audio_channels': 1}),
  )
  coded = evaluate.round_trip(codecs, truth[:2])
  figures = evaluate.fidelity(coded, truth[:2])
  assert coded[1].frames.dtype == np.uint8 and coded[1].samples.shape == truth[1].samples.shape
  assert 24 < figures['codec_psnr_db'] < 40 and 15 < figures['codec_si_sdr_db'] < 60
  # The clips in the other order are not each other.
  assert evaluate.fidelity(coded[::-1], truth[:2])['codec_psnr_db'] < 20


def test_the_clips_held_out_are_of_one_kind(truth):
  size = types.SimpleNamespace(frames=17, height=32, width=32, fps=16.0, samples=17_000)
  audio = types.SimpleNamespace(sample_rate=16_000, audio_channels=1)
  found, alike = evaluate.held_out(size, audio, 7, 4)
  np.testing.assert_array_equal(found[2].frames, truth[2].frames)
  assert len(alike) == evaluate.SEEDS
  assert {s.truth.objects[0].name for s in alike} == {found[0].truth.objects[0].name}


def test_json_is_plain_and_whole(tmp_path):
  path = tmp_path / 'x.json'
  evaluate.write_json(str(path), {'a': float('nan'), 'b': [float('inf'), 1.5], 'c': None})
  assert json.loads(path.read_text()) == {'a': None, 'b': [None, 1.5], 'c': None}
  assert os.listdir(tmp_path) == ['x.json']
