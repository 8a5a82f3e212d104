"""Where decoded frames are poured: pictures into slots of time, sound onto a line of samples.

sink.add(frame, t)   a frame that begins t seconds after the start; until sink.done
sink.finish()        the array, or MediaError where it cannot be whole
"""

import fractions
import math

import av
import numpy as np
import soxr

from data_pipelines import memory
from sr4.core import errors

HOLD = fractions.Fraction(1, 2)  # The longest wait for a first picture that it may itself fill.
EXIF = 31  # FFmpeg's number of this side data, for which PyAV has no name.
JITTER = fractions.Fraction(1, 100)  # Timestamps this far off are rounding (Matroska), not a gap.


class MediaError(errors.UserError):
  """The file cannot give what was asked: which file, why, and what would help."""


class Pictures:
  """Puts pictures into slots of 1 / rate seconds, by their timestamps."""

  def __init__(self, rate, frames, scale, max_pixels):
    self.rate, self.frames, self._scale, self._max_pixels = rate, frames, scale, max_pixels
    self.out = memory.empty((frames, scale.height, scale.width, 3), np.uint8)
    self.filled, self.last, self.first, self._at = 0, None, None, fractions.Fraction(0)

  @property
  def done(self) -> bool:
    return self.filled == self.frames

  @property
  def missed(self) -> bool:
    """Did a seek land behind the first slot?"""
    return self.first is None or self._slot(self.first) > 0

  def add(self, frame, t: fractions.Fraction):
    """Takes a picture that begins t seconds after the first slot."""
    if frame.width * frame.height > self._max_pixels:
      raise MediaError(
        f'a picture of {frame.width}x{frame.height} is above the limit of '
        f'{self._max_pixels} pixels, and the header did not say so.'
      )
    if self.last is None:
      self.first = t
    else:
      self._show(self._slot(t))
    self.last, self._at = frame, t

  def finish(self) -> np.ndarray:
    """uint8 [frames height width 3].  The last picture is shown for its own duration."""
    if self.first is not None and self.first > HOLD:
      raise MediaError(
        f'the first picture comes {float(self.first):.3f} s after the start; start '
        'there: probe(...).start says when.'
      )
    end = self._at
    if self.last is not None:
      shown = self.last.duration * self.last.time_base
      end += shown or self._scale.duration or 1 / self.rate
      self._show(self._slot(end))
    if not self.done:
      raise MediaError(
        f'the video ends {max(0, float(end)):.3f} s after the start, but {self.frames} '
        f'frames at {float(self.rate):g} fps last {float(self.frames / self.rate):.3f} s; ask '
        'for fewer frames or an earlier start.'
      )
    return self.out

  def _slot(self, t) -> int:
    over = t.denominator * self.rate.denominator  # floor(t rate + 1/2), in integers.
    return (2 * t.numerator * self.rate.numerator + over) // (2 * over)

  def _show(self, until: int):
    """The last picture fills the empty slots before `until`; never scaled if there are none."""
    until = min(until, self.frames)
    if until > self.filled:
      self._scale(self.last, self.out[self.filled])
      self.out[self.filled + 1 : until] = self.out[self.filled]
      self.filled = until


def shown(frame, aspect) -> tuple[fractions.Fraction, fractions.Fraction]:
  """(width, height) of a picture in square pixels; `aspect` is that of one pixel, None: square."""
  size = frame.width * (aspect or fractions.Fraction(1)), fractions.Fraction(frame.height)
  return size[::-1] if frame.rotation % 180 else size


def mirrored(frame) -> bool:
  """Is it shown mirrored?  If so, top to bottom, and then turned by its rotation."""
  try:
    matrix = frame.side_data.get('DISPLAYMATRIX')
  except ValueError:  # PyAV cannot list them beside EXIF.
    bare = _chain(frame, f'sidedata=mode=delete:type={EXIF}')(frame)
    matrix = bare.side_data.get('DISPLAYMATRIX')
  if matrix is None:
    return False
  a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].astype(float)
  return bool(a * d < b * c)


def _chain(frame, *steps):
  """FFmpeg's filters one after another, for frames such as this one: frame to frame."""
  graph = av.filter.Graph()
  graph.threads = 1
  nodes = [
    graph.add_buffer(
      width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
    )
  ]
  nodes += [graph.add(*step.split('=', 1)) for step in steps] + [graph.add('buffersink')]
  graph.link_nodes(*nodes).configure()

  def run(frame):
    graph.vpush(frame)
    return graph.vpull()

  return run


class Scaler:
  """Pictures of any size and format to RGB [height width 3], in C; one graph per input format.

  By way of gbrp: FFmpeg's accurate path to planes, and from there, gives the same pixels as its
  path to rgb24, in less than half of the time.
  """

  def __init__(self, stream, height, width, nearest=False):
    self.height, self.width, self._aspect = height, width, stream.sample_aspect_ratio
    self._flags = 'neighbor' if nearest else 'bicubic+accurate_rnd+full_chroma_int'
    self.duration = 1 / stream.average_rate if stream.average_rate else None
    self._key, self._run = None, None

  def __call__(self, frame, out: np.ndarray):
    """Into uint8 [height width 3]."""
    key = (
      frame.width,
      frame.height,
      frame.format.name,
      frame.rotation % 360,
      mirrored(frame),
      frame.colorspace,
      frame.color_range,
    )
    if key != self._key:
      self._key, self._run = key, self._build(frame, *key[3:5])
    (plane,) = self._run(frame).planes
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
    width = 3 * self.width  # Rows of bytes: an inner loop over 3 colours is four times slower.
    out.reshape(self.height, width)[:] = rows[: self.height, :width]

  def _build(self, frame, rotation, mirror):
    w, h = shown(frame, self._aspect)
    turn = {90: ['transpose=cclock'], 180: ['hflip', 'vflip'], 270: ['transpose=clock']}
    cover = max(self.width / w, self.height / h)
    scaled = max(self.width, round(w * cover)), max(self.height, round(h * cover))
    return _chain(
      frame,
      *['vflip'] * mirror,
      *turn.get(rotation, []),
      f'scale={scaled[0]}:{scaled[1]}:flags={self._flags}',
      'format=gbrp',
      f'crop={self.width}:{self.height}',
      f'scale={self.width}:{self.height}',
      'format=rgb24',
    )


class Sound:
  """Lays decoded sound on a line of native samples by its timestamps, then resamples the line."""

  def __init__(self, extent, count, sample_rate, channels):
    self._extent, self.count, self.rate, self.channels = extent, count, sample_rate, channels
    self.done, self._first = False, None
    self._line, self._native, self._next, self._stop, self._mix = None, 0, None, 0, None
    self._pad = 0

  @property
  def missed(self) -> bool:
    """Did a seek land behind the first sample, although the stream has sound there?"""
    begin, end = self._extent
    return begin <= 0 < end and (self._first is None or self._first > 0)

  def add(self, frame, t: fractions.Fraction):
    """Takes a frame that begins t seconds after the first sample."""
    if self._line is None:
      self._open(frame)
      self._first = t
    if frame.sample_rate != self._native:
      raise MediaError(
        f'the sample rate changes from {self._native} to {frame.sample_rate} Hz '
        'within the stream; write the sound again at one rate.'
      )
    frames = self._mix.resample(frame) if self._mix else [frame]
    x = np.concatenate([f.to_ndarray() for f in frames], 1).T
    if self.channels != x.shape[1]:
      x = x.mean(1, keepdims=True) if self.channels == 1 else np.repeat(x, 2, 1)
    at = round(t * self._native) + self._pad
    if self._next is not None and abs(at - self._next) <= JITTER * self._native:
      at = self._next
    self._next = at + len(x)
    low, high = max(at, 0), min(self._next, self._stop)
    if high > low:
      self._line[low:high] = x[low - at : high - at]
    self.done = self._next >= self._stop

  def finish(self) -> np.ndarray:
    """float32 [count channels]; silence where the stream has nothing."""
    if self._line is None:
      return np.zeros((self.count, self.channels), np.float32)
    line, pad = self._line, self._pad * self.rate // self._native
    if self.rate != self._native:
      line = soxr.resample(line, self._native, self.rate, 'HQ')  # Linear phase: no delay.
    return np.clip(line[pad : pad + self.count], -1, 1)

  def _open(self, frame):
    self._native = frame.sample_rate
    mixed = {'layout': 'stereo', 'options': {'rematrix_maxval': '1.0'}}  # 5.1 cannot clip.
    many = frame.layout.nb_channels > 2
    if many or frame.format.name != 'fltp':
      self._mix = av.AudioResampler('fltp', **(mixed if many else {}))
    length, self._pad = sum(self._lengths()), self._lengths()[0]
    self._line = np.zeros((length, self.channels), np.float32)
    # A codec's last frame is always full: the stream's duration says how much of it is sound.
    end = self._extent[1]
    self._stop = length if end == math.inf else min(length, round(end * self._native) + self._pad)

  def _lengths(self) -> tuple[int, int, int]:
    """Native samples before, of and after the stretch: the filter needs both neighbours."""
    step = math.gcd(self._native, self.rate)
    pad = math.ceil(step / 20) * self._native // step  # 50 ms, a whole number at both rates.
    return pad, math.ceil(self.count * self._native / self.rate), pad
