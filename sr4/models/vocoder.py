"""BigVGAN-v2: log-mel spectra to samples.  Reference: `diffusers.MMAudioVocoder`.

Every nonlinearity runs at twice the rate and is filtered before and after, so that what it makes
above half the rate does not fold back.
"""

import dataclasses
import functools
import itertools
import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from sr4.nn import conv

TAPS = 12  # of the filters around a nonlinearity


@dataclasses.dataclass(frozen=True)
class Config:
  """The released 44.1 kHz, 128 bands, 512 samples a spectrum."""

  weights: str = ''  # a file or folder; 'random'
  bands: int = 128
  width: int = 1536  # of the first stage; each halves it
  rates: tuple[int, ...] = (8, 4, 2, 2, 2, 2)  # samples for one, stage by stage
  windows: tuple[int, ...] = (3, 7, 11)  # of the blocks of a stage, side by side
  dilations: tuple[int, ...] = (1, 3, 5)  # of a block's convolutions, one after another
  dtype: str = 'float32'

  def __post_init__(self):
    if min(self.rates, default=0) < 2:
      raise ValueError(f'rates={self.rates} must be one or more, each at least 2')
    if self.width % 2 ** len(self.rates):
      raise ValueError(f'width={self.width} cannot be halved {len(self.rates)} times')
    if bad := [window for window in self.windows if window % 2 == 0]:
      raise ValueError(f'windows {bad} must be odd')

  @property
  def hop(self) -> int:
    """Samples of a spectrum."""
    return math.prod(self.rates)


class Vocoder(nnx.Module):
  def __init__(self, config: Config, *, rngs: nnx.Rngs):
    how = dict(dtype=config.dtype, rngs=rngs)
    self.config = config
    self.conv_in = conv.Conv((7,), config.bands, config.width, padding=((3, 3),), **how)
    widths = [config.width >> i for i in range(len(config.rates) + 1)]
    self.stages = nnx.List(
      [
        Stage(rate, inputs, outputs, config, how)
        for rate, (inputs, outputs) in zip(config.rates, itertools.pairwise(widths))
      ]
    )
    self.snake_out = Snake(widths[-1])
    self.conv_out = conv.Conv((7,), widths[-1], 1, padding=((3, 3),), bias=False, **how)

  def __call__(self, mel: jax.Array) -> jax.Array:
    """[b l bands] -> fp32 [b l * hop] in [-1, 1]."""
    x = self.conv_in(mel)
    for stage in self.stages:
      x = stage(x)
    return jnp.clip(self.conv_out(self.snake_out(x))[..., 0].astype(jnp.float32), -1, 1)


class Stage(nnx.Module):
  """More samples of half the width, then the mean of blocks that see more and less."""

  def __init__(self, rate: int, inputs: int, outputs: int, config: Config, how: dict):
    self.up = conv.Transposed(2 * rate, rate, inputs, outputs, **how)
    self.blocks = nnx.List([Block(outputs, n, config.dilations, how) for n in config.windows])

  def __call__(self, x):
    x = self.up(x)
    return sum(block(x) for block in self.blocks) / len(self.blocks)


class Block(nnx.Module):
  def __init__(self, size: int, window: int, dilations: tuple[int, ...], how: dict):
    def layer(dilation):
      reach = dilation * (window - 1) // 2
      return conv.Conv(
        (window,), size, size, padding=((reach, reach),), dilation=(dilation,), **how
      )

    self.wide = nnx.List([layer(dilation) for dilation in dilations])
    self.narrow = nnx.List([layer(1) for _ in dilations])
    self.snakes = nnx.List([Snake(size) for _ in range(2 * len(dilations))])

  def __call__(self, x):
    for i, (wide, narrow) in enumerate(zip(self.wide, self.narrow)):
      x = x + narrow(self.snakes[2 * i + 1](wide(self.snakes[2 * i](x))))
    return x


class Snake(nnx.Module):
  """x + sin^2(e^a x) / e^b per channel, at twice the rate."""

  def __init__(self, size: int):
    self.alpha, self.beta = nnx.Param(jnp.zeros(size)), nnx.Param(jnp.zeros(size))

  def __call__(self, x: jax.Array) -> jax.Array:
    """[b l c] -> [b l c], the same dtype; fp32 within."""
    alpha, beta = jnp.exp(self.alpha[...]), jnp.exp(self.beta[...])
    bent = lambda x: x + jnp.sin(alpha * x) ** 2 / (beta + 1e-9)
    # One filter serves both ways.  A sample between two others, or in their place, sees 6 of them.
    even, odd = np.float32(lowpass()[0::2]), np.float32(lowpass()[1::2])
    count, reach = x.shape[1], TAPS // 4
    y = jnp.pad(x.astype(jnp.float32), [(0, 0), (reach, reach), (0, 0)], mode='edge')
    up = lambda taps, at: 2 * shifted(y, taps[::-1], at, count)
    first, second = bent(up(odd, 0)), bent(up(even, 1))
    first, second = jax.lax.optimization_barrier((first, second))  # Sines are not made again.
    # On the way down the places beyond the ends repeat the outermost.
    ends = lambda x, end: jnp.repeat(x[:, end : end + 1 or None], reach, 1)
    left, right = ends(first, 0), ends(second, -1)
    first = jnp.concatenate([left[:, : reach - 1], first, right], 1)
    second = jnp.concatenate([left, second, right[:, : reach - 1]], 1)
    y = shifted(second, even, 0, count) + shifted(first, odd, 0, count)
    return y.astype(x.dtype)


def shifted(x: jax.Array, taps: np.ndarray, at: int, count: int) -> jax.Array:
  """sum_i taps[i] x[at + i + j] for j below count."""
  return sum(float(tap) * x[:, at + i : at + i + count] for i, tap in enumerate(taps))


@functools.cache
def lowpass() -> np.ndarray:
  """fp64 [TAPS], of sum 1: a sinc to half the band in Kaiser's window, 0.3 of it to fall."""
  attenuation = 2.285 * (TAPS // 2 - 1) * np.pi * 4 * 0.3 + 7.95  # dB
  beta = 0.1102 * (attenuation - 8.7)  # Kaiser's rule above 50 dB
  at = np.arange(TAPS) - TAPS / 2 + 0.5
  taps = np.sinc(at / 2) * np.kaiser(TAPS, beta)
  return taps / taps.sum()
