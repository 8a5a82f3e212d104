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

from data_pipelines import sinks
from data_pipelines.sinks import MediaError

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
  duration: float  # Seconds of video (without video: of sound); 0.0 for a still picture.
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


def frames_in(seconds: float, fps: float) -> int:
  """Frames that so long a clip has, as `read` counts them: half of one is one."""
  return math.floor(seconds * fps + 0.5)


def probe(source) -> Info:
  """Reads the header, and where it does not say how long the stream is, the last packets.

  Raises MediaError if there is none, OSError if the file cannot be read.
  """
  with _open(source) as container:
    info, streams = _info(container), _streams(container)
    main = streams[0] or streams[1]
    # Matroska, WebM and FLV know their longest stream alone.  A still picture has no start.
    if main.duration is None and main.start_time is not None:
      end = _last_end(container, main)
      if end is not None:
        length = end - _seconds(main.start_time, main)
        info = dataclasses.replace(info, duration=float(length))
    return info


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

  def wanted(container):
    video, audio = _streams(container)
    if video is None:
      raise MediaError('no video stream; read_audio and read_image take the rest.')
    _check_limits(_info(container), limits)
    scale = sinks.Scaler(video, height, width, nearest)
    yield video, sinks.Pictures(exact_rate(fps), frames, scale, limits.max_pixels)
    if audio is not None:
      yield audio, sinks.Sound(_extent(container, audio, start), count, sample_rate, channels)

  pixels, *samples = _decode(source, start, wanted)
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

  def wanted(container):
    _, audio = _streams(container)
    if audio is not None:
      _check_limits(_info(container), limits)
      yield audio, sinks.Sound(_extent(container, audio, start), count, sample_rate, channels)

  return next(iter(_decode(source, start, wanted)), None)


def read_image(
  source, height: int, width: int, limits: Limits = Limits(), *, nearest: bool = False
) -> np.ndarray:
  """A still picture (of a moving one, the first): uint8 [height width 3].  Alpha is dropped."""
  _check_request(height, width, 1, 1, 8000, 1, 0)
  with _first_picture(source, limits) as (video, frame):
    picture = np.empty((height, width, 3), np.uint8)
    sinks.Scaler(video, height, width, nearest)(frame, picture)
    return picture


def displayed(source, limits: Limits = Limits()) -> tuple[int, int]:
  """(height, width) of the first picture as it is shown: after rotation and pixel aspect."""
  with _first_picture(source, limits) as (video, frame):
    width, height = sinks.shown(frame, video.sample_aspect_ratio)
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
          if context.name != 'tiff':  # There it refuses tags that every camera writes.
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
  origin, first = _origin(container), _seconds(main.start_time, main)
  # FFmpeg rounds the origin to microseconds: what begins with it may seem to begin before it.
  start = max(fractions.Fraction(0), (origin if first is None else first) - origin)
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


def _last_end(container, stream) -> fractions.Fraction | None:
  """When the last packet of a stream ends; where a seek finds it, little else is read."""
  ends, begin = [], container.start_time or 0
  for at in (container.duration, 0):
    if ends or at is None:
      continue
    with contextlib.suppress(av.FFmpegError):  # A format that cannot seek is read through.
      container.seek(begin + at)
    with contextlib.suppress(av.FFmpegError):  # Cut off: it ends there.
      for packet in container.demux(stream):
        if packet.pts is not None:
          ends.append(packet.pts + (packet.duration or 0))
  return _seconds(max(ends), stream) if ends else None


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
  taken = {stream.index: sink for stream, sink in pairs}
  packets, broken, reason = dict.fromkeys(taken, 0), dict.fromkeys(taken, 0), ''
  origin = _origin(container) + start
  demux = container.demux(*(stream for stream, _ in pairs))
  while not all(sink.done for sink in taken.values()):
    try:
      packet = next(demux, None)
    except av.error.InvalidDataError:
      break  # The container itself is damaged here: what follows cannot be found.
    if packet is None:
      break
    i = packet.stream.index
    if taken[i].done:
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
        taken[i].add(frame, _after(origin, frame))
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
