"""What a Refiner is told of a clip: the low one, enlarged, with what is known in its place (4.5).

  I  the low clip's latents between which is interpolated; over them the latents of keyframes; over
     these, where nothing is to change, the latents of a source
  M  the share of the pixels under a latent that are known as they are to be: of a keyframe its one
     frame, of a source all

I and M stand where those of Eq. 7 do, so the video model's weights fit.
"""

import jax
import jax.numpy as jnp
import numpy as np

from sr4.core.batch import Latents
from sr4.core.batch import Segment
from sr4.core.batch import Size
from sr4.core.sharding import on_rows
from sr4.core.sharding import over_rows
from sr4.flow import segments


def video(codec, size: Size, patch, latents: Latents, at=None, known=None) -> Segment:
  """The large clip of a Refiner.

  Args:
    latents: `low`; `keyframes`, [b k h w c], where the Size has any; `video`, the source, [b t h w
      c], where any is known.
    at: int [b k], which frames of the low clip the keyframes are; -1: none.
    known: bool [b T H W] or [b T 1 1], of the large clip.
  """
  grid = codec.latent_shape(size.frames, size.height, size.width)[:3]
  seconds, factor = codec.time_factor / size.fps, codec.time_factor

  def tell(low, at, keyframes, source, known):
    latent = enlarged(low.astype(jnp.float32), grid)
    mask = jnp.zeros((*latent.shape[:-1], 1))
    if at is not None:
      here = latents_at(at * stride(size), factor)[..., None] == jnp.arange(grid[0])  # [b k t]
      there = jnp.any(here, 1)[..., None, None, None]
      here = here.astype(jnp.float32)
      each = jnp.einsum('bkt,bkhwc->bthwc', here, keyframes, precision='highest')
      share = jnp.where(jnp.arange(grid[0]) == 0, 1.0, 1 / factor)[:, None, None, None]
      latent, mask = jnp.where(there, each, latent), jnp.where(there, share, mask)
    if known is not None:
      share = segments.known_share(known, grid, factor)
      latent, mask = jnp.where(share == 1, source, latent), jnp.maximum(share, mask)
    return jnp.concatenate([latent, mask], -1)

  both = on_rows(tell)(latents.low, at, latents.keyframes, latents.video, known)
  positions = over_rows(segments.video_positions(grid, patch, seconds), len(both))
  return Segment(both[..., :-1], both[..., -1:], positions, segments.everywhere(positions))


def stride(size: Size) -> int:
  """Frames of the large clip to one of the low clip."""
  return (size.frames - 1) // max(size.low.frames - 1, 1)


def latents_at(frames: jax.Array, time_factor: int) -> jax.Array:
  """Which latent lies over a frame; -1 where it is negative: 0, then one for each `time_factor`."""
  return jnp.where(frames < 0, -1, -(-frames // time_factor))


def enlarged(low: jax.Array, grid: tuple[int, int, int]) -> jax.Array:
  """[b t h w c] -> [b *grid c]: linear in time from end to end, and in space from edge to edge."""
  for axis, count in enumerate(grid, 1):
    weights = linear(low.shape[axis], count, ends=axis == 1)
    low = jnp.moveaxis(jnp.tensordot(weights, low, (1, axis), precision='highest'), 0, axis)
  return low


def linear(source: int, target: int, ends: bool) -> np.ndarray:
  """float32 [target source]: weights of linear interpolation.

  Args:
    ends: the first and the last are the same in both; else cells of equal size are, and what lies
      beyond the centre of the last is as there.
  """
  if ends:
    places = np.linspace(0, source - 1, target)
  else:
    places = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
  return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(source))).astype(np.float32)
