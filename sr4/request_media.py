"""What a request (sr4/request.py) gives of a clip: its files, read at the clip's size.

Whichever turns out to be broken, or shorter than the clip, is told by its field.
"""

import contextlib

import numpy as np

from data_pipelines import media
from data_pipelines import stills
from data_pipelines.tasks import Row
from sr4 import pipeline
from sr4.core.av import AV
from sr4.core.batch import Size
from sr4.flow import segments
from sr4.request_rules import RequestError

WHITE = 128  # of 255: from here on a mask is white


def row(asked, system, size: Size) -> Row:
  """As `Request.row`."""
  frames = known = keyframes = at = samples = heard = None
  if shown := frames_given(asked, system, size):
    frames, known = shown(size.height, size.width)
  if size.keyframes:
    at = np.array(pipeline.keyframes_at(system, size), np.int32)
    if shown:
      keyframes = shown(*segments.keyframe_sides(size))[0][at]
  if asked.audio and size.samples:
    samples = sound('audio', system, asked.audio, size.samples)
  clean = AV(frames is not None and known is None, samples is not None)
  if (extension := asked.extension) and size.samples:
    with field('ref_videos[0].video_url'):
      source = extension.source(system, size, size.height, size.width)
    samples, heard = extension.heard(source, size, known[:, 0, 0])
  return Row(
    frames,
    samples,
    known,
    heard,
    clean=clean,
    keyframes=keyframes,
    at=at,
    caption=asked.caption(),
    **references(asked, system, size),
  )


def frames_given(asked, system, size: Size):
  """(height, width) -> (frames uint8 [T height width 3], which of them are known, or None).

  None where none are given.
  """
  if asked.images:
    return moments(asked, size)
  if extension := asked.extension:
    return continued(extension, system, size)
  return clip(asked, system, size) if asked.video else None


def moments(asked, size: Size):
  """Of first, mid and end frames."""
  if size.frames < 2:
    raise RequestError(f'frames: given frames are of a clip, and {size.frames} are made')
  last, mids = size.frames - 1, asked.mid_frame_images
  found = {
    0: ('first_frame_image', asked.first_frame_image),
    last: ('end_frame_image', asked.end_frame_image),
  }
  for i, frame in enumerate(mids):
    spread = (i + 1) / (len(mids) + 1) * last / size.fps
    seconds = spread if frame.time_stamp == -1 else frame.time_stamp
    place = round(seconds * size.fps)
    if not 0 < place < last or place in found:
      raise RequestError(
        f'mid_frame_images[{i}].time_stamp: at {seconds:g} s there is no frame of its own in a '
        f'clip of {last / size.fps:g} s'
      )
    found[place] = f'mid_frame_images[{i}].image_url', frame.image_url
  found = {place: (name, path) for place, (name, path) in found.items() if path}

  def shown(height: int, width: int):
    frames = np.zeros((size.frames, height, width, 3), np.uint8)
    for place, (name, path) in found.items():
      with field(name):
        frames[place] = media.read_image(path, height, width)
    known = np.isin(np.arange(size.frames), list(found))
    return frames, known[:, None, None]

  return shown


def continued(extension, system, size: Size):
  """Of a clip that is extended."""
  known = extension.known(size, system.codecs.video.time_factor)

  def shown(height: int, width: int):
    with field('ref_videos[0].video_url'):
      source = extension.source(system, size, height, width)
    return extension.shown(source, known), known[:, None, None]

  return shown


def clip(asked, system, size: Size):
  """Of a clip that is edited, or to which a sound is made."""

  def shown(height: int, width: int):
    sound = dict(sample_rate=system.codecs.audio.sample_rate, channels=1)
    like = dict(height=height, width=width, fps=size.fps, frames=size.frames, **sound)
    with field('video'):
      frames, known = media.read(asked.video, **like).frames, None
    name = 'mask_video' if asked.mask_video else 'mask_image'
    with field(name):
      if mask := asked.mask_video or asked.mask_image:
        same_shape(mask, asked.video)
      if asked.mask_video:
        known = media.read(asked.mask_video, **like, nearest=True).frames[..., 0] < WHITE
      elif asked.mask_image:
        white = media.read_image(asked.mask_image, height, width, nearest=True)[..., 0] >= WHITE
        known = np.broadcast_to(~white, frames.shape[:3])
    if known is not None and known.all():
      raise RequestError(f'{name}: nothing in it is white, so nothing would change')
    if known is not None and not known.any():
      raise RequestError(f'{name}: all of it is white, so nothing of `video` would stay')
    return frames, known

  return shown


def same_shape(mask: str, video: str):
  """MediaError where they are not cut alike, by a pixel: what is white would lie elsewhere."""
  (h, w), (height, width) = media.displayed(mask), media.displayed(video)
  if abs(h * width - w * height) > max(h + w, height + width):
    raise media.MediaError(
      f'{mask} is {w} x {h}, and the video {width} x {height}: give one of the same aspect'
    )


def references(asked, system, size: Size) -> dict:
  """The fields of a Row that are references."""
  sides, given = (size.height, size.width), {}
  if size.reference_images:
    given['images'] = tuple(stills.letterbox(x, *sides) for x in pictures(asked))
  if size.reference_frames:
    path = asked.ref_videos[0].video_url
    height, width = stills.fit(media.displayed(path), sides)
    with field('ref_videos[0].video_url'):
      shown = media.read(
        path,
        height=height,
        width=width,
        fps=size.fps,
        frames=size.reference_frames,
        sample_rate=system.codecs.audio.sample_rate,
        channels=1,
      )
    given['clip'] = np.stack([stills.letterbox(frame, *sides) for frame in shown.frames])
  if size.reference_samples:
    name, path = asked.voices[0]
    given['sound'] = sound(name, system, path, size.reference_samples)
  return given


def pictures(asked) -> list[np.ndarray]:
  """uint8 [h w 3] at its own size, of each reference picture; of a grid, of each panel."""
  found = []
  for i, entry in enumerate(asked.ref_images):
    for j, path in enumerate(entry.image_urls):
      with field(f'ref_images[{i}].image_urls[{j}]'):
        whole = media.read_image(path, *media.displayed(path))
        found += panels(path, whole) if entry.type == 'grid' else [whole]
  return found


def panels(path: str, grid: np.ndarray) -> list[np.ndarray]:
  if not (found := stills.panels(grid)):
    raise media.MediaError(f'{path} has no panel with anything in it')
  return found


def counts(asked) -> list[int]:
  """How many reference pictures each of `ref_images` is."""
  if any(entry.type == 'grid' for entry in asked.ref_images):
    return [len(pictures(asked))]  # A grid is alone.
  return [len(entry.image_urls) for entry in asked.ref_images]


def sound(name: str, system, path: str, count: int) -> np.ndarray:
  audio = system.codecs.audio
  with field(name):
    return media.read_audio(
      path, count=count, sample_rate=audio.sample_rate, channels=audio.audio_channels
    )


@contextlib.contextmanager
def field(name: str):
  """What is wrong with a file is wrong with this field."""
  try:
    yield
  except media.MediaError as error:
    raise RequestError(f'{name}: {error}') from error
