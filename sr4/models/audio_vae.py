"""MMAudio's 44.1 kHz VAE over log-mel spectra, and with a vocoder: samples <-> latents.

Reference: `diffusers.MMAudioVAE`.  No norms and no biases: every layer keeps the mean square of
what it is given (Karras et al., arXiv 2312.02696).

Letters: b rows, n samples, l latents or spectra, c channels.
"""

import dataclasses
import itertools
import math

from flax import nnx
import jax
import jax.numpy as jnp

from sr4.models import mel as mel_lib
from sr4.models import vocoder as vocoder_lib
from sr4.nn import conv

CLIP = 256.0  # of activations, after each block


@dataclasses.dataclass(frozen=True)
class Config:
  """The released 44.1 kHz VAE and its vocoder."""

  weights: str = ''  # a file or folder; 'random'
  channels: int = 40
  width: int = 512
  multiples: tuple[int, ...] = (
    1,
    2,
    4,
  )  # of the width, level by level; after the first, time halves
  blocks: int = 2  # of a level; the decoder has one more
  bands: int = 128
  sample_rate: int = 44_100  # Hz
  scale: float = 1.0  # latents are the VAE's, times this
  dtype: str = 'float32'
  vocoder: vocoder_lib.Config = dataclasses.field(default_factory=vocoder_lib.Config)

  def __post_init__(self):
    if len(self.multiples) < 2 or min(self.multiples) < 1:
      raise ValueError(f'multiples={self.multiples} must be two levels or more, each at least 1')
    if self.vocoder.bands != self.bands or self.vocoder.hop != mel_lib.HOP:
      raise ValueError(
        f'the vocoder makes {self.vocoder.hop} samples of {self.vocoder.bands} bands; this VAE '
        f'has {mel_lib.HOP} of {self.bands}'
      )
    if not self.scale > 0:
      raise ValueError(f'scale={self.scale} must be above 0')


class AudioVAE(nnx.Module):
  """models/codec.py `AudioCodec` with weights, for one channel."""

  audio_channels = 1

  def __init__(self, config: Config, *, rngs: nnx.Rngs):
    how = dict(dtype=config.dtype, bias=False, rngs=rngs)
    self.config = config
    self.mean, self.std = nnx.Param(jnp.zeros(config.bands)), nnx.Param(jnp.ones(config.bands))
    self.encoder, self.decoder = Encoder(config, how), Decoder(config, how)
    self.vocoder = vocoder_lib.Vocoder(config.vocoder, rngs=rngs)

  @property
  def channels(self) -> int:
    return self.config.channels

  @property
  def sample_rate(self) -> int:
    return self.config.sample_rate

  @property
  def rate(self) -> float:
    return self.sample_rate / (2 * mel_lib.HOP)

  def latent_length(self, samples: int) -> int:
    least = 2 * mel_lib.HOP
    if samples < least:
      raise ValueError(f'{samples} samples are less than the {least} of one latent')
    return samples // mel_lib.HOP // 2

  def encode(self, samples: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """The posterior's mean, or, with a key, a sample of it, times `scale`."""
    mean, log_variance = self.posterior(samples)
    if key is not None:
      mean += jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape)
    return mean * self.config.scale

  def posterior(self, samples: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and log-variance of a normal distribution, fp32 [b l c], of samples [b n 1]."""
    if samples.ndim != 3 or samples.shape[-1] != 1:
      raise ValueError(f'samples are {samples.shape}; they must be [b n 1], of one channel')
    self.latent_length(samples.shape[1])
    mel = mel_lib.spectrum(samples[..., 0], self.config.sample_rate, self.config.bands)
    moments = self.encoder((mel - self.mean[...]) / self.std[...]).astype(jnp.float32)
    mean, log_variance = jnp.split(moments, 2, -1)
    return mean, jnp.clip(log_variance, -30.0, 20.0)

  def mel(self, latents: jax.Array) -> jax.Array:
    """[b l c] -> log-mel spectra, fp32 [b 2l bands]."""
    x = self.decoder(latents.astype(jnp.float32) / self.config.scale).astype(jnp.float32)
    return x * self.std[...] + self.mean[...]

  def decode(self, latents: jax.Array, samples: int | None = None) -> jax.Array:
    if latents.ndim != 3 or latents.shape[-1] != self.channels:
      raise ValueError(f'latents are {latents.shape}; they must be [b l {self.channels}].')
    x = self.vocoder(self.mel(latents))
    if samples is not None:
      x = jnp.pad(x, [(0, 0), (0, max(0, samples - x.shape[1]))])[:, :samples]
    return x[..., None]


def silu(x):
  """Of a normal distribution, the mean square stays 1."""
  return jax.nn.silu(x) / 0.596


def mixed(a, b, t: float = 0.3):
  """a and b in parts 1 - t and t; where they have nothing in common, the mean square stays."""
  return (a + (b - a) * t) / math.hypot(1 - t, t)


def normalized(x, axis: int = -1):
  """Of mean square 1 over an axis; in fp32."""
  y = x.astype(jnp.float32)
  size = jnp.sqrt(jnp.sum(y * y, axis, keepdims=True))
  return (y / (1e-4 + size * x.shape[axis] ** -0.5)).astype(x.dtype)


def clipped(x):
  return jnp.clip(x, -CLIP, CLIP)


class Residual(nnx.Module):
  def __init__(self, inputs: int, outputs: int, how: dict):
    self.conv1 = conv.Conv((3,), inputs, outputs, padding=((1, 1),), **how)
    self.conv2 = conv.Conv((3,), outputs, outputs, padding=((1, 1),), **how)
    self.shortcut = conv.Conv((1,), inputs, outputs, **how) if inputs != outputs else None

  def __call__(self, x):
    x = normalized(x)
    y = self.conv2(silu(self.conv1(silu(x))))
    return mixed(x if self.shortcut is None else self.shortcut(x), y)


class Attention(nnx.Module):
  """Of one head over time."""

  def __init__(self, size: int, how: dict):
    self.qkv = conv.Conv((1,), size, 3 * size, **how)
    self.proj = conv.Conv((1,), size, size, **how)

  def __call__(self, x):
    qkv = self.qkv(x).reshape(*x.shape, 3)  # Side by side for each channel.
    q, k, v = (normalized(qkv[..., i])[:, :, None] for i in range(3))
    y = jax.nn.dot_product_attention(q, k, v)[:, :, 0]
    return mixed(x, self.proj(y))


class Middle(nnx.Module):
  def __init__(self, size: int, how: dict):
    self.before, self.after = (Residual(size, size, how) for _ in range(2))
    self.attention = Attention(size, how)

  def __call__(self, x):
    return clipped(self.after(self.attention(self.before(x))))


class Head(nnx.Module):
  """The last convolution, with a gain that is learnt."""

  def __init__(self, inputs: int, outputs: int, how: dict):
    self.conv = conv.Conv((3,), inputs, outputs, padding=((1, 1),), **how)
    self.gain = nnx.Param(jnp.zeros(()))

  def __call__(self, x):
    return self.conv(silu(x)) * (self.gain[...] + 1).astype(x.dtype)


class Down(nnx.Module):
  """Means of two; the last of an odd number is dropped."""

  def __init__(self, size: int, how: dict):
    self.conv1, self.conv2 = (conv.Conv((1,), size, size, **how) for _ in range(2))

  def __call__(self, x):
    x = self.conv1(x)
    pairs = x[:, : x.shape[1] // 2 * 2].reshape(x.shape[0], -1, 2, x.shape[2])
    return self.conv2(pairs.mean(2))


class Up(nnx.Module):
  """Each twice."""

  def __init__(self, size: int, how: dict):
    self.conv = conv.Conv((3,), size, size, padding=((1, 1),), **how)

  def __call__(self, x):
    return self.conv(jnp.repeat(x, 2, 1))


class Level(nnx.Module):
  def __init__(self, widths: list[int], change, how: dict):
    self.blocks = nnx.List([Residual(i, o, how) for i, o in itertools.pairwise(widths)])
    self.change = change

  def __call__(self, x):
    for block in self.blocks:
      x = clipped(block(x))
    return x if self.change is None else self.change(x)


class Encoder(nnx.Module):
  def __init__(self, c: Config, how: dict):
    widths = [c.width, *(c.width * m for m in c.multiples)]
    self.conv_in = conv.Conv((3,), c.bands, c.width, padding=((1, 1),), **how)
    self.levels = nnx.List(
      [
        Level([i, *[o] * c.blocks], Down(o, how) if level == 0 else None, how)
        for level, (i, o) in enumerate(itertools.pairwise(widths))
      ]
    )
    self.middle, self.head = Middle(widths[-1], how), Head(widths[-1], 2 * c.channels, how)

  def __call__(self, x):
    x = self.conv_in(x)
    for level in self.levels:
      x = level(x)
    return self.head(self.middle(x))


class Decoder(nnx.Module):
  """The encoder's levels in the other order."""

  def __init__(self, c: Config, how: dict):
    widths = [c.width * m for m in (c.multiples[-1], *c.multiples[::-1])]
    second = len(c.multiples) - 2  # the level that is the encoder's second
    self.conv_in = conv.Conv((3,), c.channels, widths[0], padding=((1, 1),), **how)
    self.middle = Middle(widths[0], how)
    self.levels = nnx.List(
      [
        Level([i, *[o] * (c.blocks + 1)], Up(o, how) if level == second else None, how)
        for level, (i, o) in enumerate(itertools.pairwise(widths))
      ]
    )
    self.head = Head(widths[-1], c.bands, how)

  def __call__(self, x):
    x = self.middle(self.conv_in(x))
    for level in self.levels:
      x = level(x)
    return self.head(x)
