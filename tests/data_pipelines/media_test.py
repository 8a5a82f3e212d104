"""Media: what is there is read, at the right time; what is broken is told."""

import fractions
import io

import av
import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest

from data_pipelines import media
from data_pipelines import mp4
from data_pipelines import real
from data_pipelines import stills
from tests.data_pipelines import small_media as small


def mux(
  form='mp4',
  late_audio=0.0,
  late_video=0.0,
  more_audio=0.0,
  gop=250,
  rotation=0,
  aspect=1,
  sound=True,
  flash=60,
  frames=100,
  codecs=('libx264', 'aac'),
  options=None,
) -> bytes:
  """A foreign file: 25 fps, red left edge, flash and click at one moment of the clock."""
  out, fps, rate = io.BytesIO(), 25, 48_000
  pixels, tone = small.flash_and_click(frames, fps, rate, flash)
  pixels[:, :, :8] = 255, 0, 0
  tone = np.concatenate([tone, tone[len(tone) - round(more_audio * rate) :]])
  with av.open(out, 'w', format=form, options=options or {}) as container:
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


@pytest.mark.parametrize('source_fps, fps, frames', [(25, 16, 40), (25, 50, 120), (10, 16, 33)])
def test_other_frame_rates_stay_in_sync(source_fps, fps, frames):
  flash = source_fps
  pixels, tone = small.flash_and_click(source_fps * 3, source_fps, 16_000, flash)
  data = mp4.write(None, pixels, source_fps, tone, 16_000)
  clip = media.read(data, **small.SHAPE, fps=fps, frames=frames, **small.SOUND)
  assert len(clip.frames) == frames and abs(small.offset(clip)) < 0.001
  half = media.read(data, **small.SHAPE, fps=fps, frames=fps, **small.SOUND, start=0.5)
  assert abs(small.offset(half)) < 0.001 and half.frames.mean((1, 2, 3)).argmax() == fps // 2


@pytest.mark.parametrize('form', ['mp4', 'matroska', 'mpegts'])
@pytest.mark.parametrize('late_audio, late_video', [(0, 0), (0.68, 0), (0, 0.2), (0.68, 0.8)])
def test_streams_that_start_apart_stay_apart(form, late_audio, late_video):
  data = mux(form, late_audio, late_video)
  start = media.probe(data).start
  whole = media.read(data, **small.SHAPE, fps=25, frames=90, **small.SOUND, start=start)
  sought = media.read(data, **small.SHAPE, fps=25, frames=64, **small.SOUND, start=start + 1)
  assert abs(small.offset(whole)) < 0.002 and abs(small.offset(sought)) < 0.002
  assert small.offset(whole) == pytest.approx(small.offset(sought), abs=0.001)
  if late_audio > late_video and form == 'mp4':
    assert not whole.samples[: round((late_audio - late_video - 0.05) * 16_000)].any()


@pytest.mark.parametrize('form', ['mp4', 'matroska', 'mpegts', 'flv'])
@pytest.mark.parametrize('late_video, more_audio', [(0, 0), (0, 0.3), (0.2, 0.1)])
def test_the_duration_is_that_of_the_pictures(form, late_video, more_audio):
  data = mux(form, late_video=late_video, more_audio=more_audio)
  assert media.probe(data).duration == pytest.approx(4, abs=1e-3)


@pytest.mark.parametrize('gop', [250, 5])
def test_what_was_recorded_live_has_a_duration(gop):
  data = mux('matroska', late_video=0.2, gop=gop, options={'live': '1'})
  with av.open(io.BytesIO(data)) as container:
    assert container.duration is None
  assert media.probe(data).duration == pytest.approx(4, abs=1e-3)
  cut = media.probe(data[: len(data) // 2]).duration
  assert 0 < cut < 4


def test_sound_before_the_clock_and_before_the_pictures():
  """A LAME MP3 begins at 1105 / 44100 s, its container at that in microseconds."""
  out, tone = io.BytesIO(), np.full((1, 44_100), 0.5, np.float32)
  with av.open(out, 'w', format='mp3') as container:
    stream = container.add_stream('libmp3lame', rate=44_100, layout='mono')
    frame = av.AudioFrame.from_ndarray(tone, 'fltp', 'mono')
    frame.sample_rate = 44_100
    container.mux(stream.encode(frame))
    container.mux(stream.encode())
  start = media.probe(out.getvalue()).start
  ask = {'count': 8000, 'sample_rate': 16_000, 'channels': 1}
  assert start == 0 and media.read_audio(out.getvalue(), **ask, start=start).mean() > 0.4
  kept = {'avoid_negative_ts': 'disabled'}
  data = mux('matroska', late_audio=-0.8, options=kept, codecs=('libx264', 'flac'))
  assert media.probe(data).start == pytest.approx(0.8, abs=1e-3)


def test_timestamps_rounded_to_milliseconds_do_not_cut_the_sound():
  ask = {**small.SHAPE, 'fps': 25, 'frames': 90, **small.SOUND}
  exact, rounded = (media.read(mux(form, flash=0), **ask).samples for form in ('mp4', 'matroska'))
  np.testing.assert_allclose(rounded, exact, atol=1e-5)


def test_sound_that_ends_early_is_followed_by_silence():
  tone = np.full((8100, 1), 0.5, np.float32)  # 8100 is not a whole number of AAC frames.
  data = mp4.write(None, np.zeros((16, 48, 64, 3), np.uint8), 16, tone, 16_000)
  got = media.read(data, **small.SHAPE, fps=16, frames=16, **small.SOUND).samples
  assert got.shape == (16_000, 2) and not got[8100:].any() and got[8000:8090].min() > 0.3


def test_a_seek_that_lands_late_is_not_believed(monkeypatch):
  data, silent = mux(gop=5, flash=50), mux(gop=5, flash=50, sound=False)
  ask = {'count': 16_000, 'sample_rate': 16_000, 'channels': 1, 'start': 1.9}
  clip = {**small.SHAPE, 'fps': 25, 'frames': 25, **small.SOUND, 'start': 1.9}
  want, seen = media.read_audio(data, **ask), media.read(silent, **clip)
  monkeypatch.setattr(media, 'PREROLL', fractions.Fraction(-3, 10))
  np.testing.assert_allclose(media.read_audio(data, **ask), want, atol=1e-6)
  np.testing.assert_array_equal(media.read(silent, **clip).frames, seen.frames)


def test_no_sound_and_sound_alone(tmp_path):
  silent = mux(sound=False)
  assert media.read(silent, **small.SHAPE, fps=25, frames=9, **small.SOUND).samples is None
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
    media.read(path, **small.SHAPE, fps=25, frames=1, **small.SOUND)


@pytest.mark.parametrize(
  'rotation, edge', [(90, np.s_[-6:]), (270, np.s_[:6]), (180, np.s_[:, -6:])]
)
def test_rotation_is_applied(rotation, edge):
  height, width = (64, 48) if rotation != 180 else (48, 64)
  data = mux(rotation=rotation, frames=5, sound=False)
  frame = media.read(data, height=height, width=width, fps=25, frames=1, **small.SOUND).frames[0]
  assert frame[edge][..., 0].mean() > 150 and frame[..., 0].mean() < 60


@pytest.mark.parametrize('orientation', range(1, 9))
def test_pictures_are_turned_and_mirrored_as_exif_says(orientation):
  rgb = np.zeros((40, 64, 3), np.uint8)
  rgb[:20, :32], rgb[20:, :32], rgb[20:, 32:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
  exif, out = PIL.Image.Exif(), io.BytesIO()
  exif[0x112] = orientation
  PIL.Image.fromarray(rgb).save(out, 'PNG', exif=exif)
  want = np.asarray(PIL.ImageOps.exif_transpose(PIL.Image.open(out)))
  assert media.displayed(out.getvalue()) == want.shape[:2]
  np.testing.assert_array_equal(media.read_image(out.getvalue(), *want.shape[:2]), want)


def test_aspect_is_kept_and_the_centre_cropped():
  for aspect, red in ((1, 8), (2, 0)):  # Shown at 128x48, the centre 64x48 has no red edge.
    data = mux(aspect=aspect, frames=5, sound=False)
    frame = media.read(data, **small.SHAPE, fps=25, frames=1, **small.SOUND).frames[0]
    assert abs((frame[24, :, 0] > 128).sum() - red) <= 1
  pixels = np.zeros((2, 64, 128, 3), np.uint8)
  pixels[:, :, 32:96] = 255
  crop = media.read(mp4.write(None, pixels, 8), height=32, width=32, fps=8, frames=2, **small.SOUND)
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


def test_tiff_with_the_tags_of_a_camera():
  pixels, out = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8), io.BytesIO()
  PIL.Image.fromarray(pixels).save(out, 'TIFF', dpi=(72, 72), tiffinfo={274: 1})
  np.testing.assert_array_equal(media.read_image(out.getvalue(), 20, 30), pixels)
  with pytest.raises(media.MediaError):
    media.read_image(out.getvalue()[:900], 20, 30)


def test_shorter_than_asked_or_cut_off():
  data = mux(sound=False)
  assert len(media.read(data, **small.SHAPE, fps=25, frames=100, **small.SOUND).frames) == 100
  with pytest.raises(media.MediaError, match='ends 4.000 s after the start, but 101 frames'):
    media.read(data, **small.SHAPE, fps=25, frames=101, **small.SOUND)
  with pytest.raises(media.MediaError, match='ends'):
    media.read(data, **small.SHAPE, fps=25, frames=10, **small.SOUND, start=9)
  noise = np.random.default_rng(0).integers(0, 256, (48, 48, 64, 3), np.uint8)
  data = mp4.write(None, noise, 16)
  assert (
    len(media.read(data[: len(data) // 2], **small.SHAPE, fps=16, frames=12, **small.SOUND).frames)
    == 12
  )
  with pytest.raises(media.MediaError, match='ends'):
    media.read(data[: len(data) // 2], **small.SHAPE, fps=16, frames=48, **small.SOUND)


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


def test_what_is_not_there_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match='gone.mp4'):
    media.probe(tmp_path / 'gone.mp4')
  with pytest.raises(IsADirectoryError, match=tmp_path.name):
    media.probe(tmp_path)


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
  ask = {**small.SHAPE, 'fps': 25, 'frames': 100, **small.SOUND}
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
    media.read(bytes(broken), **small.SHAPE, fps=25, frames=100, **small.SOUND)


def test_limits_are_checked_before_decoding(monkeypatch):
  data = mux(sound=False)
  monkeypatch.setattr(media, '_pour', lambda *a: pytest.fail('decoded'))
  for limits, what in (
    (media.Limits(max_pixels=1000), '64x48 is 3072 pixels, the limit is 1000'),
    (media.Limits(max_seconds=2), '4 s long, the limit is 2 s'),
  ):
    with pytest.raises(media.MediaError, match=what):
      media.read(data, **small.SHAPE, fps=25, frames=1, **small.SOUND, limits=limits)


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
    media.read(b'', **({**small.SHAPE, 'fps': 25, 'frames': 1, **small.SOUND} | {name: value}))


@pytest.mark.real_media
def test_real_clips(tmp_path_factory):
  clips = real.fetch(tmp_path_factory.getbasetemp().parent / 'sr4_real_media')
  if not clips:
    pytest.skip('the real clips cannot be fetched here')
  rabbit = clips[0].path
  info = media.probe(rabbit)
  assert (info.width, info.height, info.fps, info.channels) == (1280, 720, 25, 6)
  clip = media.read(rabbit, height=64, width=112, fps=16, frames=84, **small.SOUND)
  assert clip.samples.shape == (84_000, 2) and 0.003 < clip.samples.std() < 0.1
  late = media.read(rabbit, height=64, width=112, fps=16, frames=20, **small.SOUND, start=2)
  np.testing.assert_array_equal(late.frames, clip.frames[32:52])
  np.testing.assert_allclose(late.samples, clip.samples[32_000:52_000], atol=1e-3)
