"""From what is given to what the model is told, in torch: sr4/flow/segments.py and refining.py.

Media are one row for all prompts.
"""

import numpy as np
import torch

from sr4.core.av import AV
from sr4.core.batch import Clips
from sr4.core.batch import Condition
from sr4.core.batch import Segment
from sr4.core.batch import Size
from sr4.flow import refining
from sr4.flow import segments
from sr4.torch import codecs
from sr4.torch import media


def condition(of: AV, size: Size, patch, clips: Clips) -> Condition:
  """What the model is told of clips of this size, by these codecs."""
  seen, heard = of
  rows, given = len(clips.text), clips.references
  video = audio = None
  if size.frames:
    pictures = [] if given.images is None else [image[None, None] for image in given.images[0]]
    pictures += [] if given.frames is None else [given.frames]
    video = (before(seen, pictures, size.fps, patch, rows),) if pictures else ()
    at = clips.keyframes and clips.keyframes.at
    if size.low:
      video += (refined(seen, size, patch, rows, clips, at),)
    else:
      video += (clip(seen, size, patch, rows, clips.frames, clips.known),)
    if size.keyframes:
      video += (keyframes(seen, size, patch, rows, at, clips.keyframes.frames, clips.known),)
  if size.samples:
    audio = () if given.samples is None else (voice(heard, given.samples, rows),)
    audio += (sound(heard, size.samples, rows),)
  return Condition(AV(video, audio), clips.text, clips.text_valid, clips.present)


def clip(codec, size: Size, patch, rows: int, frames=None, known=None) -> Segment:
  """The clip: I and M of Eq. 7, all unknown where `known` is None.

  Args:
    frames: uint8 [1 T H W 3]; known: bool [1 T H W], which pixels are given.
  """
  if known is None:
    latent, mask = unknown(codec, size.frames, size.height, size.width)
  else:
    latent, mask = reveal(codec, frames, known)
  places = positions(latent.shape[1:-1], patch, codec.time_factor / size.fps)
  return segment(latent, mask, places, rows)


def keyframes(codec, size: Size, patch, rows: int, at, frames=None, known=None) -> Segment:
  """Frames `at` [k] once more at a higher resolution, each a picture of its own."""
  scale, (height, width) = size.keyframe_scale, segments.keyframe_sides(size)
  shown = []
  for i, frame in enumerate(at):
    if known is None:
      shown.append(unknown(codec, 1, height, width))
      continue
    there = known[:, frame : frame + 1].repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    shown.append(reveal(codec, frames[:, i : i + 1], there))
  latent, mask = (torch.cat(parts, 1) for parts in zip(*shown))
  places = positions(latent.shape[1:-1], patch, 1.0)
  places[:, 0] = np.repeat(np.float32(np.array(at) / size.fps), len(places) // len(at))
  places[:, 1:] = (places[:, 1:] + np.float32(0.5)) / scale - np.float32(0.5)
  return segment(latent, mask, places, rows)


def unknown(codec, frames: int, height: int, width: int):
  """(I, M) where nothing is known, [1 t h w c] and [1 t h w 1]."""
  black = codecs.black(codec, frames, height, width)[None]
  return black, torch.zeros_like(black[..., :1])


def reveal(codec, frames, known):
  """(I, M) of frames, uint8 [1 T H W 3], and of what is given of them, bool [1 T H W]."""
  black, mask = unknown(codec, *frames.shape[1:4])
  shown = torch.where(known[..., None], media.pixels(frames), media.BLACK)
  mask = known_share(known, black.shape[1:4], codec.time_factor).to(black.device)
  return torch.where(mask > 0, codec.encode(shown).to(black.device), black), mask


def known_share(known, grid, time_factor: int):
  """bool [b T H W] -> fp32 [b t h w 1], the share known under each latent."""
  t, h, w = grid
  known = known.float()
  later = known[:, 1:].unflatten(1, (t - 1, time_factor)).mean(2)
  share = torch.cat([known[:, :1], later], 1)
  return share.unflatten(3, (w, -1)).unflatten(2, (h, -1)).mean((3, 5))[..., None]


def before(codec, pictures, fps: float, patch, rows: int) -> Segment:
  """Reference pictures and a clip, uint8 [1 T H W 3] each, as context before the clip."""
  latent = torch.cat([codec.encode(media.pixels(x)) for x in pictures], 1)
  seconds = codec.time_factor / fps
  places = positions(latent.shape[1:-1], patch, seconds)
  places[:, 0] -= np.float32(latent.shape[1] * seconds)
  return segment(latent, torch.ones_like(latent[..., :1]), places, rows, generated=False)


def sound(codec, samples: int, rows: int) -> Segment:
  """The sound that is made."""
  places = np.arange(codec.latent_length(samples), dtype=np.float32)[:, None] / codec.rate
  return segment(None, None, np.float32(places), rows)


def voice(codec, samples, rows: int) -> Segment:
  """A reference sound, [1 n channels], as context before it."""
  latent = codec.encode(samples)
  places = (np.arange(latent.shape[1], dtype=np.float32)[:, None] - latent.shape[1]) / codec.rate
  return segment(latent, None, np.float32(places), rows, generated=False)


def refined(codec, size: Size, patch, rows: int, clips: Clips, at) -> Segment:
  """The large clip of a Refiner; at: [k], which frames of the low one are keyframes."""
  factor, low = codec.time_factor, clips.latents.low.float()
  sides = size.height, size.width
  grid = (1 + (size.frames - 1) // factor, *(side // codec.space_factor for side in sides))
  latent = enlarged(low, grid)
  mask = torch.zeros_like(latent[..., :1])
  for k, frame in enumerate(() if at is None else at):
    here = -(-frame * refining.stride(size) // factor)
    latent[:, here] = clips.latents.keyframes[:, k].float()
    mask[:, here] = 1.0 if here == 0 else 1 / factor
  if clips.known is not None:
    share = known_share(clips.known, grid, factor).to(latent.device)
    source = codec.encode(media.pixels(clips.frames)).to(latent.device)
    latent, mask = torch.where(share == 1, source, latent), torch.maximum(share, mask)
  return segment(latent, mask, positions(grid, patch, factor / size.fps), rows)


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


def segment(latent, mask, places: np.ndarray, rows: int, generated: bool = True) -> Segment:
  """Latents and masks [1 ...] or [b ...], and one list of places [s p], for so many rows."""
  latent, mask = (x if x is None else x.expand(rows, *x.shape[1:]) for x in (latent, mask))
  places = torch.from_numpy(places).expand(rows, *places.shape)
  valid = torch.ones(places.shape[:2], dtype=torch.bool)
  return Segment(latent, mask, places, valid, generated)
