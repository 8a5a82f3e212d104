"""A clip that goes on where another ends, or that leads up to its beginning, and both in one.

They share a context: frames, and the sound under them, that the new clip is given of the other.
Any number may follow each other; each knows the context alone.
"""

import dataclasses

import numpy as np

from data_pipelines import media
from sr4.core import errors
from sr4.core.batch import Size

CONTEXT = 0.25  # of the new clip, about: the context
FADE = 0.02  # seconds in which a sound that is given becomes the one that is made


@dataclasses.dataclass(frozen=True)
class Extension:
  """Of the file at `path`; back: the new clip comes before it.

  Raises:
    UserError: the file is shorter than the context.
  """

  path: str
  back: bool = False

  def known(self, size: Size, time_factor: int) -> np.ndarray:
    """bool [T]: whole latents at the beginning of the new clip, or at its end.

    Of a Refiner's, the frames from the first to the last that its low clip is given.
    """
    step = stride(size)
    latents = (size.frames - 1) // step // time_factor
    count = time_factor * max(int(self.back), int(CONTEXT * latents))
    if self.back:
      return np.arange(size.frames) >= size.frames - 1 - step * (count - 1)
    return np.arange(size.frames) <= step * count

  def source(self, system, size: Size, height: int, width: int) -> media.Clip:
    """All of the file, at the new clip's rate; up to its last frame at that of the low clip."""
    step = stride(size)
    frames = media.frames_in(media.probe(self.path).duration, size.fps / step)
    frames = 1 + step * (frames - 1)
    needed = int(self.known(size, system.codecs.video.time_factor).sum())
    if frames < needed:
      raise errors.UserError(
        f'ref_videos: {self.path} has {frames} frames at {size.fps:g} fps, and a clip of '
        f'{size.frames} goes on from {needed}; give a longer one, or ask for a shorter'
      )
    audio = system.codecs.audio
    sound = dict(sample_rate=audio.sample_rate, channels=audio.audio_channels)
    return media.read(self.path, height=height, width=width, fps=size.fps, frames=frames, **sound)

  def shown(self, source: media.Clip, known: np.ndarray) -> np.ndarray:
    """uint8 [T H W 3]: the context in its place, black else."""
    frames = np.zeros((len(known), *source.frames.shape[1:]), np.uint8)
    count = int(known.sum())
    frames[known] = source.frames[:count] if self.back else source.frames[-count:]
    return frames

  def heard(self, source: media.Clip, size: Size, known: np.ndarray):
    """(samples float32 [n channels], bool [n], those under the context); None: it has no sound."""
    if source.samples is None:
      return None, None
    count = media.audio_length(int(known.sum()), size.fps, source.sample_rate)
    samples = np.zeros((size.samples, source.samples.shape[1]), np.float32)
    heard = np.zeros(size.samples, bool)
    if self.back:
      samples[-count:], heard[-count:] = source.samples[:count], True
    else:
      samples[:count], heard[:count] = source.samples[-count:], True
    return samples, heard

  def joined(self, source: media.Clip, clip, known: np.ndarray, step: int = 1):
    """The clip (pipeline.Clip) with the other before it, or after, and the context once.

    Args:
      step: `stride` of its Size, for a Refiner's clip has the sound of the low one.
    """
    along = lambda mine, other, whole, count: np.concatenate(
      [mine, other[count:]] if self.back else [other[: whole - count], mine]
    )
    whole, count, samples = len(source.frames), int(known.sum()), clip.samples
    if samples is not None:
      lasts = lambda frames: media.audio_length(
        1 + (frames - 1) // step, source.fps / step, source.sample_rate
      )
      silent = np.zeros((lasts(whole), samples.shape[1]), np.float32)
      other = silent if source.samples is None else source.samples
      samples = along(samples, other, lasts(whole), lasts(count))
    frames = along(clip.frames, source.frames, whole, count)
    return dataclasses.replace(clip, frames=frames, samples=samples)


def stride(size: Size) -> int:
  """How many frames a Refiner makes of one of its low clip; 1: the size is of no Refiner."""
  return (size.frames - 1) // max(size.low.frames - 1, 1) or 1 if size.low else 1


def faded(given: np.ndarray, made: np.ndarray, heard: np.ndarray, rate: float) -> np.ndarray:
  """What is given, [n channels], where a beginning or an end is heard, bool [n]; over its last, or
  first, FADE it becomes what is made, [... n channels]."""
  left = np.sum(heard) - np.arange(len(heard))
  share = np.clip((left if heard[0] else left[::-1]) / round(FADE * rate), 0, 1)
  share = np.float32(share)[:, None]
  return share * given + (1 - share) * made
