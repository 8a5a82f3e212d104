"""Still pictures: their bytes, the size at which they are kept, and the panels of a grid.

    data = to_bytes(pixels)            PNG or JPEG
    height, width = fit(size, limit)   what fits, with the aspect kept
    pixels = scaled(pixels, height, width)
    for panel in panels(picture, 3, 3): ...

media.read_image is the way back from the bytes.
"""

import fractions
import itertools

import av
import av.codec.context
import numpy as np

QUANTIZER = 2  # Of JPEG, 1 (finest) to 31.
BLANK = 3.0  # Levels of 255 that a blank panel may deviate: what JPEG leaves of a plain one.


def to_bytes(pixels: np.ndarray) -> bytes:
  """uint8 [h w 3] to a PNG, which loses nothing, or to a JPEG where that is smaller.

  The JPEG keeps colour at full resolution (4:4:4): photographs lose 1 to 2 levels of 255 on average
  and take a fifth of the bytes.  Flat drawings stay PNG.  The same pixels give the same bytes.
  """
  frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), 'rgb24')
  frame.pts, frame.time_base = 0, fractions.Fraction(1)
  # JPEG is BT.601 of full range (the j).
  yuv = _filtered(frame, 'flags=accurate_rnd+full_chroma_int:out_color_matrix=bt601', 'yuvj444p')
  yuv.pict_type = 0  # The encoder decides.
  return min(_encode('png', frame), _encode('mjpeg', yuv), key=len)


def to_png(pixels: np.ndarray) -> bytes:
  """uint8 [h w 3] to a PNG."""
  return _encode('png', av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), 'rgb24'))


def _encode(codec: str, frame) -> bytes:
  context = av.CodecContext.create(codec, 'w')
  context.width, context.height, context.pix_fmt = frame.width, frame.height, frame.format.name
  context.time_base, context.thread_count = fractions.Fraction(1), 1
  context.flags |= av.codec.context.Flags.bitexact
  if codec == 'mjpeg':
    context.color_range = 2  # Full, what JPEG means.
    context.qmin = context.qmax = QUANTIZER
  return b''.join(bytes(packet) for packet in context.encode(frame) + context.encode())


def scaled(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
  """uint8 [h w 3] to [height width 3]."""
  frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), 'rgb24')
  frame.pts, frame.time_base = 0, fractions.Fraction(1)
  options = f'{width}:{height}:flags=bicubic+accurate_rnd+full_chroma_int'
  return _filtered(frame, options, 'rgb24').to_ndarray()


def _filtered(frame, scale: str, form: str):
  """A picture through FFmpeg's scale filter, to a pixel format."""
  graph = av.filter.Graph()
  graph.threads = 1
  nodes = [
    graph.add_buffer(
      width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
    ),
    graph.add('scale', scale),
    graph.add('format', form),
    graph.add('buffersink'),
  ]
  graph.link_nodes(*nodes).configure()
  graph.vpush(frame)
  return graph.vpull()


def fit(size: tuple[int, int], limit: tuple[int, int], multiple: int = 1) -> tuple[int, int]:
  """(height, width): `size` shrunk into `limit` with its aspect kept, never enlarged.

  Both are multiples of `multiple`, at least once.
  """
  scale = min(limit[0] / size[0], limit[1] / size[1])
  height, width = (
    max(1, min(round(n * scale / multiple), n // multiple, most // multiple)) * multiple
    for n, most in zip(size, limit)
  )
  return height, width


def letterbox(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
  """uint8 [h w 3] whole in the middle of a black [height width 3]; larger ones are shrunk."""
  size = fit(pixels.shape[:2], (height, width))
  if size != pixels.shape[:2]:
    pixels = scaled(pixels, *size)
  canvas = np.zeros((height, width, 3), np.uint8)
  top, left = (height - size[0]) // 2, (width - size[1]) // 2
  canvas[top : top + size[0], left : left + size[1]] = pixels
  return canvas


def shrunk(frames: np.ndarray, scale: int) -> np.ndarray:
  """uint8 [t H*scale W*scale 3] -> [t H W 3]: each pixel is the mean of those it covers."""
  t, height, width, _ = frames.shape
  blocks = frames.reshape(t, height // scale, scale, width // scale, scale, 3)
  return np.rint(blocks.mean((2, 4), dtype=np.float32)).astype(np.uint8)


def panels(picture: np.ndarray, across: int = 3, down: int = 3) -> list[np.ndarray]:
  """The panels of a grid [h w 3], row by row, without the blank ones.

  A panel is blank if no colour deviates more than BLANK levels from its mean (root mean square).
  A size that the grid does not divide gives panels of sizes one pixel apart.
  """
  rows = (np.arange(down + 1) * picture.shape[0]) // down
  columns = (np.arange(across + 1) * picture.shape[1]) // across
  cut = [
    picture[top:bottom, left:right]
    for top, bottom in itertools.pairwise(rows)
    for left, right in itertools.pairwise(columns)
  ]
  return [panel for panel in cut if panel.std((0, 1)).max() > BLANK]
