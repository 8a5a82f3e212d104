"""Codecs: frames and samples to latents and back; the interface, and two codecs without weights.

`DctVideo` and `MdctAudio` keep the lowest coefficients of an orthonormal transform, so what they
lose is known beforehand and nothing is trained, fitted or downloaded.  Codecs of the same interface
with weights (the Wan2.1 VAE, the MMAudio VAE) take their place by configuration.

A codec is a pytree: weights are its leaves, and the two here have none, so that
`jax.jit(lambda codec, x: codec.encode(x))` takes every codec.
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import ClassVar
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

BLACK = -1.0  # Pixels are in [-1, 1].


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


# Video.

# Rows: luma, red against blue, green against magenta.  Orthonormal, and grey has no chroma.
_OPPONENT = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])


@dataclasses.dataclass(frozen=True)
class DctConfig:
  """`channels` of the 4 * s^2 * 3 coefficients of a group are kept; to keep all is lossless."""

  space_factor: int = 4
  channels: int = 32
  mean: float = -0.6  # The grey, in [-1, 1], whose latent is 0: SR4-World's average pixel.

  def __post_init__(self):
    if self.space_factor not in (1, 2, 4, 8, 16):
      raise ValueError(f'space_factor is {self.space_factor!r}; it must be one of 1, 2, 4, 8, 16.')
    most = 12 * self.space_factor**2
    if not 1 <= self.channels <= most:
      raise ValueError(
        f'channels is {self.channels!r}; 4 frames x {self.space_factor} x {self.space_factor} '
        f'pixels x 3 colours have 1 to {most} coefficients to keep.'
      )


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class DctVideo:
  """Orthonormal DCT over groups of 4 frames x s x s pixels x 3 opponent colours.

  The first frame is a group of its own, as if it had stood still for 4 frames.
  """

  config: DctConfig
  time_factor: ClassVar[int] = 4

  @property
  def channels(self) -> int:
    return self.config.channels

  @property
  def space_factor(self) -> int:
    return self.config.space_factor

  def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
    p, s = self.time_factor, self.space_factor
    _check_size('frames', frames, p, first=1)
    _check_size('height', height, s)
    _check_size('width', width, s)
    return 1 + (frames - 1) // p, height // s, width // s, self.channels

  def encode(self, frames: jax.Array) -> jax.Array:
    if frames.ndim != 5 or frames.shape[-1] != 3:
      raise ValueError(f'frames are {frames.shape}; they must be [b T H W 3].')
    self.latent_shape(*frames.shape[1:4])  # Raises where they do not divide.
    analysis, _ = _dct_weights(self.config)
    p, s = self.time_factor, self.space_factor

    def part(x, weights):
      x = x / 127.5 - 1 if x.dtype == jnp.uint8 else x
      x = x.astype(jnp.float32) - self.config.mean
      for axis in (1, 3):  # [b h s w s 3]
        x = _split(x, axis, s)
      return _einsum('bhjwkr,jkrc->bhwc', x, weights)

    def group(i):
      """Latent i, of frames 4i - 3 .. 4i; the first frame stands for those before it.

      Each frame is read where it lies: to gather or to join them would copy the whole clip.
      """
      at = [jnp.maximum(p * i + k - p + 1, 0) for k in range(p)]
      read = lambda k: jax.lax.dynamic_index_in_dim(frames, k, 1, keepdims=False)
      return sum(part(read(k), weights) for k, weights in zip(at, analysis))

    # One after another: in float the pixels of a long clip are larger than the model.
    latents = jax.lax.map(group, jnp.arange(1 + (frames.shape[1] - 1) // p))
    return jnp.moveaxis(latents, 0, 1)

  def decode(self, latents: jax.Array) -> jax.Array:
    if latents.ndim != 5 or latents.shape[-1] != self.channels:
      raise ValueError(f'latents are {latents.shape}; they must be [b t h w {self.channels}].')
    p = self.time_factor
    _, synthesis = _dct_weights(self.config)
    x = _einsum('bthwc,ijkrc->btihjwkr', latents.astype(jnp.float32), synthesis)
    for axis in (5, 3, 1):
      x = _merge(x, axis)
    # The closest still frame to the first group is its mean, whatever a model wrote there.
    x = jnp.concatenate([x[:, :p].mean(axis=1, keepdims=True), x[:, p:]], axis=1)
    return jnp.clip(x + self.config.mean, -1, 1)

  def black(self, frames: int, height: int, width: int) -> jax.Array:
    s = self.space_factor
    site = self.encode(jnp.full((1, 1, s, s, 3), BLACK))[0, 0, 0, 0]
    return jnp.broadcast_to(site, self.latent_shape(frames, height, width))


def _check_size(name: str, value: int, factor: int, first: int = 0):
  """ValueError unless value = first + k * factor, k >= 0 (k >= 1 where `first` is 0)."""
  least = first or factor
  if value >= least and (value - first) % factor == 0:
    return
  below = first + (value - first) // factor * factor
  nearest = f'{below} or {below + factor}' if below >= least else f'{least}'
  rule = f'1 + a multiple of {factor}' if first else f'a positive multiple of {factor}'
  raise ValueError(f'{name} is {value!r}; it must be {rule}: {nearest}.')


def _dct(n: int) -> np.ndarray:
  """Orthonormal DCT-II, [n frequencies, n places]."""
  k, i = np.arange(n)[:, None], np.arange(n)
  return np.where(k, np.sqrt(2 / n), np.sqrt(1 / n)) * np.cos(np.pi / n * (i + 0.5) * k)


def _dct_order(config: DctConfig) -> tuple[np.ndarray, np.ndarray]:
  """([4, channels] frequencies (t, y, x, colour) of the channels, [channels] their cost), cheapest
  first; chroma loses ties.

  cost = (s / 8) t + y + x + 1.5 chroma.  Frequencies are t / 8 cycles a frame and x / 2s cycles a
  pixel, so time and space weigh the same for what moves 2 pixels a frame.  Of the closed-form
  orders tried on SR4-World (weighted sums, squares, products; 32x32 and 64x64, s = 4 and 8, 16 to
  32 channels) its mean PSNR is within 0.01 dB of the best, and 0.26 dB below an order sorted by
  measured energy for each of these settings.
  """
  s = config.space_factor
  t, y, x, colour = k = np.indices((4, s, s, 3)).reshape(4, -1)
  cost = s / 8 * t + y + x + 1.5 * (colour > 0)
  kept = np.lexsort((x, y, t, colour, cost))[: config.channels]
  return k[:, kept], cost[kept]


@functools.cache
def _dct_weights(config: DctConfig) -> tuple[np.ndarray, np.ndarray]:
  """Analysis and synthesis, each f32 [4 s s 3 c]: the basis over and times the channels' scales."""
  s = config.space_factor
  (t, y, x, colour), _ = _dct_order(config)
  basis = np.einsum('ci,cj,ck,cr->ijkrc', _dct(4)[t], _dct(s)[y], _dct(s)[x], _OPPONENT[colour])
  # The typical size of a coefficient: 2s for contrast 1, a power law in frequency as in natural
  # images, a little under half of it in colour.  The numbers are SR4-World's, rounded.
  falls = (1 + 2 * (s / 8 * t + y + x)) ** -1.3
  scale = 2 * s * 0.45 * falls * np.where(colour > 0, 0.45, 1)
  return np.float32(basis / scale), np.float32(basis * scale)


# Audio.


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
    x = _split(_mid_side(x), 1, hop)
    analysis, _, scale = _mdct_weights(self.config)
    x = _einsum('blia,if->blaf', _lap(x, +1), analysis)
    return _merge(_compand(x, self.config.floor) / scale, 2)

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
    x = _split(latents.astype(jnp.float32), 2, self.config.bands) * scale
    x = _einsum('blaf,if->blia', _expand(x, self.config.floor), synthesis)
    return _mid_side(_merge(_lap(x, -1), 1))[:, :n]


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


# Both.


def _split(x: jax.Array, axis: int, size: int) -> jax.Array:
  """One axis to two, [.. n ..] -> [.. n/size size ..]; an Explicit mesh takes one at a time."""
  return x.reshape(*x.shape[:axis], x.shape[axis] // size, size, *x.shape[axis + 1 :])


def _merge(x: jax.Array, axis: int) -> jax.Array:
  """The axis and the next become one."""
  return x.reshape(*x.shape[:axis], x.shape[axis] * x.shape[axis + 1], *x.shape[axis + 2 :])


def _einsum(equation: str, x: jax.Array, weights: np.ndarray) -> jax.Array:
  """In full fp32: the default of an accelerator is bf16, which would be the larger loss."""
  return jnp.einsum(equation, x, weights, precision=jax.lax.Precision.HIGHEST)


VIDEO = {'dct': (DctConfig, DctVideo)}
AUDIO = {'mdct': (MdctConfig, MdctAudio)}


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
