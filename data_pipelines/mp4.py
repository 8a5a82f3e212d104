"""Arrays to MP4: H.264 and AAC, in sync to the sample, the same bytes each time."""

import fractions
import io
import math

import av
import av.codec.context
import numpy as np

from data_pipelines import media
from sr4.core import files

AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)


def write(
  path,
  frames,
  fps: float,
  samples=None,
  sample_rate: int | None = None,
  *,
  crf: int = 18,
  gop: int | None = None,
  metadata: dict | None = None,
) -> bytes | None:
  """Writes an MP4 that plays everywhere: H.264 4:2:0 BT.709, AAC, header first.

  The same input gives the same bytes.  The file appears complete or not at all.

  Args:
    path: where to, replacing what is there; None returns the bytes.
    frames: uint8 [t h w 3]; h and w even.
    samples: float in [-1, 1] or int16, [n c] with c 1 or 2, beginning with the first frame.
    crf: x264's quality, 0 (lossless in its own colour space) to 51.
    gop: frames from one key frame to the next at most; None leaves it to x264 (250).
    metadata: names to texts, e.g. {'comment': 'made by a model'}.
  Raises:
    ValueError: what the arguments break.
    OSError: with the path in it; no part of the file is left.
  """
  frames, samples = np.asarray(frames), None if samples is None else np.asarray(samples)
  _check_write(frames, fps, samples, sample_rate)
  if samples is not None and samples.dtype == np.int16:
    samples = samples.astype(np.float32) / 32768
  data = _encode(frames, media.exact_rate(fps), samples, sample_rate, crf, gop, metadata or {})
  if path is None:
    return data
  files.save(path, data)


def _check_write(frames, fps, samples, sample_rate):
  if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not frames.size:
    raise ValueError(f'frames are {frames.dtype} {list(frames.shape)}; give uint8 [t h w 3].')
  h, w = frames.shape[1:3]
  if h % 2 or w % 2:
    raise ValueError(
      f'{h}x{w} frames: H.264 4:2:0 needs even sizes; crop or pad them to {h + h % 2}x{w + w % 2}.'
    )
  if not 0 < fps < math.inf:
    raise ValueError(f'fps is {fps!r}; give frames per second, above 0.')
  if samples is None:
    return
  kinds = np.issubdtype(samples.dtype, np.floating) or samples.dtype == np.int16
  if not kinds or samples.ndim != 2 or samples.shape[1] not in (1, 2) or not samples.size:
    raise ValueError(
      f'samples are {samples.dtype} {list(samples.shape)}; give float in [-1, 1] or '
      'int16, [n 1] or [n 2].'
    )
  if not np.isfinite(samples).all():
    raise ValueError('samples hold NaN or infinity; give numbers in [-1, 1].')
  if sample_rate not in AAC_RATES:
    raise ValueError(f'sample_rate is {sample_rate!r}; AAC has {AAC_RATES}.')


def _encode(frames, rate, samples, sample_rate, crf, gop, metadata) -> bytes:
  """The MP4's bytes.  Sound is fed beside the pictures so that the file is interleaved."""
  out = io.BytesIO()
  # FFmpeg's edit lists count in the movie's time scale: at the default 1000 they would round the
  # sound to milliseconds.  They are also what takes AAC's first 1024 (priming) samples away.
  options = {
    'movflags': '+faststart+use_metadata_tags',
    'fflags': '+bitexact',
    'movie_timescale': str(sample_rate or 90_000),
  }
  # To put the header first FFmpeg reads back what it has written: it gets a copy.
  with av.open(
    out,
    'w',
    format='mp4',
    container_options=options,
    io_open=lambda url, flags, options: io.BytesIO(out.getvalue()),
  ) as container:
    container.metadata.update({str(k): str(v) for k, v in metadata.items()})
    video = _add_h264(container, frames, rate, crf, gop)
    audio = None if samples is None else _add_aac(container, samples, sample_rate)
    to_yuv, done = _to_yuv(frames, rate), 0
    for i, pixels in enumerate(frames):
      picture = av.VideoFrame.from_ndarray(pixels, 'rgb24')
      picture.pts, picture.time_base = i, 1 / rate
      to_yuv.vpush(picture)
      container.mux(video.encode(to_yuv.vpull()))
      if audio is not None:
        until = len(samples) if i + 1 == len(frames) else int((i + 1) / rate * sample_rate)
        container.mux(_encode_sound(audio, samples[done:until], done, sample_rate))
        done = max(done, until)
    container.mux(video.encode())
    if audio is not None:
      container.mux(audio.encode())
  return out.getvalue()


def _add_h264(container, frames, rate, crf, gop):
  # Without cpu-independent x264's rate control differs between runs on one machine (a third do).
  options = {'crf': str(crf), 'x264-params': 'cpu-independent=1'}
  stream = container.add_stream('libx264', rate=rate, options=options)
  stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], 'yuv420p'
  context = stream.codec_context
  context.thread_count = 1
  context.flags |= av.codec.context.Flags.bitexact
  context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
  context.color_range = 1  # Limited, what players expect.
  if gop is not None:
    context.gop_size = gop
  return stream


def _add_aac(container, samples, sample_rate):
  channels = samples.shape[1]
  stream = container.add_stream('aac', rate=sample_rate, layout=('mono', 'stereo')[channels - 1])
  stream.codec_context.bit_rate = min(96_000, 5 * sample_rate) * channels
  stream.codec_context.thread_count = 1
  stream.codec_context.flags |= av.codec.context.Flags.bitexact
  return stream


def _to_yuv(frames, rate):
  """rgb24 to limited-range BT.709 yuv420p; left alone FFmpeg would use BT.601 and not say so."""
  graph = av.filter.Graph()
  graph.threads = 1
  nodes = [
    graph.add_buffer(
      width=frames.shape[2], height=frames.shape[1], format='rgb24', time_base=1 / rate
    ),
    graph.add(
      'scale', 'flags=bicubic+accurate_rnd+full_chroma_int:out_color_matrix=bt709:out_range=limited'
    ),
    graph.add('format', 'yuv420p'),
    graph.add('buffersink'),
  ]
  graph.link_nodes(*nodes).configure()
  return graph


def _encode_sound(stream, samples, at, sample_rate):
  if not len(samples):
    return []
  planes = np.ascontiguousarray(np.clip(samples, -1, 1).T, np.float32)
  frame = av.AudioFrame.from_ndarray(planes, 'fltp', layout=stream.layout.name)
  frame.sample_rate, frame.pts = sample_rate, at
  frame.time_base = fractions.Fraction(1, sample_rate)
  return stream.encode(frame)
