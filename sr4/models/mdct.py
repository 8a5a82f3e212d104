"""An audio codec without weights: the lowest coefficients of a lapped orthonormal transform.

What it loses is known beforehand, and nothing is trained, fitted or downloaded.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from sr4.models import transform


@dataclasses.dataclass(frozen=True)
class MdctConfig:
  """`bands` of the `hop` MDCT bands of each ear are kept, up to bands / hop * rate / 2 Hz."""

  sample_rate: int = 16_000  # Hz.
  audio_channels: int = 2
  hop: int = 256  # Samples a latent.
  bands: int = 64
  floor: float = 1e-3  # Amplitude, full scale 1, below which latents grow linearly with loudness.

  def __post_init__(self):
    if self.audio_channels not in (1, 2):
      raise ValueError(f'audio_channels is {self.audio_channels!r}; it must be 1 or 2.')
    if self.hop < 2 or self.hop % 2:
      raise ValueError(
        f'hop is {self.hop!r}; it must be even, at least 2: the windows of two '
        'latents overlap by half a hop on each side.'
      )
    if not 1 <= self.bands <= self.hop:
      raise ValueError(f'bands is {self.bands!r}; hop {self.hop} has 1 to {self.hop} bands.')
    if not self.floor > 0:
      raise ValueError(f'floor is {self.floor!r}; it must be above 0, for example 1e-3.')


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class MdctAudio:
  """MDCT with a sine window, mid/side for stereo, smooth square-root companding.

  ceil(n / hop) latents: latent i is centred on samples [i hop, (i+1) hop) and sees hop / 2 more on
  each side, which is its look-ahead.  Outside the clip there is nothing to overlap with, so the
  first and the last window have a hard edge: no fade, no extra latent.  Channels are the bands of
  mid, then the bands of side.
  """

  config: MdctConfig

  @property
  def channels(self) -> int:
    return self.config.audio_channels * self.config.bands

  @property
  def sample_rate(self) -> int:
    return self.config.sample_rate

  @property
  def audio_channels(self) -> int:
    return self.config.audio_channels

  @property
  def rate(self) -> float:
    return self.config.sample_rate / self.config.hop

  def latent_length(self, samples: int) -> int:
    if samples < 1:
      raise ValueError(f'samples is {samples!r}; a clip has at least 1.')
    return -(-samples // self.config.hop)

  def encode(self, samples: jax.Array) -> jax.Array:
    if samples.ndim != 3 or samples.shape[-1] != self.audio_channels:
      raise ValueError(f'samples are {samples.shape}; they must be [b n {self.audio_channels}].')
    n, hop = samples.shape[1], self.config.hop
    l = self.latent_length(n)
    x = jnp.pad(samples.astype(jnp.float32), ((0, 0), (0, l * hop - n), (0, 0)))
    x = transform.split(_mid_side(x), 1, hop)
    analysis, _, scale = _mdct_weights(self.config)
    x = transform.product('blia,if->blaf', _lap(x, +1), analysis)
    return transform.merge(_compand(x, self.config.floor) / scale, 2)

  def decode(self, latents: jax.Array, samples: int | None = None) -> jax.Array:
    if latents.ndim != 3 or latents.shape[-1] != self.channels:
      raise ValueError(f'latents are {latents.shape}; they must be [b l {self.channels}].')
    l, hop = latents.shape[1], self.config.hop
    n = l * hop if samples is None else samples
    if self.latent_length(n) != l:
      raise ValueError(
        f'samples is {samples!r}; {l} latents of hop {hop} hold {(l - 1) * hop + 1} to {l * hop}.'
      )
    _, synthesis, scale = _mdct_weights(self.config)
    x = transform.split(latents.astype(jnp.float32), 2, self.config.bands) * scale
    x = transform.product('blaf,if->blia', _expand(x, self.config.floor), synthesis)
    return _mid_side(transform.merge(_lap(x, -1), 1))[:, :n]


def _mid_side(x: jax.Array) -> jax.Array:
  """(left, right) <-> (left + right, left - right) / sqrt 2, its own inverse; mono stays."""
  if x.shape[-1] == 1:
    return x
  left, right = x[..., :1], x[..., 1:]
  return jnp.concatenate([left + right, left - right], axis=-1) * np.float32(np.sqrt(0.5))


def _lap(x: jax.Array, direction: int) -> jax.Array:
  """The MDCT's windowing and folding, [b l hop a] -> same; +1 forward, -1 its inverse.

  At every boundary of two blocks the sample m after it and the sample m before it are rotated by
  the angle of the window: (after', before') = (w after + v before, w before - v after), with
  w^2 + v^2 = 1 (Princen-Bradley).  A DCT-IV of the result is the MDCT.
  """
  half = x.shape[2] // 2
  angle = np.pi / (4 * half) * (half + np.arange(half) + 0.5)[:, None]
  w, v = np.float32(np.sin(angle)), direction * np.float32(np.cos(angle))
  before, after = x[:, :-1, half:][:, :, ::-1], x[:, 1:, :half]
  after, before = w * after + v * before, (w * before - v * after)[:, :, ::-1]
  starts = jnp.concatenate([x[:, :1, :half], after], axis=1)
  ends = jnp.concatenate([before, x[:, -1:, half:]], axis=1)
  return jnp.concatenate([starts, ends], axis=2)


@functools.cache
def _mdct_weights(config: MdctConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Analysis and synthesis (DCT-IV), f32 [hop, bands], and the scales of the latents [ears, bands].

  Between the two a full-scale tone has size 1 at any hop, so one floor and one set of scales serve
  all: orthonormal, its energy in a block would be hop / 2.
  """
  hop, i, k = config.hop, np.arange(config.hop)[:, None], np.arange(config.bands)
  wave = np.cos(np.pi / hop * (i + 0.5) * (k + 0.5))
  # The typical size of a companded coefficient: flat, then 1 / f from 500 Hz (companding halves
  # the slope), and about half as much in side as in mid.  The numbers are SR4-World's, rounded.
  hertz = (k + 0.5) * config.sample_rate / (2 * hop)
  side = np.array([1, 0.55])[: config.audio_channels, None]
  scale = 0.13 * side / np.hypot(1, hertz / 500)
  return np.float32(wave * 2 / hop), np.float32(wave), np.float32(scale)


def _compand(x: jax.Array, floor: float) -> jax.Array:
  """x / (x^2 + floor^2)^(1/4): the signed square root, but smooth at 0, with slope floor^-1/2."""
  return x * (x * x + floor * floor) ** -0.25


def _expand(y: jax.Array, floor: float) -> jax.Array:
  """The inverse of `_compand`: y^2 is a root of a quadratic in x^2."""
  y2 = y * y
  return y * jnp.sqrt((y2 + jnp.sqrt(y2 * y2 + 4 * floor * floor)) / 2)
