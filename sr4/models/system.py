"""What a config names, built: codecs, text encoder and model, fitted to each other."""

import dataclasses

from flax import nnx
import jax

from sr4.core import config as config_lib
from sr4.core.av import AV
from sr4.core.batch import Size
from sr4.models import codec
from sr4.models import mmdit
from sr4.models.text import bytes as bytes_lib

TEXT = {'bytes': (bytes_lib.Config, bytes_lib.ByteEncoder)}


@dataclasses.dataclass(frozen=True)
class System:
  """Codecs and encoder are frozen; the model is made from a key and trained."""

  codecs: AV
  text: object  # list of prompts -> (float32 [b m e], bool [b m])
  config: mmdit.Config

  def model(self, key: jax.Array) -> mmdit.MMDiT:
    return mmdit.MMDiT(self.config, rngs=nnx.Rngs(key))

  def size(self, frames: int, height: int, width: int, fps: float, sound: bool = True) -> Size:
    """The static shape of such a clip; what codecs and patches cannot divide is an error."""
    try:
      _, h, w, _ = self.codecs.video.latent_shape(frames, height, width)
    except ValueError as error:
      raise config_lib.ConfigError(f'a clip of {frames} x {height} x {width}: {error}') from error
    patch = self.config.patch
    for name, pixels, latent, step in (
      ('height', height, h, patch[1]),
      ('width', width, w, patch[2]),
    ):
      if latent % step:
        unit = self.codecs.video.space_factor * step
        raise config_lib.ConfigError(
          f'{name} {pixels} does not divide into patches: it must be a multiple of {unit}, such as '
          f'{max(unit, round(pixels / unit) * unit)}'
        )
    samples = round(frames / fps * self.codecs.audio.sample_rate) if sound else 0
    return Size(frames, height, width, fps, samples)

  def tokens(self, size: Size) -> AV:
    """Tokens of a clip of this size in each branch, without text."""
    t, h, w, _ = self.codecs.video.latent_shape(size.frames, size.height, size.width)
    pt, ph, pw = self.config.patch
    return AV((t // pt) * (h // ph) * (w // pw), self.codecs.audio.latent_length(size.samples))


def build(config) -> System:
  """From a config with the sections model, video_codec, audio_codec and text.

  The model's channels, text width and audio rate are the codecs' and the encoder's; to state them
  again is an error.
  """
  codecs = AV(
    _codec(config, 'video_codec', codec.build_video),
    _codec(config, 'audio_codec', codec.build_audio),
  )
  fields = dict(config['text'])
  name = fields.pop('name', None)
  if name not in TEXT:
    raise config_lib.ConfigError(f'config.text.name={name!r} is not among {sorted(TEXT)}')
  text_config = config_lib.build(TEXT[name][0], fields, 'config.text')
  derived = dict(
    video_channels=codecs.video.channels,
    audio_channels=codecs.audio.channels,
    audio_rate=codecs.audio.rate,
    text_width=text_config.width,
  )
  fields = dict(config['model'])
  stated = sorted(derived.keys() & fields.keys())
  if stated:
    raise config_lib.ConfigError(
      f'config.model.{stated[0]} follows from the codecs and the text '
      'encoder; take it out of config.model'
    )
  size = fields.pop('size', None)
  if size not in mmdit.SIZES:
    raise config_lib.ConfigError(f'config.model.size={size!r} is not among {list(mmdit.SIZES)}')
  model = config_lib.build(mmdit.Config, mmdit.SIZES[size] | fields | derived, 'config.model')
  return System(codecs, TEXT[name][1](text_config), model)


def _codec(config, section, build_codec):
  try:
    return build_codec(dict(config[section]))
  except ValueError as error:
    raise config_lib.ConfigError(f'config.{section}: {error}') from error
