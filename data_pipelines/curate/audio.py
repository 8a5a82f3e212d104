"""Scores of sound, in units of full scale: 0 dBFS is a mean square of 1."""

import numpy as np
import soxr

from data_pipelines.curate import excerpt as excerpt_lib

FLOOR = -120.0  # dBFS, LUFS: digital silence, below what 24 bits hold.
FRAME = 0.032  # Seconds, of snr and silence.
SILENT = -60.0  # dBFS.
BLOCK = 0.4  # Seconds, the shortest that ITU-R BS.1770 gives a loudness.
LOUDNESS_RATE = 8000  # Hz, the least that it is measured at.
FULL = 0.99  # Of full scale.
RUN = 3  # Samples in a row: one at full scale may be a peak.
WINDOW = 2048  # Samples of a spectrum.
BELOW = 60.0  # dB under the strongest bin: what a codec or a resampler leaves above its cut-off
ROUNDING = -120.0  # dBFS in a bin; rounding to 16 bits makes -126, which is not sound.
MOST_SNR = 100.0  # dB


def scores(excerpt: excerpt_lib.Excerpt) -> dict[str, float]:
  """Scores of an excerpt's sound; {} without an audio stream.

  sample_rate: Hz, of the file.
  volume: RMS of all samples, dBFS; a sine of amplitude 1 has -3.01.
  loudness: integrated, ITU-R BS.1770-4, LUFS; of one block where the sound is under 0.4 s, and
    -120 where all of it is under the gate of -70.
  clipping: share of samples in runs of three or more at one end of full scale.  A lossy codec hides
    most of it: it bends flat tops.
  bandwidth: Hz; the highest frequency with a power within 60 dB of the strongest, in the mean
    spectrum.  A file whose bandwidth is far below half its rate was a smaller file once.
  snr: 10 log10(energy of the loudest tenth of frames / energy of the quietest tenth), dB in
    [0, 100].  The signal-to-noise ratio where the sound pauses; about 0 for a steady sound,
    whether it is clean or noise.
  silence: share of frames of 32 ms below -60 dBFS.
  Digital silence has volume and loudness -120, silence 1, and the rest 0.
  """
  x, rate = excerpt.samples, excerpt.sample_rate
  if x is None:
    return {}
  x = np.asarray(x, np.float64)
  energies = _energies(x, rate)
  out = {
    'sample_rate': excerpt.source_rate,
    'volume': _decibels(np.mean(x**2)),
    'loudness': _loudness(x, rate),
    'clipping': _clipping(x),
    'bandwidth': _bandwidth(x, rate),
    'snr': _snr(energies),
    'silence': np.mean(energies < 10 ** (SILENT / 10)),
  }
  return {name: float(value) for name, value in out.items()}


def _decibels(power):
  return 10 * np.log10(np.maximum(power, 10 ** (FLOOR / 10)))


def _energies(x, rate) -> np.ndarray:
  """Mean squares of whole frames; of a shorter sound, its own."""
  length = min(len(x), max(1, round(FRAME * rate)))
  count = len(x) // length
  return (x[: count * length] ** 2).reshape(count, -1).mean(1)


def _loudness(x, rate) -> float:
  import pyloudnorm

  if rate < LOUDNESS_RATE:  # Its weighting has a filter at 1.5 kHz.
    x, rate = soxr.resample(x, rate, LOUDNESS_RATE), LOUDNESS_RATE
  meter = pyloudnorm.Meter(rate, block_size=min(BLOCK, len(x) / rate))
  return max(FLOOR, meter.integrated_loudness(x))


def _clipping(x) -> float:
  """Samples in a run of RUN or more, top and bottom apart."""
  clipped = 0
  for full in (x >= FULL, x <= -FULL):
    edge = np.zeros((1, x.shape[1]), bool)
    steps = np.diff(np.concatenate([edge, full, edge]).astype(np.int8), axis=0).T
    lengths = np.argwhere(steps < 0)[:, 1] - np.argwhere(steps > 0)[:, 1]
    clipped += lengths[lengths >= RUN].sum()
  return clipped / x.size


def _bandwidth(x, rate) -> float:
  from scipy import signal

  length = min(WINDOW, len(x))
  # The scale makes the bin of a sine hold its mean square.  The window's side lobes are -92 dB.
  frequencies, power = signal.welch(
    x, rate, 'blackmanharris', length, detrend=False, scaling='spectrum', axis=0
  )
  level = _decibels(power.mean(1))
  heard = np.flatnonzero(level > max(level.max() - BELOW, ROUNDING))
  return frequencies[heard[-1]] if len(heard) else 0.0


def _snr(energies) -> float:
  tenth = max(1, len(energies) // 10)
  ordered = np.sort(energies)
  ratio = _decibels(ordered[-tenth:].mean()) - _decibels(ordered[:tenth].mean())
  return min(MOST_SNR, ratio)
