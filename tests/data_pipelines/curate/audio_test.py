"""Scores of sounds that were made to have them."""

import numpy as np
import pytest
from scipy import signal
import soxr

from data_pipelines import mp4
from data_pipelines.curate import audio
from data_pipelines.curate import excerpt

pyloudnorm = pytest.importorskip('pyloudnorm')
RATE = 48_000
KEYS = {'sample_rate', 'volume', 'loudness', 'clipping', 'bandwidth', 'snr', 'silence'}


def scores(samples, rate=RATE):
  x = np.asarray(samples, np.float32)
  x = x[:, None] if x.ndim == 1 else x
  return audio.scores(excerpt.Excerpt(None, 0.0, x, rate, 0.0, len(x) / rate, 0, 0, 0.0, rate))


def sine(hertz, decibels, seconds=2.0, rate=RATE):
  """A sine whose amplitude is so many dB from full scale."""
  return 10 ** (decibels / 20) * np.sin(2 * np.pi * hertz * np.arange(seconds * rate) / rate + 0.3)


def noise(decibels, seconds=4.0, rate=RATE, seed=0):
  """White noise of so many dBFS."""
  n = round(seconds * rate)
  return 10 ** (decibels / 20) * np.random.default_rng(seed).standard_normal(n)


def test_without_sound_there_are_no_scores():
  frames = np.zeros((2, 8, 8, 3), np.uint8)
  assert audio.scores(excerpt.Excerpt(frames, 8.0, None, 0, 0.0, 0.25, 8, 8, 8.0, 0)) == {}


@pytest.mark.parametrize('decibels', [-6, -20, -50])
def test_volume_of_a_sine(decibels):
  got = scores(sine(1000, decibels))
  assert set(got) == KEYS and got['sample_rate'] == RATE
  assert got['volume'] == pytest.approx(decibels - 3.01, abs=0.01)
  left = np.stack([sine(1000, decibels), np.zeros(2 * RATE)], 1)
  assert scores(left)['volume'] == pytest.approx(decibels - 6.02, abs=0.01)


@pytest.mark.parametrize('rate', [16_000, 44_100, 48_000])
def test_loudness(rate):
  # BS.1770-4: a sine of 997 Hz at full scale in one channel has -3.01 LUFS; both have 3.01 more.
  one = sine(997, -20, 5, rate)
  assert scores(one, rate)['loudness'] == pytest.approx(-23.01, abs=0.15)
  assert scores(np.stack([one, one], 1), rate)['loudness'] == pytest.approx(-20, abs=0.15)
  x = noise(-30, 3, rate) * np.linspace(0.01, 1, 3 * rate)
  want = pyloudnorm.Meter(rate).integrated_loudness(np.float32(x).astype(np.float64))
  assert scores(x, rate)['loudness'] == pytest.approx(want)


@pytest.mark.parametrize('rate', [2000, 8000, 44_100, 48_000])
@pytest.mark.parametrize('length', [1, 3, 500, 4409, 17_641])
def test_short_sounds_have_scores(rate, length):
  got = scores(noise(-20, 1, 20_000)[:length], rate)
  assert np.isfinite(list(got.values())).all()
  if length > 4000:
    assert -25 < got['loudness'] < -10 and got['volume'] == pytest.approx(-20, abs=0.5)


@pytest.mark.parametrize('length', [5, 2 * RATE])
def test_digital_silence(length):
  want = dict.fromkeys(KEYS, 0.0) | {'volume': -120.0, 'loudness': -120.0, 'silence': 1.0}
  assert scores(np.zeros((length, 2))) == want | {'sample_rate': RATE}


@pytest.mark.parametrize('drive', [1.5, 2.0, 8.0])
def test_clipping_of_an_overdriven_sine(drive):
  x = np.clip(drive * sine(313, 0), -1, 1)
  share = 1 - 2 / np.pi * np.arcsin(audio.FULL / drive)
  assert scores(x)['clipping'] == pytest.approx(share, abs=0.005)
  assert scores(np.stack([x, 0.5 * x], 1))['clipping'] == pytest.approx(share / 2, abs=0.005)
  assert scores(np.round(x * 32767) / 32768)['clipping'] == pytest.approx(share, abs=0.005)
  # A codec bends the flat tops; where they go beyond full scale they are cut again.
  data = mp4.write(None, np.zeros((16, 16, 16, 3), np.uint8), 8, np.float32(x)[:, None], RATE)
  assert scores(excerpt.read(data, 0, 2).samples)['clipping'] > 0.005


def test_loud_is_not_clipped():
  assert scores(sine(440, -0.1))['clipping'] == 0
  assert scores(sine(7000, 0))['clipping'] == 0  # Peaks, no runs.
  assert scores(np.clip(noise(-20), -0.98, 0.98))['clipping'] == 0
  square = np.where(np.arange(RATE) % 2, 1, -1)  # Never twice at the same end.
  assert scores(square)['clipping'] == 0


@pytest.mark.parametrize('cutoff', [3400, 8000, 15_000])
def test_bandwidth_of_low_passed_noise(cutoff):
  filter_ = signal.firwin(1201, cutoff, fs=RATE, window=('kaiser', 10.0))
  x = signal.fftconvolve(noise(-20), filter_, 'same')
  assert scores(x)['bandwidth'] == pytest.approx(cutoff, abs=150)
  assert scores(np.round(x * 32768) / 32768)['bandwidth'] == pytest.approx(cutoff, abs=150)
  tilted = signal.lfilter([1], [1, -0.9], x)  # Falls by 20 dB, as music does.
  assert scores(0.1 * tilted)['bandwidth'] == pytest.approx(cutoff, abs=150)


def test_bandwidth_shows_what_was_resampled():
  x = noise(-20)
  assert scores(x)['bandwidth'] > 0.99 * RATE / 2
  for rate in (8000, 16_000, 22_050):
    again = soxr.resample(soxr.resample(x, RATE, rate), rate, RATE)
    assert scores(again)['bandwidth'] == pytest.approx(rate / 2, rel=0.06)
  quiet = np.round(noise(-110) * 32768) / 32768 + sine(1000, -50, 4)
  assert scores(quiet)['bandwidth'] < 1200  # Rounding to 16 bits is no sound.
  assert scores(sine(1000, -20))['bandwidth'] == pytest.approx(1000, abs=100)


@pytest.mark.parametrize('ratio', [10, 20, 40])
def test_snr_of_a_tone_that_pauses(ratio):
  tone = sine(700, -10, 4) * (np.arange(4 * RATE) // (RATE // 2) % 2)  # -13.01 dBFS, on and off.
  got = scores(tone + noise(-13.01 - ratio))['snr']
  assert got == pytest.approx(10 * np.log10(10 ** (ratio / 10) + 1), abs=0.7)


def test_snr_of_steady_sounds_and_of_dead_pauses():
  assert scores(noise(-20))['snr'] < 1 and scores(sine(700, -10))['snr'] < 0.1
  pauses = sine(700, -10) * (np.arange(2 * RATE) < RATE)
  assert scores(pauses)['snr'] == 100


def test_silence_is_counted_in_frames():
  on = np.arange(4 * RATE) < RATE
  assert scores(noise(-30) * on)['silence'] == pytest.approx(0.75, abs=0.01)
  assert scores(noise(-30) * on + noise(-70, seed=1))['silence'] == pytest.approx(0.75, abs=0.01)
  assert scores(noise(-30) * on + noise(-55, seed=1))['silence'] == 0
