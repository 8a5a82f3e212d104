"""Pictures to other sizes."""

import numpy as np

from sr4.core import errors


def shrink(frames: np.ndarray, scale: int) -> np.ndarray:
  """uint8 [t H*scale W*scale c] -> [t H W c]: each pixel is the mean of those it covers."""
  t, height, width, c = frames.shape
  if height % scale or width % scale:
    raise errors.UserError(f'pictures of {height}x{width} cannot be shrunk {scale} times')
  blocks = frames.reshape(t, height // scale, scale, width // scale, scale, c)
  return np.rint(blocks.mean((2, 4), dtype=np.float32)).astype(np.uint8)


def letterbox(picture: np.ndarray, height: int, width: int) -> np.ndarray:
  """uint8 [h w 3] whole in the middle of a black [height width 3]; larger ones are scaled down."""
  h, w, _ = picture.shape
  scale = min(height / h, width / w, 1.0)
  if scale < 1:
    import av  # Most are stored at a size that fits.

    h, w = max(1, round(h * scale)), max(1, round(w * scale))
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), 'rgb24')
    picture = frame.reformat(w, h, 'rgb24', interpolation='AREA').to_ndarray()
  canvas = np.zeros((height, width, 3), np.uint8)
  top, left = (height - h) // 2, (width - w) // 2
  canvas[top : top + h, left : left + w] = picture
  return canvas
