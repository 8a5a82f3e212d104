"""From pictures and sounds to segments, in torch: sr4/flow/segments.py and refining.py."""

import numpy as np
import torch

from sr4.core.batch import Segment
from sr4.flow import refining
from sr4.torch import codecs


def clip(codec, sides, fps: float, patch, rows: int, frames=None, known=None) -> Segment:
  """The clip: I and M of Eq. 7, all unknown where `known` is None.

  Args:
    sides: (T, H, W).
    frames: in [-1, 1], [b T H W 3]; known: bool [b T H W], which pixels are given.
  """
  black = codecs.black(codec, *sides)
  latent, mask = black.expand(rows, *black.shape), torch.zeros(rows, *black.shape[:-1], 1)
  if known is not None:
    shown = codec.encode(torch.where(known[..., None], frames, -1.0)).to(black.device)
    mask = known_share(known, black.shape[:3], codec.time_factor).to(black.device)
    latent = torch.where(mask > 0, shown, latent)
  places = positions(black.shape[:3], patch, codec.time_factor / fps)
  return segment(latent, mask, places)


def known_share(known, grid, time_factor: int):
  """bool [b T H W] -> fp32 [b t h w 1], the share known under each latent."""
  t, h, w = grid
  known = known.float()
  later = known[:, 1:].unflatten(1, (t - 1, time_factor)).mean(2)
  share = torch.cat([known[:, :1], later], 1)
  return share.unflatten(3, (w, -1)).unflatten(2, (h, -1)).mean((3, 5))[..., None]


def pictures(codec, images, fps: float, patch, rows: int) -> Segment:
  """Reference pictures, in [-1, 1] [N H W 3], as context before the clip."""
  latent = torch.cat([codec.encode(image[None, None]) for image in images], 1)
  seconds = codec.time_factor / fps
  places = positions(latent.shape[1:-1], patch, seconds)
  places[:, 0] -= len(images) * seconds
  latent = latent.expand(rows, *latent.shape[1:])
  return segment(latent, torch.ones_like(latent[..., :1]), places, generated=False)


def sound(codec, samples: int, rows: int) -> Segment:
  """The sound that is made."""
  places = np.arange(codec.latent_length(samples), dtype=np.float32)[:, None] / codec.rate
  return segment(None, None, np.float32(places), rows=rows)


def voice(codec, samples, rows: int) -> Segment:
  """A reference sound, [n channels], as context before it."""
  latent = codec.encode(samples[None])
  places = (np.arange(latent.shape[1], dtype=np.float32)[:, None] - latent.shape[1]) / codec.rate
  latent = latent.expand(rows, *latent.shape[1:])
  return segment(latent, None, np.float32(places), generated=False)


def refined(
  codec, sides, fps: float, patch, low, keyframes=None, at=None, stride: int = 1
) -> Segment:
  """The large clip of a Refiner, of sides (T, H, W).

  Args:
    low: latents of the low clip, [b t h w c]; keyframes: [b k h w c], of its frames `at` [k], as
      large as the clip.
    stride: frames of the large clip to one of the low clip.
  """
  factor = codec.time_factor
  grid = (1 + (sides[0] - 1) // factor, *(side // codec.space_factor for side in sides[1:]))
  latent = enlarged(low.float(), grid)
  mask = torch.zeros_like(latent[..., :1])
  for k, frame in enumerate(() if at is None else at):
    here = -(-frame * stride // factor)
    latent[:, here], mask[:, here] = keyframes[:, k], 1.0 if here == 0 else 1 / factor
  return segment(latent, mask, positions(grid, patch, factor / fps))


def enlarged(low, grid):
  """[b t h w c] -> [b *grid c], as refining.enlarged."""
  for axis, count in enumerate(grid, 1):
    weights = refining.linear(low.shape[axis], count, ends=axis == 1)
    weights = torch.from_numpy(weights).to(low.device)
    low = torch.tensordot(weights, low, ([1], [axis])).movedim(0, axis)
  return low


def positions(grid, patch, seconds_per_latent: float) -> np.ndarray:
  """float32 [s 3] of a latent grid: seconds, and rows and columns in patches."""
  t, h, w = (size // step for size, step in zip(grid, patch))
  axes = np.arange(t) * np.float32(patch[0] * seconds_per_latent), np.arange(h), np.arange(w)
  return np.stack(np.meshgrid(*axes, indexing='ij'), -1).reshape(-1, 3).astype(np.float32)


def segment(latent, mask, places: np.ndarray, generated: bool = True, rows: int = 0) -> Segment:
  rows = rows or len(latent)
  places = torch.from_numpy(places).expand(rows, *places.shape)
  valid = torch.ones(places.shape[:2], dtype=torch.bool)
  return Segment(latent, mask, places, valid, generated)
