"""Where a video cuts."""

import itertools

import numpy as np

from data_pipelines import media
from data_pipelines.curate import excerpt

SIDE = 144  # Pixels; a cut shows in a small picture.
MOST_FPS = 60.0
CHUNK = 400  # Pictures in memory at once.
SHORTEST = 0.3  # Seconds; less is a flash.


def shots(path) -> list[tuple[float, float]]:
  """(start, end) of each shot in seconds on the container's clock; together the whole video.

  Hard cuts alone: PySceneDetect's adaptive detector compares a picture's change with that of the
  two before and after, so fast motion is no cut.  A fade or a dissolve is not found, nor a shot
  under 0.3 s.

  Raises:
    media.MediaError: broken, no video, no duration in its header, or above media.Limits.
    OSError: the file cannot be read.
  """
  import scenedetect
  from scenedetect import detectors

  info = media.probe(path)
  if not info.width or not info.duration:
    missing = 'duration in its header' if info.width else 'video'
    raise media.MediaError(f'{path}: no {missing}; give a video, written again as MP4.')
  fps = min(info.fps or MOST_FPS, MOST_FPS)
  detector = detectors.AdaptiveDetector(min_scene_len=SHORTEST)
  cuts = []
  for i, picture in enumerate(_pictures(path, info, fps)):
    bgr = np.ascontiguousarray(picture[..., ::-1])
    cuts += detector.process_frame(scenedetect.FrameTimecode(i, fps), bgr)
  bounds = [0.0, *(cut.frame_num / fps for cut in cuts), info.duration]
  return [(info.start + a, info.start + b) for a, b in itertools.pairwise(bounds)]


def _pictures(path, info, fps):
  """All pictures, a chunk at a time: a long video does not fit in memory."""
  height, width = excerpt.size(info, SIDE)
  total = excerpt.pictures(info.duration, fps)
  for first in range(0, total, CHUNK):
    clip = media.read(
      path,
      height=height,
      width=width,
      fps=fps,
      frames=min(CHUNK, total - first),
      sample_rate=8000,
      channels=1,
      start=info.start + first / fps,
    )
    yield from clip.frames
