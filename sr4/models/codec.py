"""Codecs: frames and samples to latents and back; the interface, and which there are by name.

A codec is a pytree: weights are its leaves, and `dct` and `mdct` have none, so that
`jax.jit(lambda codec, x: codec.encode(x))` takes every codec.
"""

from collections.abc import Mapping
import dataclasses
from typing import Protocol

from flax import nnx
import jax

from sr4.core import tree
from sr4.models import audio_vae
from sr4.models import dct
from sr4.models import kinds
from sr4.models import mdct
from sr4.models import video_vae


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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Remembering:
  """A VideoCodec that knows the latents of black frames, which every step asks for."""

  codec: VideoCodec
  blacks: dict[str, jax.Array]  # by size

  def __getattr__(self, name: str):
    if name.startswith('_') or name == 'codec':  # As when it is unpickled.
      raise AttributeError(name)
    return getattr(self.codec, name)

  def black(self, frames: int, height: int, width: int) -> jax.Array:
    found = self.blacks.get(f'{frames} {height} {width}')
    return self.codec.black(frames, height, width) if found is None else found


def remembering(codec: VideoCodec, sizes) -> VideoCodec:
  """The codec with black frames of these (frames, height, width) coded, if that takes weights."""
  if not jax.tree.leaves(codec) or not sizes:
    return codec
  return Remembering(codec, {' '.join(map(str, size)): codec.black(*size) for size in sizes})


def without_weights(codec: VideoCodec) -> VideoCodec:
  """The codec with no weights but what it remembers."""
  if isinstance(codec, Remembering):
    return dataclasses.replace(codec, codec=tree.without_leaves(codec.codec))
  return tree.without_leaves(codec)


def wan(config: video_vae.Config) -> video_vae.VideoVAE:
  return video_vae.VideoVAE(config, rngs=nnx.Rngs(0))


def mmaudio(config: audio_vae.Config) -> audio_vae.AudioVAE:
  return audio_vae.AudioVAE(config, rngs=nnx.Rngs(0))


VIDEO = {
  'dct': kinds.Kind(dct.DctConfig, dct.DctVideo),
  'wan2.1': kinds.Kind(video_vae.Config, wan),
  'wan2.2': kinds.Kind(video_vae.Config, wan, video_vae.WAN22),
}
AUDIO = {
  'mdct': kinds.Kind(mdct.MdctConfig, mdct.MdctAudio),
  'mmaudio': kinds.Kind(audio_vae.Config, mmaudio),
}


def build_video(cfg: Mapping) -> VideoCodec:
  """The video codec of a config node: `name`, one of VIDEO, and fields of its Config.

  Weights are shapes: sr4/convert/weights.py reads them.

  Raises:
    ConfigError: no such name, or fields that its Config does not have or take.
  """
  return kinds.build(VIDEO, cfg, 'config.video_codec')


def build_audio(cfg: Mapping) -> AudioCodec:
  """The same for sound, one of AUDIO."""
  return kinds.build(AUDIO, cfg, 'config.audio_codec')
