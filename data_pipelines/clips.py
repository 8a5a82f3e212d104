"""Entries to records: media are cut into clips of one shape, with their masks and references."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
import dataclasses
import errno
import itertools
import math
import re

import numpy as np

from data_pipelines import entries as entries_lib
from data_pipelines import media
from data_pipelines import record as record_lib
from data_pipelines import stills
from data_pipelines.entries import Entry
from data_pipelines.record import Record
from data_pipelines.record import Reference

BRIGHT = 128  # Of a mask, from here on: to be generated.
# What a row's path may do to `open`; other errors are the disk's, and end the run.
UNREADABLE = (
  errno.EISDIR,
  errno.ENOTDIR,
  errno.EACCES,
  errno.EPERM,
  errno.ENAMETOOLONG,
  errno.EINVAL,
)
NAMED = re.compile(r'@(?:image|video|audio)_\d+')


@dataclasses.dataclass(frozen=True)
class Shape:
  """What all clips have in common."""

  height: int
  width: int
  frames: int
  fps: float
  sample_rate: int
  channels: int
  stride: float  # Seconds from one clip to the next.
  reference_size: tuple[int, int]  # Height and width into which references fit.
  reference_seconds: float  # The longest reference.

  @property
  def seconds(self) -> float:
    return self.frames / self.fps

  @property
  def sound(self) -> dict:
    return {'sample_rate': self.sample_rate, 'channels': self.channels}


class Dropped(Exception):
  """Something that is left out: the reason in a word or two, and the details."""

  def __init__(self, reason: str, detail):
    super().__init__(str(detail))
    self.reason = reason


def cut(
  entries: Iterable[Entry], shape: Shape, drop: Callable[[str, str, str], None]
) -> Iterator[Record]:
  """Records of what entries have; what cannot be used goes to drop(id, reason, detail)."""
  for entry in entries:
    made = 0
    try:
      for record in _cut(entry, shape, drop):
        made += 1
        yield record
    except Dropped as e:
      drop(entry.id, e.reason, str(e))
    except FileNotFoundError as e:
      drop(entry.id, 'missing file', str(e))
    except OSError as e:
      if e.errno not in UNREADABLE:
        raise
      drop(entry.id, 'unreadable file', str(e))
    except (media.MediaError, record_lib.RecordError) as e:
      if made:
        drop(entry.id, 'broken after some clips', f'the first {made} are kept: {e}')
      else:
        drop(entry.id, 'broken', str(e))


def _cut(entry: Entry, shape: Shape, drop) -> Iterator[Record]:
  _check(entry)
  references = tuple(itertools.chain(*(_read_reference(r, shape) for r in entry.references)))
  _check_names(entry.captions, references)
  if entry.image:
    yield _picture(entry, shape, references)
    return
  info = media.probe(entry.video or entry.audio)
  if not info.duration:
    raise Dropped('no duration', 'its header does not say how long it is; write it as MP4.')
  stop, tolerance = min(info.duration, entry.end), 0.5 / shape.fps
  for k in itertools.count():
    at = entry.start + k * shape.stride
    if at + shape.seconds > stop + tolerance:  # Pictures are placed to half a frame.
      break
    record = _clip(entry, shape, at, info.start, f'{entry.id}#{k:04d}', references)
    if not (record.has_video or record.has_audio):
      drop(record.id, 'silent', f'nothing is to be heard from {at:g} s on.')
    elif record.mask is not None and not record.mask.any():
      drop(record.id, 'empty mask', f'the mask keeps everything from {at:g} s on.')
    else:
      yield record
  if not k:
    raise Dropped(
      'too short',
      f'{max(0.0, stop - entry.start):.3f} s; {shape.frames} frames at {shape.fps:g} fps last '
      f'{shape.seconds:.3f} s.',
    )


def _check(entry: Entry):
  if entry.fault:
    raise Dropped('bad row', entry.fault)
  if not entry.captions:
    raise Dropped('no caption', 'its caption is empty; fill it in, or give --caption.')
  if not (entry.video or entry.audio or entry.image):
    raise Dropped('bad row', f'none of {entries_lib.MEDIA_COLUMNS} is filled in.')
  if entry.image and (entry.video or entry.audio):
    raise Dropped(
      'bad row',
      f'an image with {"a video" if entry.video else "sound"} is no clip; give it a row of its '
      'own, or make it a reference_image.',
    )
  if entry.video_mask and not (entry.video or entry.image):
    raise Dropped('bad row', 'a video_mask needs a video or an image.')


def _check_names(captions: dict[str, str], references):
  """All captions name all references, and no others: each caption may be the one that is read."""
  names = record_lib.names(references)
  for column, text in captions.items():
    said = set(NAMED.findall(text))
    missing, unknown = [n for n in names if n not in said], sorted(said - set(names))
    if missing:
      raise Dropped(
        'unnamed reference',
        f'{column} does not say {", ".join(missing)}; name each reference in it, e.g. '
        f"'the cat of {missing[0]}'.",
      )
    if unknown:
      has = ', '.join(names) or 'no references'
      raise Dropped('unknown reference', f'{column} says {", ".join(unknown)}; the row has {has}.')


def _picture(entry: Entry, shape: Shape, references) -> Record:
  pixels = media.read_image(entry.image, shape.height, shape.width)[None]
  mask = None
  if entry.video_mask:
    mask = _bright(
      media.read_image(entry.video_mask, shape.height, shape.width, nearest=True)[None]
    )
    if not mask.any():
      raise Dropped('empty mask', 'the mask keeps everything.')
  return Record(
    entry.id, pixels, shape.fps, None, shape.sample_rate, entry.captions, mask, references
  )


def _clip(entry: Entry, shape: Shape, at: float, begin: float, name: str, references) -> Record:
  """The clip `at` seconds after the main stream's beginning, which is at `begin` on its clock."""
  frames, samples, mask = None, None, None
  size = {'height': shape.height, 'width': shape.width, 'fps': shape.fps, 'frames': shape.frames}
  if entry.video:
    clip = media.read(entry.video, **size, **shape.sound, start=begin + at)
    frames, samples = clip.frames, clip.samples
  if entry.audio:
    count = media.audio_length(shape.frames, shape.fps, shape.sample_rate)
    start = at if entry.video else begin + at
    samples = media.read_audio(entry.audio, **shape.sound, count=count, start=start)
    if samples is None:
      raise Dropped('bad row', f'{entry.audio} has no audio stream; leave the column empty.')
  if entry.video_mask and entry.video_mask.suffix.lower() in entries_lib.IMAGE:
    still = media.read_image(entry.video_mask, shape.height, shape.width, nearest=True)
    mask = _bright(np.broadcast_to(still, frames.shape))
  elif entry.video_mask:
    start = media.probe(entry.video_mask).start + at
    shown = media.read(entry.video_mask, **size, **shape.sound, start=start, nearest=True)
    mask = _bright(shown.frames)
  return Record(
    name, frames, shape.fps, samples, shape.sample_rate, entry.captions, mask, references
  )


def _bright(pixels: np.ndarray) -> np.ndarray:
  """bool [t h w] of uint8 [t h w 3]."""
  return pixels.mean(-1) >= BRIGHT


def _read_reference(file: entries_lib.ReferenceFile, shape: Shape) -> list[Reference]:
  """The references of a file: one, or one for each panel of a grid."""
  try:
    if file.grid:
      return _read_grid(file, shape)
    if file.kind == 'image':
      size = stills.fit(media.displayed(file.path), shape.reference_size)
      return [Reference('image', media.read_image(file.path, *size)[None], None)]
    return [_read_moving(file, shape)]
  except media.MediaError as e:
    raise Dropped('broken reference', e) from e


def _read_grid(file, shape) -> list[Reference]:
  across, down = file.grid
  panels = stills.panels(media.read_image(file.path, *media.displayed(file.path)), across, down)
  if not panels:
    raise Dropped('broken reference', f'{file.path}: all of its {across}x{down} panels are blank.')
  sizes = [stills.fit(panel.shape[:2], shape.reference_size) for panel in panels]
  return [
    Reference('image', stills.scaled(panel, *size)[None], None)
    for panel, size in zip(panels, sizes)
  ]


def _read_moving(file, shape) -> Reference:
  """A reference of video with its sound, or of sound, from its beginning."""
  info = media.probe(file.path)
  seconds = min(info.duration or math.inf, shape.reference_seconds)
  if file.kind == 'audio':
    count = round(seconds * shape.sample_rate)
    samples = media.read_audio(file.path, **shape.sound, count=count, start=info.start)
    if not record_lib.audible(samples):
      raise Dropped('broken reference', f'{file.path}: nothing is to be heard in it.')
    return Reference('audio', None, samples)
  height, width = stills.fit(media.displayed(file.path), shape.reference_size, multiple=2)
  clip = media.read(
    file.path,
    height=height,
    width=width,
    fps=shape.fps,
    frames=max(1, int(seconds * shape.fps + 0.5)),
    **shape.sound,
    start=info.start,
  )
  return Reference('video', clip.frames, clip.samples if record_lib.audible(clip.samples) else None)
