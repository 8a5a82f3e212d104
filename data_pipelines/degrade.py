"""The low clip of a large one, as a Refiner meets it: smaller, slower, and not as clean."""

import fractions

import av
import av.filter
import numpy as np

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
  filters = [('scale', f'{low.width}:{low.height}:flags=area+accurate_rnd+full_chroma_int')]
  if blur:
    filters.append(('gblur', f'sigma={blur:.4f}'))
  made = filtered(frames[::stride], filters)
  if noise:
    made = np.clip(np.rint(made + random.normal(0, noise, made.shape)), 0, 255)
  return made.astype(np.uint8)


def filtered(frames: np.ndarray, filters) -> np.ndarray:
  """Frames through FFmpeg's filters, (name, arguments) each."""
  graph, (height, width) = av.filter.Graph(), frames.shape[1:3]
  graph.threads, beat = 1, fractions.Fraction(1)
  begin = graph.add_buffer(width=width, height=height, format='rgb24', time_base=beat)
  nodes = [begin, *(graph.add(*x) for x in filters), graph.add('format', 'rgb24')]
  graph.link_nodes(*nodes, graph.add('buffersink')).configure()
  made = []
  for i, pixels in enumerate(frames):
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), 'rgb24')
    frame.pts, frame.time_base = i, beat
    graph.vpush(frame)
    made.append(graph.vpull().to_ndarray())
  return np.stack(made)
