"""sr4/models/system.py: what a config names, fitted together, and what is said if it does not."""

import jax
import pytest

from sr4.core import config as config_lib
from sr4.core.av import AV
from sr4.core.batch import Size
from sr4.core.prompt import Prompt
from sr4.models import mmdit
from sr4.models import system


def _config(**changes) -> dict:
  config = dict(
    model=dict(size='debug', dtype='float32'),
    video_codec=dict(name='dct', space_factor=4, channels=12),
    audio_codec=dict(name='mdct', sample_rate=16000, audio_channels=1, hop=256, bands=64),
    text=dict(name='bytes', width=24, tokens=5),
  )
  for key, fields in changes.items():
    config[key] = config[key] | fields
  return config


def test_the_model_follows_codecs_and_text():
  built = system.build(_config())
  c = built.config
  assert (c.width, c.dual_layers, c.single_layers) == (64, 1, 2)
  assert c.video_channels == built.codecs.video.channels == 12
  assert c.audio_channels == built.codecs.audio.channels
  assert c.audio_rate == built.codecs.audio.rate
  size = built.size(5, 16, 16)
  text, valid = built.text.read([Prompt('a ball')], size)
  assert c.text_width == 24 and text.shape == (1, 5, 24) and valid.shape == (1, 5)
  model = jax.eval_shape(built.model, jax.random.key(0))
  assert isinstance(model, mmdit.MMDiT) and model.config == c


def test_overrides_of_a_size():
  c = system.build(_config(model=dict(width=48, heads=4))).config
  assert (c.width, c.heads, c.dual_layers) == (48, 4, 1)


def test_size_and_tokens():
  built = system.build(_config())
  size = built.size(17, 32, 64, 16.0)
  assert size == Size(17, 32, 64, 16.0, 17000)
  length = built.codecs.audio.latent_length(17000)
  assert built.tokens(size) == AV(5 * 4 * 8, length)
  assert built.size(17, 32, 64, 16.0, sound=False).samples == 0


@pytest.mark.parametrize(
  'height, width, words',
  [
    (36, 32, ('height 36', 'multiple of 8', 'such as 32')),
    (32, 4, ('width 4', 'multiple of 8', 'such as 8')),
  ],
)
def test_sizes_that_do_not_divide_into_patches(height, width, words):
  with pytest.raises(ValueError) as error:
    system.build(_config()).size(17, height, width, 16.0)
  for word in words:
    assert word in str(error.value)


def test_what_a_clip_cannot_have():
  with pytest.raises(
    config_lib.ConfigError, match='reference_seconds=1 belong to clips with sound'
  ):
    system.build(_config()).size(17, 32, 32, 16.0, sound=False, reference_seconds=1.0)
  apart = _config()
  apart['model']['audio_rope_scale'] = 'per_clip'
  rate = system.build(apart).config.video_rate
  assert system.build(apart).size(17, 32, 32, 4 * rate).fps == 4 * rate
  with pytest.raises(config_lib.ConfigError, match='2 latents a second, and model.video_rate'):
    system.build(apart).size(17, 32, 32, 8.0)


@pytest.mark.parametrize(
  'changes, words',
  [
    (dict(model=dict(size='huge')), ("config.model.size='huge'", 'debug', 'large-hd256')),
    (dict(model=dict(video_channels=3)), ('config.model.video_channels', 'codecs', 'take it out')),
    (dict(model=dict(widht=64)), ('config.model.widht=64', "did you mean 'width'?")),
    (dict(model=dict(heads=5)), ('config.model', '64', '5')),
    (dict(text=dict(name='qwen9')), ("config.text.name='qwen9'", 'bytes')),
    (dict(text=dict(tokens='x')), ("config.text.tokens='x'", 'int')),
    (dict(video_codec=dict(name='vq')), ('config.video_codec', 'vq', 'dct')),
    (dict(video_codec=dict(space_factor=3)), ('config.video_codec', 'space_factor', '3')),
  ],
)
def test_errors_name_the_key(changes, words):
  with pytest.raises(config_lib.ConfigError) as error:
    system.build(_config(**changes))
  assert '\n' not in str(error.value)
  for word in words:
    assert word in str(error.value)
