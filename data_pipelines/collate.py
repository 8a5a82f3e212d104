"""Rows to one Clips.  Which fields there are depends on the bucket alone, never on its rows: every
batch of a bucket is the same program on every host."""

import dataclasses

import jax
import numpy as np

from data_pipelines import memory
from data_pipelines import tasks
from sr4.core.av import AV
from sr4.core.batch import Clips
from sr4.core.batch import Keyframes
from sr4.core.batch import Latents
from sr4.core.batch import References
from sr4.core.batch import Size


def shapes(
  rows: int, size: Size, named, text, channels: int, latents: Latents | None = None
) -> Clips:
  """The Clips of so many rows of a bucket with these tasks, as shapes and dtypes.

  Args:
    text: shapes of what the text encoder reads, and of which tokens there are; channels: of the
      sound.
    latents: where these are made ahead, of shapes without rows.
  """
  array = lambda shape, dtype: jax.ShapeDtypeStruct((rows, *shape), dtype)
  some = lambda count, shape, dtype: array((count, *shape), dtype) if count else None
  sides, masked = (size.height, size.width), [t for t in map(tasks.TASKS.get, named) if t.known]
  picture, both = (*sides, 3), AV(array((), bool), array((), bool))
  known = keyframes = None
  if masked:
    known = array((size.frames, *(sides if any(t.regions for t in masked) else (1, 1))), bool)
  if size.keyframes:
    high = tuple(side * size.keyframe_scale for side in sides)
    keyframes = Keyframes(
      array((size.keyframes, *high, 3), np.uint8), array((size.keyframes,), np.int32)
    )
  media = lambda *args: some(*args) if latents is None else None
  low = None
  if size.low:
    low = array((size.low.frames, size.low.height, size.low.width, 3), np.uint8)
    if size.low.keyframes:
      keyframes = Keyframes(None, array((size.low.keyframes,), np.int32))
  references = References(
    media(size.reference_images, picture, np.uint8),
    some(size.reference_images, (), bool),
    media(size.reference_frames, picture, np.uint8),
    some(size.reference_frames, (), bool),
    media(size.reference_samples, (channels,), np.float32),
    some(size.reference_samples, (), bool),
  )
  coded = jax.tree.map(lambda x: array(x.shape, x.dtype), latents)
  return Clips(
    media(size.frames, picture, np.uint8),
    media(size.samples, (channels,), np.float32),
    known,
    *text,
    both,
    both if any(any(tasks.TASKS[name].clean) for name in named) else None,
    keyframes,
    references if jax.tree.leaves(references) else None,
    coded,
    low,
  )


def collate(
  rows, size: Size, named, text, text_valid, channels: int, latents: Latents | None = None
) -> Clips:
  """Rows of a bucket with these tasks; what a row lacks is empty and marked so."""
  there = lambda of: lambda row: None if of(row) is None else np.ones(len(of(row)), bool)
  has = lambda of: lambda row: of(row) is not None
  images, clip, sound = (lambda r: r.images), (lambda r: r.clip), (lambda r: r.sound)
  of = Clips(
    lambda r: r.frames,
    lambda r: r.samples,
    lambda r: r.known,
    lambda r: None,
    lambda r: None,
    AV(has(lambda r: r.frames), has(lambda r: r.samples)),
    AV(lambda r: r.clean.video, lambda r: r.clean.audio),
    Keyframes(lambda r: r.keyframes, lambda r: r.at),
    References(images, there(images), clip, there(clip), sound, there(sound)),
    Latents(*(lambda r, name=name: getattr(r.latents, name) for name in Latents.__match_args__)),
    lambda r: r.low,
  )
  like = shapes(len(rows), size, named, (None, None), channels, latents)
  whole = lambda x: x is None  # A leaf: what the bucket has not.
  made = jax.tree.map(lambda x, f: x and stack(rows, x, f), like, of, is_leaf=whole)
  return dataclasses.replace(made, text=text, text_valid=text_valid)


def stack(rows, like: jax.ShapeDtypeStruct, of) -> np.ndarray:
  """Each row's value from the start on, zeros after it and where a row has none."""
  out = memory.empty(like.shape, like.dtype)
  for i, row in enumerate(rows):
    x = of(row)
    if out.ndim == 1:
      out[i] = x
      continue
    length = 0 if x is None else len(x)
    if length:
      out[i, :length] = x
    out[i, length:] = 0
  return out
