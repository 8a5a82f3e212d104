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
    """bool [T]: whole latents at the beginning of the new clip, or at its end."""
    latents = (size.frames - 1) // time_factor
    count = time_factor * max(int(self.back), int(CONTEXT * latents))
    if self.back:
      return np.arange(size.frames) >= size.frames - count
    return np.arange(size.frames) <= count

  def source(self, system, size: Size, height: int, width: int) -> media.Clip:
    """All of the file, at the new clip's rate."""
    frames = int(media.probe(self.path).duration * size.fps + 1e-3)
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

  def joined(self, source: media.Clip, clip, known: np.ndarray):
    """The clip (pipeline.Clip) with the other before it, or after, and the context once."""
    count, rate = int(known.sum()), source.sample_rate
    along = lambda mine, other, count: np.concatenate(
      [mine, other[count:]] if self.back else [other[: len(other) - count], mine]
    )
    samples = clip.samples
    if samples is not None:
      length = media.audio_length(len(source.frames), source.fps, rate)
      silent = np.zeros((length, samples.shape[1]), np.float32)
      other = silent if source.samples is None else source.samples
      samples = along(samples, other, media.audio_length(count, source.fps, rate))
    return dataclasses.replace(
      clip, frames=along(clip.frames, source.frames, count), samples=samples
    )


def faded(given: np.ndarray, made: np.ndarray, heard: np.ndarray, rate: float) -> np.ndarray:
  """What is given, [n channels], where a beginning or an end is heard, bool [n]; over its last, or
  first, FADE it becomes what is made, [... n channels]."""
  left = np.sum(heard) - np.arange(len(heard))
  share = np.clip((left if heard[0] else left[::-1]) / round(FADE * rate), 0, 1)
  share = np.float32(share)[:, None]
  return share * given + (1 - share) * made
