"""Rows to one Clips.  Which fields a training has depends on the bucket alone, never on its rows:
every batch of a bucket is the same program on every host."""

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


@dataclasses.dataclass(frozen=True)
class Fields:
  """Which fields there are, beside those that follow from the Size."""

  known: tuple[int, int] | None = None  # sides of the masks, (1, 1) where they are of whole frames
  heard: bool = False
  clean: bool = False
  latents: Latents = Latents()  # made ahead, as shapes without rows: their media are not there
  without: tuple[str, ...] = ()  # of 'frames', 'samples', 'low': nobody gives any


def fields(named, size: Size, latents: Latents = Latents()) -> Fields:
  """Of a bucket with these tasks."""
  doing = [tasks.TASKS[name] for name in named]
  known = None
  if masked := [task for task in doing if task.known]:
    known = (size.height, size.width) if any(task.regions for task in masked) else (1, 1)
  return Fields(known, clean=any(any(task.clean) for task in doing), latents=latents)


def fields_of(rows) -> Fields:
  """Of rows that no bucket has drawn: what any of them gives."""
  masks = [row.known.shape[1:] for row in rows if row.known is not None]
  given = lambda name: next((x for row in rows if (x := getattr(row, name)) is not None), None)
  made = lambda name: next(
    (x for row in rows if (x := getattr(row.latents, name)) is not None), None
  )
  like = lambda x: None if x is None else jax.ShapeDtypeStruct(x.shape, np.float32)
  return Fields(
    max(masks, default=None),
    given('heard') is not None,
    any(any(row.clean) for row in rows),
    Latents(**{name: like(made(name)) for name in Latents.__match_args__}),
    tuple(name for name in ('frames', 'samples', 'low') if given(name) is None),
  )


def shapes(rows: int, size: Size, has: Fields, text, channels: int) -> Clips:
  """The Clips of so many rows, as shapes and dtypes.

  Args:
    text: shapes of what the text encoder reads, and of which tokens there are; channels: of the
      sound.
  """
  array = lambda shape, dtype: jax.ShapeDtypeStruct((rows, *shape), dtype)
  some = lambda count, shape, dtype: array((count, *shape), dtype) if count else None

  def media(name, made, *args):
    return some(*args) if made is None and name not in has.without else None

  sides, made = (size.height, size.width), has.latents
  picture, both = (*sides, 3), AV(array((), bool), array((), bool))
  keyframes = low = None
  if size.keyframes:
    high = tuple(side * size.keyframe_scale for side in sides)
    keyframes = Keyframes(
      media('frames', made.keyframes, size.keyframes, (*high, 3), np.uint8),
      array((size.keyframes,), np.int32),
    )
  if size.low:
    small = size.low.height, size.low.width, 3
    low = media('low', made.low, size.low.frames, small, np.uint8)
    if size.low.keyframes:
      keyframes = Keyframes(None, array((size.low.keyframes,), np.int32))
  references = References(
    media('images', made.images, size.reference_images, picture, np.uint8),
    some(size.reference_images, (), bool),
    media('clip', made.clip, size.reference_frames, picture, np.uint8),
    some(size.reference_frames, (), bool),
    media('sound', made.sound, size.reference_samples, (channels,), np.float32),
    some(size.reference_samples, (), bool),
  )
  return Clips(
    media('frames', made.video, size.frames, picture, np.uint8),
    media('samples', made.audio, size.samples, (channels,), np.float32),
    has.known and array((size.frames, *has.known), bool),
    *text,
    both,
    both if has.clean else None,
    keyframes,
    references if jax.tree.leaves(references) else None,
    jax.tree.map(lambda x: array(x.shape, x.dtype), made),
    low,
    array((size.samples,), bool) if has.heard and size.samples else None,
  )


def collate(rows, size: Size, has: Fields, text, text_valid, channels: int) -> Clips:
  """Rows in one Clips; what a row lacks is empty and marked so."""
  there = lambda of: lambda row: None if of(row) is None else np.ones(len(of(row)), bool)
  given = lambda of: lambda row: of(row) is not None
  images, clip, sound = (lambda r: r.images), (lambda r: r.clip), (lambda r: r.sound)
  of = Clips(
    lambda r: r.frames,
    lambda r: r.samples,
    lambda r: r.known,
    lambda r: None,
    lambda r: None,
    AV(given(lambda r: r.frames), given(lambda r: r.samples)),
    AV(lambda r: r.clean.video, lambda r: r.clean.audio),
    Keyframes(lambda r: r.keyframes, lambda r: r.at),
    References(images, there(images), clip, there(clip), sound, there(sound)),
    Latents(*(lambda r, name=name: getattr(r.latents, name) for name in Latents.__match_args__)),
    lambda r: r.low,
    lambda r: r.heard,
  )
  like = shapes(len(rows), size, has, (None, None), channels)
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
