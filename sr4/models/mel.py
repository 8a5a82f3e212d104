"""Log-mel spectra, as MMAudio's VAE is trained on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

WINDOW, HOP = 2048, 512  # samples
FLOOR = 1e-5  # of a band's magnitude


def spectrum(samples: jax.Array, sample_rate: int, bands: int) -> jax.Array:
  """Natural logarithms of the bands' magnitudes: fp32 [b n] in [-1, 1] -> [b n // HOP bands]."""
  x = jnp.clip(samples.astype(jnp.float32), -1, 1)
  x = jnp.pad(x, [(0, 0), ((WINDOW - HOP) // 2,) * 2], mode='reflect')
  count = (x.shape[1] - WINDOW) // HOP + 1
  hops = x[:, : (count - 1) * HOP + WINDOW].reshape(x.shape[0], -1, HOP)
  parts = np.float32(window()).reshape(-1, HOP)
  frames = jnp.stack([hops[:, i : i + count] * part for i, part in enumerate(parts)], 2)
  z = jnp.fft.rfft(frames.reshape(x.shape[0], count, WINDOW))
  magnitude = jnp.sqrt(z.real**2 + z.imag**2 + 1e-9)
  weights = np.float32(filters(sample_rate, bands))
  mel = jnp.einsum('blf,kf->blk', magnitude, weights, precision=jax.lax.Precision.HIGHEST)
  return jnp.log(jnp.maximum(mel, FLOOR))


def window() -> np.ndarray:
  """Hann's, periodic."""
  return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)


@functools.cache
def filters(sample_rate: int, bands: int) -> np.ndarray:
  """fp64 [bands WINDOW / 2 + 1]: triangles of equal area, evenly on Slaney's scale, to half the
  rate; as librosa.filters.mel."""
  edges = to_hertz(np.linspace(0, to_mel(sample_rate / 2), bands + 2))
  bins = np.linspace(0, sample_rate / 2, WINDOW // 2 + 1)
  low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
  triangles = np.minimum((bins - low) / (middle - low), (high - bins) / (high - middle))
  return np.maximum(triangles, 0) * 2 / (high - low)


# Slaney's scale: 15 mel are 1 kHz, and linear below; above it, 27 mel are a factor of 6.4.


def to_mel(hertz):
  return np.where(
    hertz < 1000, hertz * 15 / 1000, 15 + 27 * np.log(np.maximum(hertz, 1) / 1000) / np.log(6.4)
  )


def to_hertz(mel):
  return np.where(mel < 15, mel * 1000 / 15, 1000 * 6.4 ** ((mel - 15) / 27))
