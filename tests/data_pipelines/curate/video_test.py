"""Scores of pictures that were drawn to have them."""

import numpy as np
import pytest

from data_pipelines import mp4
from data_pipelines import real
from data_pipelines import world
from data_pipelines.curate import excerpt
from data_pipelines.curate import video

cv2 = pytest.importorskip('cv2')
MOTION = {'fps', 'motion', 'stability', 'repeated'}
STILL = {'width', 'height', 'sharpness', 'contrast', 'exposure'}


def of(frames, fps=8.0) -> excerpt.Excerpt:
  t, h, w = frames.shape[:3]
  return excerpt.Excerpt(frames, fps, None, 0, 0.0, t / fps, w, h, fps, 0)


def texture(height, width, grain=3.0, seed=0):
  """Smooth random grey, uint8 [h w 3], that fills 0..255."""
  noise = np.random.default_rng(seed).standard_normal((height, width)).astype(np.float32)
  smooth = cv2.GaussianBlur(noise, (0, 0), grain)
  grey = 255 * (smooth - smooth.min()) / np.ptp(smooth)
  return np.repeat(grey.astype(np.uint8)[..., None], 3, -1)


def shown(offsets, height=96, width=144):
  """A window that lies offsets [t 2] (x, y; pixels) before its start: the picture moves by them."""
  big = texture(3 * height, 3 * width)
  frames = []
  for x, y in np.asarray(offsets, float):
    shift = np.float32([[1, 0, x - width], [0, 1, y - height]])
    frames.append(cv2.warpAffine(big, shift, (width, height), flags=cv2.INTER_CUBIC))
  return np.stack(frames)


def test_a_picture_has_no_motion_and_sound_no_picture():
  assert set(video.scores(of(texture(40, 60)[None]))) == STILL
  assert set(video.scores(of(shown([(0, 0)] * 3)))) == STILL | MOTION
  sound = excerpt.Excerpt(None, 0.0, np.zeros((9, 1), np.float32), 9, 0.0, 1.0, 0, 0, 0.0, 9)
  assert video.scores(sound) == {}


def test_light():
  frame = np.full((1, 50, 80, 3), 50, np.uint8)
  frame[:, :, 40:] = 200
  got = video.scores(of(frame))
  assert got['contrast'] == pytest.approx(150 / 255) and got['exposure'] == pytest.approx(125 / 255)
  assert (got['width'], got['height']) == (80, 50)
  ramp = np.arange(256, dtype=np.uint8)[None, None, :, None] * np.ones((1, 9, 1, 3), np.uint8)
  assert video.scores(of(ramp))['contrast'] == pytest.approx(0.9, abs=0.01)
  green = np.zeros((1, 50, 80, 3), np.uint8)
  green[..., 1] = 255
  assert video.scores(of(green))['exposure'] == pytest.approx(0.7152)  # BT.709.
  assert video.scores(of(green))['contrast'] == video.scores(of(green))['sharpness'] == 0


def test_sharpness_is_the_variance_of_the_laplacian_and_blur_lowers_it():
  frame = texture(60, 90, grain=1.0)
  y = frame[..., 0] / 255.0
  inner = y[:-2, 1:-1] + y[2:, 1:-1] + y[1:-1, :-2] + y[1:-1, 2:] - 4 * y[1:-1, 1:-1]
  got = video.scores(of(frame[None]))['sharpness']
  assert got == pytest.approx(inner.var(), rel=0.05)  # The border is reflected.
  blurs = [cv2.GaussianBlur(frame, (0, 0), s) for s in (0.7, 1.5, 3)]
  sharpness = [got, *(video.scores(of(x[None]))['sharpness'] for x in blurs)]
  assert sharpness == sorted(sharpness, reverse=True) and sharpness[-1] < got / 20
  one_bad = np.stack([frame] * 4 + [blurs[-1]])  # The median picture speaks for all.
  assert video.scores(of(one_bad))['sharpness'] == pytest.approx(got)


@pytest.mark.parametrize('speed', [0.05, 0.3, 0.8])  # Shorter sides per second.
@pytest.mark.parametrize('angle', [0, 0.6, 2])
def test_a_steady_pan(speed, angle):
  step = speed * 96 / 8 * np.array([np.cos(angle), np.sin(angle)])
  got = video.scores(of(shown(np.arange(8)[:, None] * step)))
  assert got['motion'] == pytest.approx(speed, rel=0.03, abs=0.05 * 8 / 96)  # 0.05 pixels.
  assert got['stability'] < 0.02


def test_motion_is_that_of_the_file():
  offsets = np.arange(48)[:, None] * [0.25 * 96 / 24, 0]  # A quarter of the side per second.
  for fps in (24, 48):
    e = excerpt.read(mp4.write(None, shown(offsets), fps), 0, 48 / fps)
    got = video.scores(e)
    assert got['motion'] == pytest.approx(0.25 * fps / 24, rel=0.05) and got['fps'] == fps
    assert got['stability'] < 0.02 and got['repeated'] == 0


def test_a_pan_at_25_fps_is_steady():
  # Eight pictures a second would be three or four of the file apart, and seem to jerk.
  offsets = np.arange(50)[:, None] * [2, 0]
  got = video.scores(excerpt.read(mp4.write(None, shown(offsets), 25), 0, 2))
  assert got['motion'] == pytest.approx(50 / 96, rel=0.05) and got['stability'] < 0.02


@pytest.mark.parametrize('shake', [0.5, 2.0])
def test_a_shaking_camera(shake):
  # To and fro by 2 * shake pixels: the flow changes by 4 * shake from one pair to the next.
  offsets = shake * (-1.0) ** np.arange(9)[:, None] * [1, 0]
  got = video.scores(of(shown(offsets)))
  assert got['stability'] == pytest.approx(4 * shake * 8 / 96, rel=0.08)
  assert got['motion'] == pytest.approx(2 * shake * 8 / 96, rel=0.08)


def test_a_small_thing_before_a_still_background():
  frames = np.stack([texture(96, 144)] * 8)
  for t, frame in enumerate(frames):
    cv2.circle(frame, (20 + 6 * t, 48), 14, (255, 40, 40), -1)
  got = video.scores(of(frames))
  share = np.pi * 14**2 / (96 * 144)  # Of the picture that moves, at half a side per second.
  assert got['motion'] == pytest.approx(0.5 * share, rel=0.3) and got['stability'] < 1e-3
  config = world.Config.simple(height=96, width=96, frames=16, fps=8.0, speeds=(0.5, 0.5))
  for i in range(3):  # A plain background does not move along.
    got = video.scores(of(world.World(config, 0)[i].frames))
    assert 0.02 < got['motion'] < 0.15 and got['stability'] < 1e-3


@pytest.mark.parametrize('hold, share', [(1, 0.0), (2, 0.5), (4, 0.75), (99, 1.0)])
@pytest.mark.parametrize('crf', [18, 28])
def test_repeated_pictures(hold, share, crf):
  moving = shown(np.arange(64)[:, None] * [1, 0.5])
  data = mp4.write(None, moving[np.arange(64) // hold * hold], 25, crf=crf)
  got = video.scores(excerpt.read(data, 0, 9))['repeated']
  assert got == pytest.approx(share, abs=0.06)  # One of the pairs or two.


@pytest.mark.parametrize('size', [(1, 1), (2, 300), (12, 40), (15, 40), (31, 33)])
def test_the_smallest_pictures(size):
  frames = np.random.default_rng(0).integers(0, 256, (4, *size, 3), np.uint8)
  assert np.isfinite(list(video.scores(of(frames)).values())).all()


@pytest.mark.real_media
def test_a_distorted_clip_is_less_sharp(tmp_path_factory):
  clips = real.fetch(tmp_path_factory.getbasetemp().parent / 'sr4_real_media')
  if not clips:
    pytest.skip('the real clips cannot be fetched here')
  paths = {c.path.stem: c.path for c in clips}
  good, bad = (
    video.scores(excerpt.read(paths[f'carphone_{x}'], 0, 4)) for x in ('pristine', 'distorted')
  )
  assert bad['sharpness'] < good['sharpness'] / 2
  assert bad['exposure'] == pytest.approx(good['exposure'], abs=0.01)
