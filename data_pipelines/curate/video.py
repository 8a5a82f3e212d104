"""Scores of pictures and of their motion.  Lengths are fractions of the picture's shorter side."""

import itertools

import numpy as np

from data_pipelines.curate import excerpt as excerpt_lib

LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)  # BT.709, of gamma-coded values.
LEAST = 32  # Pixels; under 16 OpenCV's flow reads outside its memory.
STILL = 0.5  # Mean change of luma around a pixel, in levels of 255.
# Means of blocks hide what a codec changes in a repeated picture: up to crf 28 of H.264, nineteen
# in twenty stay within SAME, and what moves does not.
BLOCK = 8  # Pixels.
SAME = 3 / 255


def scores(excerpt: excerpt_lib.Excerpt) -> dict[str, float]:
  """Scores of an excerpt; {} for sound alone, and no fps and no motion for a still picture.

  width, height: pixels of the file.
  fps: pictures per second of the file.
  sharpness: variance of the Laplacian of luma in [0, 1], in the median picture.  At the excerpt's
    size: a blur narrower than one of its pixels is not seen.
  contrast: luma's 95th percentile less its 5th, in the median picture.
  exposure: mean luma in [0, 1].
  motion: mean length of the optical flow over the picture, in shorter sides per second, in the
    median pair of pictures.  Unlike a median over the picture it sees a small thing that moves
    before a still background.
  stability: RMS change of the picture's median flow from one pair to the next, in shorter sides
    per second; 0 is a camera that rests or moves evenly (and an excerpt of under three pictures).
  repeated: share of neighbours at the file's own rate that are the same but for their coding; 1
    is a still picture shown as a video.
  """
  if excerpt.frames is None:
    return {}
  luma = [picture @ (LUMA / 255) for picture in excerpt.frames]
  low, high = np.transpose([np.percentile(y, (5, 95)) for y in luma])
  out = {
    'width': excerpt.width,
    'height': excerpt.height,
    'sharpness': np.median([_laplacian(y).var() for y in luma]),
    'contrast': np.median(high - low),
    'exposure': np.mean([y.mean() for y in luma]),
  }
  if len(luma) > 1:
    out |= {'fps': excerpt.source_fps, **_motion(luma, excerpt.fps)}
    out['repeated'] = _repeated(excerpt.frames if excerpt.burst is None else excerpt.burst)
  return {name: float(value) for name, value in out.items()}


def _laplacian(luma) -> np.ndarray:
  import cv2

  return cv2.Laplacian(luma, cv2.CV_32F)


def _motion(luma, fps) -> dict[str, float]:
  h, w = luma[0].shape
  pad = [(0, max(0, LEAST - h)), (0, max(0, LEAST - w))]
  padded = [np.pad(np.round(y * 255).astype(np.uint8), pad, 'edge') for y in luma]
  lengths, camera = [], []
  for before, after in itertools.pairwise(padded):
    flow = _flow(before, after)[:h, :w] * fps / min(h, w)
    lengths.append(np.hypot(flow[..., 0], flow[..., 1]).mean())
    camera.append(np.median(flow, (0, 1)))
  jerks = np.diff(camera, axis=0)
  stability = np.sqrt((jerks**2).sum(1).mean()) if len(jerks) else 0.0
  return {'motion': np.median(lengths), 'stability': stability}


def _flow(before, after) -> np.ndarray:
  """Pixels from uint8 [h w] to the next, float32 [h w 2]; right up to an eighth of the side.

  Dense inverse search (Kroeger et al. 2016), and 0 where the light does not change: what moves is
  otherwise spread over the plain background around it.
  """
  import cv2

  flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(before, after, None)
  change = cv2.blur(cv2.absdiff(before, after).astype(np.float32), (BLOCK + 1, BLOCK + 1))
  flow[change < STILL] = 0
  return flow


def _repeated(burst) -> float:
  import cv2

  h, w = burst.shape[1:3]
  size = max(1, w // BLOCK), max(1, h // BLOCK)
  small = [cv2.resize(x @ (LUMA / 255), size, interpolation=cv2.INTER_AREA) for x in burst]
  changes = [np.abs(after - before).max() for before, after in itertools.pairwise(small)]
  return np.mean([change < SAME for change in changes]) if changes else 0.0
