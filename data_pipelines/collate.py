"""Rows to one Clips.  Which fields there are depends on the bucket alone, never on its rows: every
batch of a bucket is the same program on every host."""

from collections.abc import Callable

import numpy as np

from data_pipelines import tasks
from sr4.core.av import AV
from sr4.core.batch import Clips
from sr4.core.batch import Keyframes
from sr4.core.batch import References
from sr4.core.batch import Size


def collate(rows, size: Size, named, text, text_valid, channels: int) -> Clips:
  """Rows of a bucket with these tasks; what a row lacks is empty and marked so."""
  sides = (size.height, size.width)
  frames = samples = None
  if size.frames:
    frames = stack(rows, (size.frames, *sides, 3), np.uint8, lambda row: row.frames)
  if size.samples:
    samples = stack(rows, (size.samples, channels), np.float32, lambda row: row.samples)
  has = lambda of: np.array([of(row) is not None for row in rows])
  return Clips(
    frames,
    samples,
    known(rows, size, named),
    text,
    text_valid,
    AV(has(lambda row: row.frames), has(lambda row: row.samples)),
    clean(rows, named),
    keyframes(rows, size),
    references(rows, size, channels),
  )


def known(rows, size: Size, named) -> np.ndarray | None:
  masked = [tasks.TASKS[name] for name in named if tasks.TASKS[name].known]
  if not masked:
    return None
  regions = any(task.regions for task in masked)
  shape = (size.frames, *((size.height, size.width) if regions else (1, 1)))
  return stack(rows, shape, bool, lambda row: row.known)


def clean(rows, named) -> AV | None:
  if not any(any(tasks.TASKS[name].clean) for name in named):
    return None
  return AV(*(np.array([row.clean[i] for row in rows]) for i in range(2)))


def keyframes(rows, size: Size) -> Keyframes | None:
  if not size.keyframes:
    return None
  height, width = size.height * size.keyframe_scale, size.width * size.keyframe_scale
  return Keyframes(
    stack(rows, (size.keyframes, height, width, 3), np.uint8, lambda row: row.keyframes),
    stack(rows, (size.keyframes,), np.int32, lambda row: row.at),
  )


def references(rows, size: Size, channels: int) -> References | None:
  picture, found = (size.height, size.width, 3), []
  for slots, shape, dtype, of in (
    (size.reference_images, picture, np.uint8, lambda row: row.images),
    (size.reference_frames, picture, np.uint8, lambda row: row.clip),
    (size.reference_samples, (channels,), np.float32, lambda row: row.sound),
  ):
    there = lambda row, of=of: None if of(row) is None else np.ones(len(of(row)), bool)
    found.append(stack(rows, (slots, *shape), dtype, of) if slots else None)
    found.append(stack(rows, (slots,), bool, there) if slots else None)
  return None if all(x is None for x in found) else References(*found)


def stack(rows, shape, dtype, of: Callable) -> np.ndarray:
  """[b *shape], each row's array from the start on, zeros after it and where a row has none."""
  out = np.empty((len(rows), *shape), dtype)
  for place, row in zip(out, rows):
    x = of(row)
    length = 0 if x is None else len(x)
    if length:
      place[:length] = x
    place[length:] = 0
  return out
