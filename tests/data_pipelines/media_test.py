"""Media: what is written is read, at the right time; what is broken is told."""

import errno
import fractions
import io
import os
import resource
import subprocess
import sys

import av
import numpy as np
import pytest

from data_pipelines import media
from data_pipelines import mp4
from data_pipelines import real
from data_pipelines import stills

SHAPE = {'height': 48, 'width': 64}
SOUND = {'sample_rate': 16_000, 'channels': 2}


def flash_and_click(frames, fps, rate, flash, channels=2, height=48, width=64):
  """Black until frame `flash`, white from there; silent until then, a tone from there."""
  pixels = np.zeros((frames, height, width, 3), np.uint8)
  pixels[flash:] = 255
  t = np.arange(media.audio_length(frames, fps, rate)) - round(flash / fps * rate)
  tone = np.where(t >= 0, 0.5 * np.cos(2 * np.pi * 1000 * t / rate), 0)
  return pixels, np.repeat(tone[:, None], channels, 1).astype(np.float32)


def offset(clip: media.Clip) -> float:
  """Seconds from the flash to the click."""
  bright = clip.frames[:, :, 20:].mean((1, 2, 3)) > 128
  loud = np.abs(clip.samples[:, 0]) > 0.25
  assert bright.any() and loud.any() and not bright[0]
  return loud.argmax() / clip.sample_rate - bright.argmax() / clip.fps


def mux(
  form='mp4',
  late_audio=0.0,
  late_video=0.0,
  gop=250,
  rotation=0,
  aspect=1,
  sound=True,
  flash=60,
  frames=100,
  codecs=('libx264', 'aac'),
) -> bytes:
  """A foreign file: 25 fps, red left edge, flash and click at one moment of the clock."""
  out, fps, rate = io.BytesIO(), 25, 48_000
  pixels, tone = flash_and_click(frames, fps, rate, flash)
  pixels[:, :, :8] = 255, 0, 0
  with av.open(out, 'w', format=form) as container:
    video = container.add_stream(codecs[0], rate=fps)
    video.width, video.height, video.pix_fmt = 64, 48, 'yuv420p'
    video.codec_context.gop_size = gop
    video.codec_context.sample_aspect_ratio = fractions.Fraction(aspect)
    if rotation:
      video.set_display_rotation(rotation)
    audio = container.add_stream(codecs[1], rate=rate, layout='stereo') if sound else None
    for i, x in enumerate(pixels):
      frame = av.VideoFrame.from_ndarray(x, 'rgb24')
      frame.pts, frame.time_base = i + round(late_video * fps), fractions.Fraction(1, fps)
      container.mux(video.encode(frame))
    container.mux(video.encode())
    if sound:
      skip = round((late_audio - late_video) * rate)
      tone = tone[skip:] if skip >= 0 else np.pad(tone, ((-skip, 0), (0, 0)))
      frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(tone.T), 'fltp', 'stereo')
      frame.sample_rate, frame.time_base = rate, fractions.Fraction(1, rate)
      frame.pts = round(late_audio * rate)
      container.mux(audio.encode(frame))
      container.mux(audio.encode())
  return out.getvalue()


@pytest.mark.parametrize(
  'fps, rate, frames, channels',
  [
    (16, 16_000, 33, 2),
    (25, 48_000, 60, 1),
    (30_000 / 1001, 44_100, 61, 2),
    (12.5, 22_050, 17, 1),
    (7, 8_000, 5, 2),
    (24, 48_000, 2, 2),
  ],
)
def test_written_is_read_in_sync_and_of_exact_length(fps, rate, frames, channels):
  pixels, tone = flash_and_click(frames, fps, rate, frames // 2, channels)
  data = mp4.write(None, pixels, fps, tone, rate)
  clip = media.read(data, **SHAPE, fps=fps, frames=frames, sample_rate=rate, channels=channels)
  assert clip.frames.shape == (frames, 48, 64, 3) and clip.frames.dtype == np.uint8
  assert clip.samples.shape == (round(frames / fps * rate), channels)
  assert clip.samples.dtype == np.float32
  assert abs(clip.frames.astype(int) - pixels).max() <= 12
  assert abs(offset(clip)) <= 1 / rate  # To the sample; the promise is 10 ms.
  info = media.probe(data)
  assert info.start == 0 and info.duration == pytest.approx(frames / fps, abs=1e-6)
  assert (info.fps, info.sample_rate, info.channels) == (pytest.approx(fps), rate, channels)
  with av.open(io.BytesIO(data)) as container:
    assert container.streams.audio[0].duration == len(tone)  # Not rounded to milliseconds.


def test_colours_survive():
  colours = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3), np.uint8)
  pixels = colours.repeat(16, 1).repeat(16, 2).repeat(8, 0)
  data = mp4.write(None, pixels, 16, crf=8)
  got = media.read(data, height=64, width=64, fps=16, frames=8, **SOUND).frames
  assert abs(got.astype(int) - pixels)[:, 8::16, 8::16].max() <= 3
  # Tagged BT.709, limited: players do not have to guess.
  with av.open(io.BytesIO(data)) as container:
    frame = next(container.decode(video=0))
    assert (frame.colorspace, frame.color_range) == (1, 1)


@pytest.mark.parametrize('source_fps, fps, frames', [(25, 16, 40), (25, 50, 120), (10, 16, 33)])
def test_other_frame_rates_stay_in_sync(source_fps, fps, frames):
  flash = source_fps
  pixels, tone = flash_and_click(source_fps * 3, source_fps, 16_000, flash)
  data = mp4.write(None, pixels, source_fps, tone, 16_000)
  clip = media.read(data, **SHAPE, fps=fps, frames=frames, **SOUND)
  assert len(clip.frames) == frames and abs(offset(clip)) < 0.001
  half = media.read(data, **SHAPE, fps=fps, frames=fps, **SOUND, start=0.5)
  assert abs(offset(half)) < 0.001 and half.frames.mean((1, 2, 3)).argmax() == fps // 2


@pytest.mark.parametrize('form', ['mp4', 'matroska', 'mpegts'])
@pytest.mark.parametrize('late_audio, late_video', [(0, 0), (0.68, 0), (0, 0.2), (0.68, 0.8)])
def test_streams_that_start_apart_stay_apart(form, late_audio, late_video):
  data = mux(form, late_audio, late_video)
  start = media.probe(data).start
  whole = media.read(data, **SHAPE, fps=25, frames=90, **SOUND, start=start)
  sought = media.read(data, **SHAPE, fps=25, frames=64, **SOUND, start=start + 1)
  assert abs(offset(whole)) < 0.002 and abs(offset(sought)) < 0.002
  assert offset(whole) == pytest.approx(offset(sought), abs=0.001)
  if late_audio > late_video and form == 'mp4':
    assert not whole.samples[: round((late_audio - late_video - 0.05) * 16_000)].any()


def test_timestamps_rounded_to_milliseconds_do_not_cut_the_sound():
  ask = {**SHAPE, 'fps': 25, 'frames': 90, **SOUND}
  exact, rounded = (media.read(mux(form, flash=0), **ask).samples for form in ('mp4', 'matroska'))
  np.testing.assert_allclose(rounded, exact, atol=1e-5)


def test_sound_that_ends_early_is_followed_by_silence():
  tone = np.full((8100, 1), 0.5, np.float32)  # 8100 is not a whole number of AAC frames.
  data = mp4.write(None, np.zeros((16, 48, 64, 3), np.uint8), 16, tone, 16_000)
  got = media.read(data, **SHAPE, fps=16, frames=16, **SOUND).samples
  assert got.shape == (16_000, 2) and not got[8100:].any() and got[8000:8090].min() > 0.3


def test_a_seek_that_lands_late_is_not_believed(monkeypatch):
  data, silent = mux(gop=5, flash=50), mux(gop=5, flash=50, sound=False)
  ask = {'count': 16_000, 'sample_rate': 16_000, 'channels': 1, 'start': 1.9}
  clip = {**SHAPE, 'fps': 25, 'frames': 25, **SOUND, 'start': 1.9}
  want, seen = media.read_audio(data, **ask), media.read(silent, **clip)
  monkeypatch.setattr(media, 'PREROLL', fractions.Fraction(-3, 10))
  np.testing.assert_allclose(media.read_audio(data, **ask), want, atol=1e-6)
  np.testing.assert_array_equal(media.read(silent, **clip).frames, seen.frames)


def test_no_sound_and_sound_alone(tmp_path):
  silent = mux(sound=False)
  assert media.read(silent, **SHAPE, fps=25, frames=9, **SOUND).samples is None
  assert media.read_audio(silent, count=9, sample_rate=8000, channels=1) is None
  assert not media.probe(silent).has_audio
  path = tmp_path / 'tone.wav'
  tone = np.sin(np.arange(44_100) / 50).astype(np.float32)
  with av.open(str(path), 'w') as container:
    stream = container.add_stream('pcm_s16le', rate=44_100, layout='mono')
    frame = av.AudioFrame.from_ndarray((tone[None] * 32767).astype(np.int16), 's16', 'mono')
    frame.sample_rate = 44_100
    container.mux(stream.encode(frame))
  got = media.read_audio(path, count=22_050, sample_rate=44_100, channels=2, start=0.25)
  np.testing.assert_allclose(got, tone[11_025:33_075, None].repeat(2, 1), atol=1e-3)
  low = media.read_audio(path, count=8000, sample_rate=16_000, channels=1, start=0.25)
  want = np.sin((11_025 + np.arange(8000) * 44_100 / 16_000) / 50)
  np.testing.assert_allclose(low[:, 0], want, atol=2e-3)  # Resampling does not shift.
  past = media.read_audio(path, count=100, sample_rate=44_100, channels=1, start=5)
  assert past.shape == (100, 1) and not past.any()
  with pytest.raises(media.MediaError, match='no video stream'):
    media.read(path, **SHAPE, fps=25, frames=1, **SOUND)


@pytest.mark.parametrize(
  'rotation, edge', [(90, np.s_[-6:]), (270, np.s_[:6]), (180, np.s_[:, -6:])]
)
def test_rotation_is_applied(rotation, edge):
  height, width = (64, 48) if rotation != 180 else (48, 64)
  data = mux(rotation=rotation, frames=5, sound=False)
  frame = media.read(data, height=height, width=width, fps=25, frames=1, **SOUND).frames[0]
  assert frame[edge][..., 0].mean() > 150 and frame[..., 0].mean() < 60


def test_aspect_is_kept_and_the_centre_cropped():
  for aspect, red in ((1, 8), (2, 0)):  # Shown at 128x48, the centre 64x48 has no red edge.
    data = mux(aspect=aspect, frames=5, sound=False)
    frame = media.read(data, **SHAPE, fps=25, frames=1, **SOUND).frames[0]
    assert abs((frame[24, :, 0] > 128).sum() - red) <= 1
  pixels = np.zeros((2, 64, 128, 3), np.uint8)
  pixels[:, :, 32:96] = 255
  crop = media.read(mp4.write(None, pixels, 8), height=32, width=32, fps=8, frames=2, **SOUND)
  assert crop.frames[:, :, 1:-1].min() > 235


def test_image(tmp_path):
  path = tmp_path / 'a.png'
  pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
  with av.open(str(path), 'w', format='image2', options={'update': '1'}) as container:
    stream = container.add_stream('png', rate=1)
    stream.width, stream.height, stream.pix_fmt = 30, 20, 'rgb24'
    container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, 'rgb24')))
    container.mux(stream.encode())
  np.testing.assert_array_equal(media.read_image(path, 20, 30), pixels)
  assert media.read_image(path.read_bytes(), 8, 8).shape == (8, 8, 3)
  with pytest.raises(media.MediaError, match='limit is 100'):
    media.read_image(path, 8, 8, media.Limits(max_pixels=100))


def test_shorter_than_asked_or_cut_off():
  data = mux(sound=False)
  assert len(media.read(data, **SHAPE, fps=25, frames=100, **SOUND).frames) == 100
  with pytest.raises(media.MediaError, match='ends 4.000 s after the start, but 101 frames'):
    media.read(data, **SHAPE, fps=25, frames=101, **SOUND)
  with pytest.raises(media.MediaError, match='ends'):
    media.read(data, **SHAPE, fps=25, frames=10, **SOUND, start=9)
  noise = np.random.default_rng(0).integers(0, 256, (48, 48, 64, 3), np.uint8)
  data = mp4.write(None, noise, 16)
  assert len(media.read(data[: len(data) // 2], **SHAPE, fps=16, frames=12, **SOUND).frames) == 12
  with pytest.raises(media.MediaError, match='ends'):
    media.read(data[: len(data) // 2], **SHAPE, fps=16, frames=48, **SOUND)


@pytest.mark.parametrize(
  'data',
  [
    b'',
    b'words, words, words ' * 99,
    bytes(5000),
    mux(sound=False)[:-500],
    b'#EXTM3U\n#EXTINF:10,\nfile:///etc/hostname\n',
    b"ffconcat version 1.0\nfile '/etc/passwd'\n",
  ],
)
def test_what_is_no_media_says_so(data, tmp_path):
  path = tmp_path / 'x%03d.mp4'
  path.write_bytes(data)
  for source in (data, path):
    with pytest.raises(media.MediaError, match='%03d.mp4' if source is path else 'bytes>'):
      media.probe(source)


@pytest.mark.parametrize(
  'kind, want',
  [({}, (48, 64)), ({'rotation': 90}, (64, 48)), ({'aspect': 2}, (48, 128))],
)
def test_displayed_counts_rotation_and_pixel_aspect(kind, want):
  assert media.displayed(mux(frames=2, flash=1, sound=False, **kind)) == want


def test_nearest_mixes_no_pixels():
  """Bands of three pixels."""
  bands = np.zeros((60, 96, 3), np.uint8)
  bands[:, np.arange(96) // 3 % 2 == 0] = 255
  data = stills.to_bytes(bands)
  got, mixed = media.read_image(data, 35, 56, nearest=True), media.read_image(data, 35, 56)
  assert set(np.unique(got)) == {0, 255} and len(np.unique(mixed)) > 2
  np.testing.assert_array_equal(
    media.read_image(data, 20, 32, nearest=True), bands[1::3, 1::3]
  )  # The pixel in the middle of each.


def test_playlists_are_not_followed(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'a.ts').write_bytes(mux('mpegts'))
  path = tmp_path / 'a.ffconcat'
  path.write_text('ffconcat version 1.0\nfile a.ts\n')
  with av.open(str(path)) as container:
    assert container.streams.video  # FFmpeg alone follows it.
  for source in (path, path.read_bytes()):
    with pytest.raises(media.MediaError, match='not readable'):
      media.probe(source)


def damaged(data: bytes, kind: str, every: int) -> bytes:
  """Every n-th packet of one stream is overwritten, but for its first two bytes."""
  broken = bytearray(data)
  with av.open(io.BytesIO(data)) as container:
    packets = [p for p in container.demux(**{kind: 0}) if p.size]
  for p in packets[every // 2 :: every]:
    broken[p.pos + 2 : p.pos + p.size] = b'\xff' * (p.size - 2)
  return bytes(broken)


def test_a_few_broken_packets_are_left_out_and_many_are_an_error():
  noise = np.random.default_rng(0).integers(0, 256, (100, 48, 64, 3), np.uint8)
  data = mp4.write(None, noise, 25, np.full((64_000, 1), 0.1, np.float32), 16_000, gop=1)
  ask = {**SHAPE, 'fps': 25, 'frames': 100, **SOUND}
  want, got = media.read(data, **ask), media.read(damaged(data, 'video', 50), **ask)
  same = (want.frames == got.frames).all((1, 2, 3))
  assert same.sum() == 98  # The picture before stands in for a broken one.
  np.testing.assert_array_equal(got.samples, want.samples)
  for kind in ('video', 'audio'):
    with pytest.raises(media.MediaError, match=f'{kind} packets are broken'):
      media.read(damaged(data, kind, 5), **ask)


def test_damage_is_not_painted_over():
  t, h, w = np.ogrid[:100, :48, :64]
  moving = np.stack(
    [(4 * w + 3 * t + 0 * h) % 256, (5 * h + 2 * t + 0 * w) % 256, (3 * w + 3 * h + t) % 256], -1
  ).astype(np.uint8)
  data = mp4.write(None, moving, 25, gop=25)
  broken = bytearray(data)
  with av.open(io.BytesIO(data)) as container:
    packets = [p for p in container.demux(video=0) if p.size]
  for p in packets[10::20]:
    broken[p.pos + p.size * 2 // 3] ^= 0x55
  # Left alone FFmpeg gives all 100 pictures, 21 of them smeared, and no error.
  with pytest.raises(media.MediaError, match='video packets are broken'):
    media.read(bytes(broken), **SHAPE, fps=25, frames=100, **SOUND)


def test_limits_are_checked_before_decoding(monkeypatch):
  data = mux(sound=False)
  monkeypatch.setattr(media, '_pour', lambda *a: pytest.fail('decoded'))
  for limits, what in (
    (media.Limits(max_pixels=1000), '64x48 is 3072 pixels, the limit is 1000'),
    (media.Limits(max_seconds=2), '4 s long, the limit is 2 s'),
  ):
    with pytest.raises(media.MediaError, match=what):
      media.read(data, **SHAPE, fps=25, frames=1, **SOUND, limits=limits)


def test_the_same_input_gives_the_same_bytes(tmp_path):
  pixels, tone = flash_and_click(33, 25, 48_000, 22, height=64, width=96)
  ask, notes = (pixels, 25, tone, 48_000), {'comment': 'ours', 'step': '7'}
  first = mp4.write(None, *ask, metadata=notes)
  # Without x264's cpu-independent one in three differs, depending on what lies where in memory.
  for i in range(24):
    elsewhere = [np.ones(997 * (i + k) ** 2) for k in range(i)]
    assert mp4.write(None, *ask, metadata=notes) == first, len(elsewhere)
  mp4.write(tmp_path / 'a.mp4', *ask, metadata=notes)
  assert (tmp_path / 'a.mp4').read_bytes() == first and os.listdir(tmp_path) == ['a.mp4']
  with av.open(str(tmp_path / 'a.mp4')) as container:
    assert notes.items() <= container.metadata.items()
  assert first.index(b'moov') < first.index(b'mdat')  # Plays before it is loaded.


def test_gop_sets_the_key_frames():
  data = mp4.write(None, flash_and_click(40, 16, 16_000, 30)[0], 16, gop=10)
  with av.open(io.BytesIO(data)) as container:
    keys = [p.is_keyframe for p in container.demux(video=0) if p.size]
  assert all(keys[i] for i in (0, 10, 20)) and sum(keys) <= 6


@pytest.mark.parametrize(
  'frames, arguments, what',
  [
    (np.zeros((2, 47, 64, 3), np.uint8), {}, '47x64.*even sizes.*48x64'),
    (np.zeros((2, 48, 64, 3), np.float32), {}, 'frames are float32'),
    (np.zeros((0, 48, 64, 3), np.uint8), {}, 'frames are'),
    (np.zeros((2, 48, 64, 3), np.uint8), {'fps': 0}, 'fps is 0'),
    (np.zeros((2, 48, 64, 3), np.uint8), {'samples': np.zeros(9)}, r'samples are float64 \[9\]'),
    (np.zeros((2, 48, 64, 3), np.uint8), {'samples': np.full((9, 1), np.nan)}, 'NaN'),
    (np.zeros((2, 48, 64, 3), np.uint8), {'samples': np.zeros((9, 3))}, r'\[9, 3\]'),
    (
      np.zeros((2, 48, 64, 3), np.uint8),
      {'samples': np.zeros((9, 1)), 'sample_rate': 12_345},
      'sample_rate is 12345',
    ),
  ],
)
def test_what_cannot_be_written_says_so(frames, arguments, what):
  with pytest.raises(ValueError, match=what):
    mp4.write(None, frames, **({'fps': 16, 'sample_rate': 16_000} | arguments))


@pytest.mark.parametrize(
  'name, value, what',
  [
    ('fps', 0, 'fps is 0'),
    ('frames', 0, 'frames is 0'),
    ('channels', 6, 'channels is 6'),
    ('start', -1, 'start is -1'),
    ('height', 0, 'height is 0'),
    ('fps', float('nan'), 'fps is nan'),
  ],
)
def test_what_cannot_be_asked_says_so(name, value, what):
  with pytest.raises(ValueError, match=what):
    media.read(b'', **({**SHAPE, 'fps': 25, 'frames': 1, **SOUND} | {name: value}))


def test_unwritable_places_name_the_path_and_leave_nothing(tmp_path):
  pixels = np.zeros((2, 48, 64, 3), np.uint8)
  with pytest.raises(FileNotFoundError, match='none/a.mp4') as e:
    mp4.write(tmp_path / 'none' / 'a.mp4', pixels, 16)
  assert e.value.errno == errno.ENOENT
  with pytest.raises(FileNotFoundError, match='gone.mp4'):
    media.probe(tmp_path / 'gone.mp4')
  with pytest.raises(IsADirectoryError, match=tmp_path.name):
    media.probe(tmp_path)
  assert not os.listdir(tmp_path)


FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # The write then fails with EFBIG.
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
import numpy as np
from data_pipelines import media
from data_pipelines import mp4
from data_pipelines import mp4
noise = np.random.default_rng(0).integers(0, 256, (16, 48, 64, 3), np.uint8)
try:
  mp4.write(sys.argv[1], noise, 16)
except OSError as e:
  print(type(e).__name__, e.errno, e.filename)
"""


def test_a_disk_that_fills_up_leaves_what_was_there(tmp_path):
  path = tmp_path / 'a.mp4'
  path.write_bytes(b'before')
  done = subprocess.run(
    [sys.executable, '-c', FULL, str(path)], capture_output=True, text=True, check=True
  )
  assert done.stdout.split() == ['OSError', str(errno.EFBIG), str(path)]
  assert os.listdir(tmp_path) == ['a.mp4'] and path.read_bytes() == b'before'
  assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 2000


@pytest.mark.real_media
def test_real_clips(tmp_path_factory):
  clips = real.fetch(tmp_path_factory.getbasetemp().parent / 'sr4_real_media')
  if not clips:
    pytest.skip('the real clips cannot be fetched here')
  rabbit = clips[0].path
  info = media.probe(rabbit)
  assert (info.width, info.height, info.fps, info.channels) == (1280, 720, 25, 6)
  clip = media.read(rabbit, height=64, width=112, fps=16, frames=84, **SOUND)
  assert clip.samples.shape == (84_000, 2) and 0.003 < clip.samples.std() < 0.1
  late = media.read(rabbit, height=64, width=112, fps=16, frames=20, **SOUND, start=2)
  np.testing.assert_array_equal(late.frames, clip.frames[32:52])
  np.testing.assert_allclose(late.samples, clip.samples[32_000:52_000], atol=1e-3)
