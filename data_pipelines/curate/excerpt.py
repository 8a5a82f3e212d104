"""A stretch of one file, small enough to measure: what video.py and audio.py take scores of."""

import dataclasses
import math

import numpy as np

from data_pipelines import media

MAX_RATE = 48_000  # Hz; nothing that is heard lies above half of it.
BURST = 50  # Pictures in a row at the file's own rate, at most.


@dataclasses.dataclass(frozen=True, eq=False)
class Excerpt:
  """Pictures and sound of [start, start + seconds) of one file, and what its header says."""

  frames: np.ndarray | None  # uint8 [t h w 3]; t is 1 for a still picture; None: sound alone.
  fps: float  # Of `frames`; 0.0 without them.
  samples: np.ndarray | None  # float32 [n c] in [-1, 1]; None: no audio stream.
  sample_rate: int  # Of `samples`; 0 without them.
  start: float  # Seconds on the container's clock.
  seconds: float  # Less than asked where the file ends before.
  width: int  # Pixels of the file, as it is shown: after rotation and pixel aspect.
  height: int
  source_fps: float  # Of the file; 0.0 for sound alone.
  source_rate: int  # Of the file, Hz; 0 without sound.
  # Up to BURST pictures from the middle at source_fps, as large as `frames`: uint8 [t h w 3].
  burst: np.ndarray | None = None


def read(
  path, start: float, seconds: float, fps: float = 8.0, side: int = 160, rate: int | None = None
) -> Excerpt:
  """Reads a stretch of a video, with sound or without, of a sound, or a still picture.

  Pictures are scaled to `side` pixels on the shorter side, never enlarged.  Every n-th picture of
  the file is taken, n so that the rate is nearest to `fps`: steps of equal length, or a steady
  motion would seem to jerk.  Sound comes at `rate`, or at the file's own up to 48 kHz; more than
  two channels are mixed to two.  A file without duration and sound is a still picture, for which
  `start`, `seconds` and `fps` have no meaning.

  Raises:
    media.MediaError: the file is broken, above media.Limits, or ends before `start`.
    OSError: the file cannot be read.
  """
  if not (seconds > 0 and fps > 0 and side > 0 and start >= 0):
    raise ValueError(
      f'start {start}, seconds {seconds}, fps {fps}, side {side}: start is 0 or more, the others '
      'are above 0.'
    )
  info = media.probe(path)
  if info.width:
    height, width = media.displayed(path)
    info = dataclasses.replace(info, height=height, width=width)
  height, width = size(info, side)
  if not info.duration and not info.has_audio:
    return _excerpt(info, 0.0, 0.0, frames=media.read_image(path, height, width)[None])
  if info.duration:
    seconds = min(seconds, info.start + info.duration - start)
    if seconds <= 0:
      raise media.MediaError(
        f'{path}: ends at {info.start + info.duration:.3f} s, before the start at {start:.3f} s; '
        'start earlier.'
      )
  rate = rate or min(info.sample_rate, MAX_RATE)
  channels = min(info.channels, 2)
  if not info.width:
    count = max(1, math.floor(seconds * rate))
    samples = media.read_audio(path, count=count, sample_rate=rate, channels=channels, start=start)
    return _excerpt(info, start, seconds, samples=_finite(path, samples), rate=rate)
  fps = _even_rate(info.fps, fps, seconds)
  clip = media.read(
    path,
    height=height,
    width=width,
    fps=fps,
    frames=pictures(seconds, fps),
    sample_rate=rate or 8000,  # Not used in a silent file.
    channels=channels or 1,
    start=start,
  )
  samples = _finite(path, clip.samples)
  burst = _burst(path, info, height, width, start, seconds)
  return _excerpt(info, start, seconds, clip.frames, fps, samples, rate, burst)


def _excerpt(info, start, seconds, frames=None, fps=0.0, samples=None, rate=0, burst=None):
  return Excerpt(
    frames=frames,
    fps=fps,
    samples=samples,
    sample_rate=rate if samples is not None else 0,
    start=start,
    seconds=seconds,
    width=info.width,
    height=info.height,
    source_fps=info.fps,
    source_rate=info.sample_rate,
    burst=burst,
  )


def size(info: media.Info, side: int) -> tuple[int, int]:
  """Height and width of the pictures: the file's, shrunk until the shorter is `side`."""
  scale = min(1.0, side / max(1, min(info.height, info.width)))
  return max(1, round(info.height * scale)), max(1, round(info.width * scale))


def pictures(seconds: float, fps: float) -> int:
  """Pictures that end by then; a thousandth of one forgives a duration's rounding."""
  return max(1, math.floor(seconds * fps + 1e-3))


def _even_rate(source: float, fps: float, seconds: float) -> float:
  """The file's rate over a whole number, near `fps`; higher where fewer than three would fit."""
  if not source:
    return fps
  most = max(1, pictures(seconds, source) // 3)
  return source / min(most, max(1, round(source / fps)))


def _burst(path, info, height, width, start, seconds) -> np.ndarray | None:
  if not info.fps:
    return None
  length = min(BURST / info.fps, seconds)
  # On a picture of the file, so that no rounding of timestamps skips one and repeats another.
  first = max(0, round((start + (seconds - length) / 2 - info.start) * info.fps))
  clip = media.read(
    path,
    height=height,
    width=width,
    fps=info.fps,
    frames=max(1, pictures(length, info.fps) - 1),  # The rounding above may cost one.
    sample_rate=8000,
    channels=1,
    start=info.start + first / info.fps,
  )
  return clip.frames


def _finite(path, samples):
  if samples is not None and not np.isfinite(samples).all():
    raise media.MediaError(f'{path}: its sound is not finite; write it again.')
  return samples
