"""What every video codec asks of the frames that it is given."""

import jax
import jax.numpy as jnp

BLACK = -1.0  # Pixels are in [-1, 1].


def latent_shape(codec, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
  """(t, h, w, c) of a causal codec's latents; ValueError where the sizes do not divide."""
  p, s = codec.time_factor, codec.space_factor
  check_size('frames', frames, p, first=1)
  check_size('height', height, s)
  check_size('width', width, s)
  return 1 + (frames - 1) // p, height // s, width // s, codec.channels


def check_size(name: str, value: int, factor: int, first: int = 0):
  """ValueError unless value = first + k * factor, k >= 0 (k >= 1 where `first` is 0)."""
  least = first or factor
  if value >= least and (value - first) % factor == 0:
    return
  below = first + (value - first) // factor * factor
  nearest = f'{below} or {below + factor}' if below >= least else f'{least}'
  rule = f'1 + a multiple of {factor}' if first else f'a positive multiple of {factor}'
  raise ValueError(f'{name} is {value!r}; it must be {rule}: {nearest}.')


def check_frames(codec, frames: jax.Array):
  """ValueError unless they are [b T H W 3] of sizes that divide."""
  if frames.ndim != 5 or frames.shape[-1] != 3:
    raise ValueError(f'frames are {frames.shape}; they must be [b T H W 3].')
  latent_shape(codec, *frames.shape[1:4])


def check_latents(codec, latents: jax.Array):
  """ValueError unless they are [b t h w c] of the codec's channels."""
  if latents.ndim != 5 or latents.shape[-1] != codec.channels:
    raise ValueError(f'latents are {latents.shape}; they must be [b t h w {codec.channels}].')


def to_float(pixels: jax.Array) -> jax.Array:
  """Bytes to [-1, 1] in fp32; what is float is there already."""
  x = pixels / 127.5 - 1 if pixels.dtype == jnp.uint8 else pixels
  return x.astype(jnp.float32)
