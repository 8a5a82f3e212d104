"""Codecs: frames and samples to latents and back; the interface, and which there are by name.

A codec is a pytree: weights are its leaves, and `dct` and `mdct` have none, so that
`jax.jit(lambda codec, x: codec.encode(x))` takes every codec.
"""

from collections.abc import Mapping
import dataclasses
from typing import Protocol

import jax

from sr4.models import dct
from sr4.models import mdct


class VideoCodec(Protocol):
  """Frames <-> latents.  Causal: latent 0 is the first frame, latent i sees frames 0..4i."""

  channels: int
  time_factor: int  # Frames a latent, after the first.
  space_factor: int  # Pixels a latent, in height and in width.

  def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
    """(t, h, w, c); ValueError where the sizes do not divide."""

  def encode(self, frames: jax.Array) -> jax.Array:
    """uint8, or float in [-1, 1], [b T H W 3] -> f32 [b t h w c]."""

  def decode(self, latents: jax.Array) -> jax.Array:
    """[b t h w c] -> f32 [b T H W 3] in [-1, 1]."""

  def black(self, frames: int, height: int, width: int) -> jax.Array:
    """Latents f32 [t h w c] of black frames, which stand for unknown ones (Eq. 7)."""


class AudioCodec(Protocol):
  """Samples <-> latents."""

  channels: int
  sample_rate: int  # Hz.
  audio_channels: int  # 1 is mono, 2 is left and right.
  rate: float  # Latents a second.

  def latent_length(self, samples: int) -> int:
    """Latents of a clip with so many samples a channel."""

  def encode(self, samples: jax.Array) -> jax.Array:
    """f32 [b n ch] in [-1, 1] -> f32 [b l c]."""

  def decode(self, latents: jax.Array, samples: int | None = None) -> jax.Array:
    """[b l c] -> f32 [b n ch]; n is `samples`, by default all that the latents hold."""


VIDEO = {'dct': (dct.DctConfig, dct.DctVideo)}
AUDIO = {'mdct': (mdct.MdctConfig, mdct.MdctAudio)}


def build_video(cfg: Mapping) -> VideoCodec:
  """The video codec of a config node: `name`, one of VIDEO, and the fields of its Config."""
  return _build('video', VIDEO, cfg)


def build_audio(cfg: Mapping) -> AudioCodec:
  """The audio codec of a config node: `name`, one of AUDIO, and the fields of its Config."""
  return _build('audio', AUDIO, cfg)


def _build(kind: str, codecs: Mapping, cfg: Mapping):
  fields = dict(cfg)
  name = fields.pop('name', None)
  if name not in codecs:
    raise ValueError(f'{kind} codec is {name!r}; known: {", ".join(sorted(codecs))}.')
  config, codec = codecs[name]
  known = [field.name for field in dataclasses.fields(config)]
  if unknown := sorted(set(fields) - set(known)):
    raise ValueError(f'{kind} codec {name!r} has no {unknown}; its fields: {", ".join(known)}.')
  return codec(config(**fields))
