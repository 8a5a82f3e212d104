"""Excerpts: the right stretch, at even steps, of each kind of file."""

import av
import numpy as np
import pytest

from data_pipelines import media
from data_pipelines import mp4
from data_pipelines import stills
from data_pipelines.curate import excerpt


def clip(frames=50, fps=25, height=64, width=96, sound=None, rate=48_000) -> bytes:
  """Picture k has the grey 4 k; sound is of one value."""
  pixels = np.empty((frames, height, width, 3), np.uint8)
  pixels[:] = 4 * np.arange(frames)[:, None, None, None]
  samples = None if sound is None else np.full((round(frames / fps * rate), 2), sound, np.float32)
  return mp4.write(None, pixels, fps, samples, rate, crf=8)


def wav(path, samples, rate):
  """Writes float32 [n 1] as they are."""
  with av.open(str(path), 'w') as container:
    stream = container.add_stream('pcm_f32le', rate=rate, layout='mono')
    frame = av.AudioFrame.from_ndarray(np.float32(samples).T, 'flt', 'mono')
    frame.sample_rate = rate
    container.mux(stream.encode(frame))
  return path


@pytest.mark.parametrize('fps, step', [(25, 3), (16, 2), (24, 3), (6, 1), (50, 6)])
def test_every_nth_picture_and_the_sound_under_it(fps, step):
  got = excerpt.read(clip(50, fps, sound=0.25), 0, 50 / fps, side=32)
  assert got.fps == pytest.approx(fps / step) and got.source_fps == fps
  assert got.frames.shape[1:] == (32, 48, 3) and (got.width, got.height) == (96, 64)
  greys = got.frames.mean((1, 2, 3))
  np.testing.assert_allclose(np.diff(greys), 4 * step, atol=1.5)
  assert len(greys) == 50 // step
  assert (got.sample_rate, got.source_rate) == (48_000, 48_000)
  assert len(got.samples) == media.audio_length(len(got.frames), got.fps, 48_000)
  assert np.median(got.samples) == pytest.approx(0.25, abs=0.02)


def test_a_burst_holds_each_picture_once(monkeypatch):
  monkeypatch.setattr(excerpt, 'BURST', 20)
  got = excerpt.read(clip(60, 25), 0.2, 2.0)
  greys = got.burst.mean((1, 2, 3))
  np.testing.assert_allclose(np.diff(greys), 4, atol=1.5)
  assert 18 <= len(greys) <= 20
  assert abs(greys.mean() / 4 / 25 - 1.2) < 0.05  # The middle.


def test_a_stretch_ends_with_the_file():
  data = clip(50, 25)
  got = excerpt.read(data, 1.2, 9)
  assert got.seconds == pytest.approx(0.8) and got.samples is None and got.sample_rate == 0
  assert got.frames[0].mean() / 4 == pytest.approx(31, abs=1)  # The middle of three.
  short = excerpt.read(data, 1.92, 0.08)  # Two pictures, at the file's own rate.
  assert len(short.frames) == 2 and short.fps == 25
  with pytest.raises(media.MediaError, match='ends at 2.000 s, before the start at 2.5'):
    excerpt.read(data, 2.5, 1)
  with pytest.raises(ValueError, match='above 0'):
    excerpt.read(data, 0, 0)


def test_pictures_are_never_enlarged():
  assert excerpt.read(clip(5, 25, 64, 96), 0, 1).frames.shape[1:] == (64, 96, 3)


def test_a_turned_video_stands(tmp_path):
  path = tmp_path / 'turned.mp4'
  with av.open(str(path), 'w') as container:
    stream = container.add_stream('libx264', rate=25)
    stream.width, stream.height, stream.pix_fmt = 96, 64, 'yuv420p'
    stream.set_display_rotation(90)
    for _ in range(25):
      frame = av.VideoFrame.from_ndarray(np.zeros((64, 96, 3), np.uint8), 'rgb24')
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  got = excerpt.read(path, 0, 1, side=32)
  assert (got.width, got.height) == (64, 96) and got.frames.shape[1:] == (48, 32, 3)


def test_sound_alone(tmp_path):
  tone = 0.5 * np.sin(np.arange(88_200) / 30)[:, None]
  path = wav(tmp_path / 'a.wav', tone, 44_100)
  got = excerpt.read(path, 0.5, 1.0)
  assert got.frames is None and got.burst is None and got.fps == got.source_fps == got.width == 0
  np.testing.assert_allclose(got.samples, tone[22_050:66_150], atol=1e-6)
  assert excerpt.read(path, 1.5, 9).samples.shape == (22_050, 1)  # No silence is made up.
  assert excerpt.read(path, 0, 1, rate=16_000).samples.shape == (16_000, 1)
  fast = excerpt.read(wav(tmp_path / 'b.wav', tone, 96_000), 0, 0.5)
  assert (fast.sample_rate, fast.source_rate, len(fast.samples)) == (48_000, 96_000, 24_000)


def test_sound_that_is_not_finite_is_an_error(tmp_path):
  path = wav(tmp_path / 'nan.wav', np.full((8000, 1), np.nan), 8000)
  with pytest.raises(media.MediaError, match='nan.wav: its sound is not finite'):
    excerpt.read(path, 0, 1)


def test_a_still_picture(tmp_path):
  path = tmp_path / 'a.png'
  pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
  path.write_bytes(stills.to_png(pixels))
  got = excerpt.read(path, 0, 5)
  np.testing.assert_array_equal(got.frames, pixels[None])
  assert got.samples is None and got.seconds == 0 and (got.width, got.height) == (30, 20)
  assert excerpt.read(path, 0, 5, side=10).frames.shape == (1, 10, 15, 3)


def test_a_header_that_claims_a_million_pictures_a_second_is_harmless():
  info = media.Info(
    width=64, height=64, fps=1e6, duration=10.0, has_audio=False, sample_rate=0, channels=0
  )
  asked = []
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(media, 'probe', lambda path: info)
    patch.setattr(media, 'displayed', lambda path: (64, 64))

    def read(path, *, frames, fps, **_):
      asked.append((frames, fps))
      return media.Clip(np.zeros((1, 64, 64, 3), np.uint8), fps, None, 0)

    patch.setattr(media, 'read', read)
    excerpt.read('x.mp4', 0, 10)
  assert max(frames for frames, _ in asked) <= 80 and asked[0][1] == pytest.approx(8)
