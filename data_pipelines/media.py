"""Media files to arrays; mp4.py is the way back.

    Info = probe(source)                    the header
    Clip = read(source, ...)                pixels [t h w 3], samples [n c] of one stretch of time
    samples = read_audio(source, ...)       the sound alone
    pixels = read_image(source, h, w)       a still picture
    height, width = displayed(source)       as it is shown

A source is a path or the file's bytes.  Times are seconds on the container's clock, which starts
with its earliest stream: streams that start apart stay apart, so sound and picture stay in sync.
What a file holds is the file's fault: `MediaError`.  What the disk does is an `OSError`.
"""

import contextlib
import dataclasses
import fractions
import io
import math
import os

import av
import av.codec.context
import numpy as np
import soxr

from sr4.core import errors

# Self-contained formats.  Playlists (hls, concat) and numbered images open other files.
FORMATS = (
  'mov',
  'mp4',
  'matroska',
  'webm',
  'avi',
  'mpegts',
  'mpeg',
  'flv',
  'asf',
  'ogg',
  'gif',
  'wav',
  'w64',
  'mp3',
  'flac',
  'aac',
  'aiff',
  'apng',
  'png_pipe',
  'jpeg_pipe',
  'webp_pipe',
  'bmp_pipe',
  'tiff_pipe',
  'webp',
)
PREROLL = fractions.Fraction(1, 10)  # Decoded before a start and dropped: AAC frames overlap.
HOLD = fractions.Fraction(1, 2)  # The longest wait for a first picture that it may itself fill.
JITTER = fractions.Fraction(1, 100)  # Timestamps this far off are rounding (Matroska), not a gap.


class MediaError(errors.UserError):
  """The file cannot give what was asked: which file, why, and what would help."""


@dataclasses.dataclass(frozen=True)
class Limits:
  """What a stranger's file may ask of this machine; read from the header, before decoding."""

  max_pixels: int = 4096 * 4096  # Width times height.
  max_seconds: float = 4 * 3600.0


@dataclasses.dataclass(frozen=True)
class Info:
  """What the header says.  Width, height and fps are 0 in a file with sound alone."""

  width: int  # As stored: before rotation and pixel aspect, both of which `read` applies.
  height: int
  fps: float
  duration: float  # Seconds of video (without video: of sound); 0.0 when the header has none.
  has_audio: bool
  sample_rate: int  # 0 without sound.
  channels: int  # 0 without sound.
  start: float = 0.0  # When the video (without video: the sound) begins on the container's clock.


@dataclasses.dataclass(frozen=True)
class Clip:
  frames: np.ndarray  # uint8 [t h w 3]
  fps: float
  samples: np.ndarray | None  # float32 [n c] in [-1, 1]; None: the file has no audio stream
  sample_rate: int


def audio_length(frames: int, fps: float, sample_rate: int) -> int:
  """Samples per channel that `frames` at `fps` last: the one rounding rule of the house."""
  return round(frames / fps * sample_rate)


def probe(source) -> Info:
  """Reads the header.  Raises MediaError if there is none, OSError if the file cannot be read."""
  with _open(source) as container:
    return _info(container)


def read(
  source,
  *,
  height: int,
  width: int,
  fps: float,
  frames: int,
  sample_rate: int,
  channels: int,
  start: float = 0.0,
  nearest: bool = False,
  limits: Limits = Limits(),
) -> Clip:
  """Decodes exactly `frames` pictures at `fps` and the sound under them.

  Picture k is the last one that began before (k + 1/2) / fps after `start`, scaled to cover
  [height width] and cropped about its centre.  Sound is resampled to round(frames / fps *
  sample_rate) samples of 1 or 2 channels, silent where the stream has not begun or has ended; more
  than two channels are mixed down without clipping.  Isolated broken packets are left out.
  `nearest` scales without mixing pixels, for masks.

  Raises:
    MediaError: no video, broken, shorter than asked, or above the limits.
  """
  _check_request(height, width, fps, frames, sample_rate, channels, start)
  count = audio_length(frames, fps, sample_rate)

  def sinks(container):
    video, audio = _streams(container)
    if video is None:
      raise MediaError('no video stream; read_audio and read_image take the rest.')
    _check_limits(_info(container), limits)
    scale = _Scaler(video, height, width, nearest)
    yield video, _Pictures(exact_rate(fps), frames, scale, limits.max_pixels)
    if audio is not None:
      yield audio, _Sound(_extent(container, audio, start), count, sample_rate, channels)

  pixels, *samples = _decode(source, start, sinks)
  return Clip(pixels, float(fps), samples[0] if samples else None, sample_rate)


def read_audio(
  source,
  *,
  count: int,
  sample_rate: int,
  channels: int,
  start: float = 0.0,
  limits: Limits = Limits(),
) -> np.ndarray | None:
  """`count` samples from `start`: float32 [count channels], or None without an audio stream."""
  _check_request(1, 1, 1, count, sample_rate, channels, start)

  def sinks(container):
    _, audio = _streams(container)
    if audio is not None:
      _check_limits(_info(container), limits)
      yield audio, _Sound(_extent(container, audio, start), count, sample_rate, channels)

  return next(iter(_decode(source, start, sinks)), None)


def read_image(
  source, height: int, width: int, limits: Limits = Limits(), *, nearest: bool = False
) -> np.ndarray:
  """A still picture (of a moving one, the first): uint8 [height width 3].  Alpha is dropped."""
  _check_request(height, width, 1, 1, 8000, 1, 0)
  with _first_picture(source, limits) as (video, frame):
    picture = np.empty((height, width, 3), np.uint8)
    _Scaler(video, height, width, nearest)(frame, picture)
    return picture


def displayed(source, limits: Limits = Limits()) -> tuple[int, int]:
  """(height, width) of the first picture as it is shown: after rotation and pixel aspect."""
  with _first_picture(source, limits) as (video, frame):
    width, height = _shown(frame, video.sample_aspect_ratio)
    return round(height), round(width)


@contextlib.contextmanager
def _first_picture(source, limits):
  with _open(source) as container:
    video, _ = _streams(container)
    if video is None:
      raise MediaError('no picture in this file.')
    _check_limits(_info(container), dataclasses.replace(limits, max_seconds=math.inf))
    frame = next(container.decode(video), None)
    if frame is None or frame.is_corrupt:
      raise MediaError('the picture cannot be decoded.')
    yield video, frame


def _name(source) -> str:
  return f'<{len(source)} bytes>' if isinstance(source, bytes) else os.fspath(source)


def exact_rate(fps) -> fractions.Fraction:
  return fractions.Fraction(fps).limit_denominator(1001)  # 29.97002997 is 30000/1001.


@contextlib.contextmanager
def _open(source):
  """An input container.  Errors inside the block become MediaErrors that name the source."""
  options = {'format_whitelist': ','.join(FORMATS), 'protocol_whitelist': 'none'}
  with contextlib.ExitStack() as stack:
    if isinstance(source, bytes):
      file = io.BytesIO(source)
    else:  # Opened by number: FFmpeg must see no name, it could be a pattern or an address.
      named = stack.enter_context(open(source, 'rb'))
      file = stack.enter_context(open(named.fileno(), 'rb', closefd=False))
    try:
      with av.open(file, container_options=options, buffer_size=1 << 17) as container:
        for context in (s.codec_context for s in container.streams if s.codec_context):
          context.thread_count = 1  # Many clips at once beat many threads in one.
          context.options = {'err_detect': 'explode'}  # Else damage is painted over with grey.
        yield container
    except av.FFmpegError as e:
      raise MediaError(
        f'{_name(source)}: not readable as media ({e.strerror}); it is broken, cut '
        f'off, or none of {", ".join(FORMATS[:8])}, ... Write it again.'
      ) from e
    except MediaError as e:
      raise MediaError(f'{_name(source)}: {e}') from e.__cause__


def _streams(container):
  """The first video stream that is no cover art, and the first audio stream; None where absent."""
  art = av.stream.Disposition.attached_pic
  video = [s for s in container.streams.video if not s.disposition & art]
  found = next(iter(video), None), next(iter(container.streams.audio), None)
  for stream in found:
    if stream is not None and stream.codec_context is None:
      raise MediaError(f'no decoder for its {stream.type} stream; write it again as MP4.')
  return found


def _seconds(ticks, stream) -> fractions.Fraction | None:
  return None if ticks is None else ticks * stream.time_base


def _origin(container) -> fractions.Fraction:
  return fractions.Fraction(container.start_time or 0, av.time_base)


def _extent(container, stream, start) -> tuple[float | fractions.Fraction, ...]:
  """When the stream begins and ends, in seconds from `start`; infinite where no header says so."""
  zero = _origin(container) + fractions.Fraction(start)
  begin = -math.inf if stream.start_time is None else _seconds(stream.start_time, stream) - zero
  if stream.duration is None:
    return begin, math.inf
  return begin, _seconds((stream.start_time or 0) + stream.duration, stream) - zero


def _info(container) -> Info:
  video, audio = _streams(container)
  main = video or audio
  if main is None:
    raise MediaError('neither video nor audio stream in this file.')
  start = (_seconds(main.start_time, main) or _origin(container)) - _origin(container)
  duration = _seconds(main.duration, main)
  if duration is None and container.duration is not None:
    duration = fractions.Fraction(container.duration, av.time_base) - start
  return Info(
    width=video.width if video else 0,
    height=video.height if video else 0,
    fps=float(video.average_rate or video.guessed_rate or 0) if video else 0.0,
    duration=float(duration or 0),
    has_audio=audio is not None,
    sample_rate=audio.rate if audio else 0,
    channels=audio.channels if audio else 0,
    start=float(start),
  )


def _check_request(height, width, fps, frames, sample_rate, channels, start):
  for name, value, least in (
    ('height', height, 1),
    ('width', width, 1),
    ('frames', frames, 1),
    ('sample_rate', sample_rate, 1),
    ('start', start, 0),
  ):
    if not (math.isfinite(value) and value >= least):
      raise ValueError(f'{name} is {value!r}; give {least} or more.')
  if not 0 < fps < math.inf:
    raise ValueError(f'fps is {fps!r}; give frames per second, above 0.')
  if channels not in (1, 2):
    raise ValueError(f'channels is {channels!r}; give 1 (mono) or 2 (stereo).')


def _check_limits(info: Info, limits: Limits):
  if info.width * info.height > limits.max_pixels:
    raise MediaError(
      f'{info.width}x{info.height} is {info.width * info.height} '
      f'pixels, the limit is {limits.max_pixels}; scale it down, or pass Limits.'
    )
  if info.duration > limits.max_seconds:
    raise MediaError(
      f'{info.duration:.0f} s long, the limit is {limits.max_seconds:g} s; cut it, or pass Limits.'
    )


def _decode(source, start, make_sinks) -> list:
  """What the sinks hold from `start` on; from the first packet if a seek misses their beginning."""
  start = fractions.Fraction(start)
  for seek in (start > PREROLL, False):
    with _open(source) as container:
      pairs = list(make_sinks(container))
      if seek:
        with contextlib.suppress(av.FFmpegError):  # A format that cannot seek is read through.
          container.seek(int((_origin(container) + start - PREROLL) * av.time_base))
      try:
        _pour(container, start, pairs)
        if not seek or not any(sink.missed for _, sink in pairs):
          return [sink.finish() for _, sink in pairs]
      except MediaError:  # A seek between key frames breaks packets that are whole.
        if not seek:
          raise


def _pour(container, start, pairs):
  """Decodes packets into the sinks of their streams until all sinks are done."""
  sinks = {stream.index: sink for stream, sink in pairs}
  packets, broken, reason = dict.fromkeys(sinks, 0), dict.fromkeys(sinks, 0), ''
  origin = _origin(container) + start
  demux = container.demux(*(stream for stream, _ in pairs))
  while not all(sink.done for sink in sinks.values()):
    try:
      packet = next(demux, None)
    except av.error.InvalidDataError:
      break  # The container itself is damaged here: what follows cannot be found.
    if packet is None:
      break
    i = packet.stream.index
    if sinks[i].done:
      continue
    packets[i] += packet.size > 0
    try:
      frames = packet.decode()
    except av.FFmpegError as e:
      broken[i], reason = broken[i] + 1, e.strerror
      continue
    for frame in frames:
      if frame.pts is None or frame.is_corrupt:
        broken[i], reason = broken[i] + 1, 'corrupt pictures'
      else:
        sinks[i].add(frame, _after(origin, frame))
  for stream, _ in pairs:
    bad, total = broken[stream.index], packets[stream.index]
    if bad > max(2, total // 20):
      raise MediaError(
        f'{bad} of {total} {stream.type} packets are broken '
        f'({reason}); more than one in twenty is too many. Write the file again.'
      )


def _after(origin: fractions.Fraction, frame) -> fractions.Fraction:
  """When a frame begins, in seconds after the origin."""
  base = frame.time_base  # Integers first: a Fraction a frame, and no more, is quick.
  ticks = frame.pts * base.numerator * origin.denominator - origin.numerator * base.denominator
  return fractions.Fraction(ticks, base.denominator * origin.denominator)


class _Pictures:
  """Puts pictures into slots of 1 / rate seconds, by their timestamps."""

  def __init__(self, rate, frames, scale, max_pixels):
    self.rate, self.frames, self._scale, self._max_pixels = rate, frames, scale, max_pixels
    self.out = np.empty((frames, scale.height, scale.width, 3), np.uint8)
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


def _shown(frame, aspect) -> tuple[fractions.Fraction, fractions.Fraction]:
  """(width, height) of a picture in square pixels; `aspect` is that of one pixel, None: square."""
  size = frame.width * (aspect or fractions.Fraction(1)), fractions.Fraction(frame.height)
  return size[::-1] if frame.rotation % 180 else size


class _Scaler:
  """Pictures of any size and format to RGB [height width 3], in C; one graph per input format.

  By way of gbrp: FFmpeg's accurate path to planes, and from there, gives the same pixels as its
  path to rgb24, in less than half of the time.
  """

  def __init__(self, stream, height, width, nearest=False):
    self.height, self.width, self._aspect = height, width, stream.sample_aspect_ratio
    self._flags = 'neighbor' if nearest else 'bicubic+accurate_rnd+full_chroma_int'
    self.duration = 1 / stream.average_rate if stream.average_rate else None
    self._key, self._graph = None, None

  def __call__(self, frame, out: np.ndarray):
    """Into uint8 [height width 3]."""
    key = (
      frame.width,
      frame.height,
      frame.format.name,
      frame.rotation % 360,
      frame.colorspace,
      frame.color_range,
    )
    if key != self._key:
      self._key, self._graph = key, self._build(frame, frame.rotation % 360)
    self._graph.vpush(frame)
    (plane,) = self._graph.vpull().planes
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
    out[:] = rows[: self.height, : 3 * self.width].reshape(out.shape)

  def _build(self, frame, rotation):
    w, h = _shown(frame, self._aspect)
    turn = {90: ['transpose=cclock'], 180: ['hflip', 'vflip'], 270: ['transpose=clock']}
    cover = max(self.width / w, self.height / h)
    scaled = max(self.width, round(w * cover)), max(self.height, round(h * cover))
    steps = turn.get(rotation, []) + [
      f'scale={scaled[0]}:{scaled[1]}:flags={self._flags}',
      'format=gbrp',
      f'crop={self.width}:{self.height}',
      f'scale={self.width}:{self.height}',
      'format=rgb24',
    ]
    graph = av.filter.Graph()
    graph.threads = 1
    nodes = [
      graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
      )
    ]
    nodes += [graph.add(*step.split('=', 1)) for step in steps] + [graph.add('buffersink')]
    graph.link_nodes(*nodes).configure()
    return graph


class _Sound:
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
