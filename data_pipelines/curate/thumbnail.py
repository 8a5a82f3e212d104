"""Small pictures of clips for the report: a frame of the middle, or the line of a sound."""

import base64
import html
import io

from data_pipelines import media
from sr4.core import errors

HEIGHT = 96  # Pixels.


def draw(path: str, kind: str, start: float, seconds: float) -> str:
  """An HTML image of a stretch of a file, or a dark field for what cannot be read.

  `start` counts from the beginning of the pictures, or of a sound alone, as in the tables.
  """
  try:
    info = media.probe(path)
    if kind == 'audio':
      return _wave(path, info.start + start, seconds)
    if not 0 < info.width * info.height <= media.Limits().max_pixels:
      return _blank('no picture')
    size = HEIGHT, 2 * round(HEIGHT * min(max(info.width / info.height, 0.25), 4) / 2)
    if kind == 'image':
      pixels = media.read_image(path, *size)
    else:
      middle = info.start + start + max(0, seconds - 1 / (info.fps or 25)) / 2
      ask = {'fps': info.fps or 25, 'frames': 1, 'sample_rate': 8000, 'channels': 1}
      pixels = media.read(path, height=size[0], width=size[1], start=middle, **ask).frames[0]
  except (errors.UserError, OSError):
    return _blank('not readable')
  data = base64.b64encode(jpeg(pixels)).decode()
  return f'<img src="data:image/jpeg;base64,{data}" width="{size[1]}" height="{size[0]}" alt="">'


def jpeg(pixels) -> bytes:
  """uint8 [h w 3] with even sides to the bytes of a JPEG."""
  import av

  out = io.BytesIO()
  with av.open(out, 'w', format='mjpeg') as container:
    stream = container.add_stream('mjpeg', rate=1)
    stream.height, stream.width = pixels.shape[:2]
    stream.pix_fmt = 'yuvj420p'
    container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, 'rgb24')))
    container.mux(stream.encode())
  return out.getvalue()


def _wave(path, start, seconds) -> str:
  """The largest and smallest sample of each of 200 parts, as one filled line."""
  import numpy as np

  x = media.read_audio(
    path, count=max(200, round(seconds * 8000)), sample_rate=8000, channels=1, start=start
  )
  if x is None:
    return _blank('no sound')
  parts = np.array_split(x[:, 0], 200)
  y = lambda value: f'{HEIGHT / 2 * (1 - value):.1f}'
  above = [f'{k},{y(part.max())}' for k, part in enumerate(parts)]
  below = [f'{k},{y(part.min())}' for k, part in enumerate(parts)][::-1]
  return (
    f'<svg viewBox="0 0 200 {HEIGHT}" width="200" height="{HEIGHT}" role="img" aria-label="sound">'
    f'<polygon points="{" ".join(above + below)}" fill="#6fb2d2" stroke="#6fb2d2"/></svg>'
  )


def _blank(words: str) -> str:
  return (
    f'<svg viewBox="0 0 128 {HEIGHT}" width="128" height="{HEIGHT}" role="img">'
    f'<text x="64" y="52" text-anchor="middle">{html.escape(words)}</text></svg>'
  )
