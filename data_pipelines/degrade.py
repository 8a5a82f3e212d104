"""The low clip of a large one, as a Refiner meets it: smaller, slower, and not as clean."""

import fractions

import av
import av.filter
import numpy as np
from scipy import ndimage

from sr4.core.batch import Low

BLUR = 1.0  # pixels of the low clip (standard deviation), at most
NOISE = 6.0  # levels of 255 (standard deviation), at most


def degraded(frames: np.ndarray, low: Low, random: np.random.Generator) -> np.ndarray:
  """uint8 [T H W 3] -> [low.frames low.height low.width 3].

  Each pixel is the mean of those it covers.  Then the clip is blurred and made noisy, `low.degrade`
  times as much as is drawn for all of it.
  """
  blur, noise = random.random(2) * (BLUR, NOISE) * low.degrade
  stride = (len(frames) - 1) // max(low.frames - 1, 1) or 1
  made = smaller(frames[::stride], low.height, low.width)
  if blur:
    made = ndimage.gaussian_filter(made, (0, blur, blur, 0), mode='nearest', output=np.float32)
  if noise:
    made = made + noise * random.standard_normal(made.shape, np.float32)
  return np.clip(np.rint(made), 0, 255).astype(np.uint8)


def smaller(frames: np.ndarray, height: int, width: int) -> np.ndarray:
  """uint8 [T H W 3] -> [T height width 3], by FFmpeg."""
  graph, (rows, columns) = av.filter.Graph(), frames.shape[1:3]
  graph.threads, beat = 1, fractions.Fraction(1)
  begin = graph.add_buffer(width=columns, height=rows, format='rgb24', time_base=beat)
  scale = graph.add('scale', f'{width}:{height}:flags=area+accurate_rnd+full_chroma_int')
  nodes = begin, scale, graph.add('format', 'rgb24'), graph.add('buffersink')
  graph.link_nodes(*nodes).configure()
  made = []
  for i, pixels in enumerate(frames):
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), 'rgb24')
    frame.pts, frame.time_base = i, beat
    graph.vpush(frame)
    made.append(graph.vpull().to_ndarray())
  return np.stack(made)
