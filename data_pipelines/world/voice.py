"""The talker's vowels: when they are spoken, how far the mouth opens, how they sound."""

import dataclasses

import numpy as np

# First three formants in Hz, and the half width of the mouth as a share of its widest.
FORMANTS = {
  'a': (800, 1200, 2500),
  'e': (530, 1840, 2480),
  'i': (280, 2250, 2900),
  'o': (500, 900, 2500),
  'u': (320, 800, 2300),
}
MOUTHS = {'a': 0.85, 'e': 1.0, 'i': 0.95, 'o': 0.65, 'u': 0.5}

_BANDWIDTHS = (90, 110, 160)
_GAINS = (1.0, 0.6, 0.25)
_SCALE = (0, 2, 4, 7, 9, 12)  # Semitones: pentatonic, every melody on it sounds meant.
_OPEN_SECONDS, _CLOSE_SECONDS = 0.05, 0.07
_TABLE = 2048
_HIGHEST = 4000.0  # Hz.


@dataclasses.dataclass(frozen=True)
class Vowel:
  symbol: str  # a e i o u
  start: float  # Seconds; the mouth opens here.
  end: float  # Seconds; the mouth is closed again.
  pitch: float  # Fundamental in Hz; when spoken it falls by a tenth from here.
  loudness: float  # 0..1, the widest opening of the mouth.
  sung: bool


def speak(rng: np.random.Generator, start: float, end: float, sings: bool) -> tuple[Vowel, ...]:
  """Vowels one after another, all of them finished by `end`."""
  base = rng.uniform(190, 260) if sings else rng.uniform(110, 200)
  now, vowels = start + rng.uniform(0.05, 0.2), []
  while True:
    # The same number of draws for every vowel, so that a longer voice begins like a shorter one.
    which, length, gap, pitch, loud = rng.random(5)
    length = 0.3 + 0.25 * length if sings else 0.18 + 0.14 * length
    if now + length > end:
      return tuple(vowels)
    step = _SCALE[int(pitch * len(_SCALE))] if sings else 4 * pitch - 2
    symbol = 'aeiou'[int(which * 5)]
    hertz = base * 2 ** (step / 12)
    vowels.append(Vowel(symbol, now, now + length, hertz, 0.6 + 0.4 * loud, sings))
    now += length + (0.03 + 0.05 * gap if sings else 0.05 + 0.12 * gap)


def envelope(vowel: Vowel, times: np.ndarray) -> np.ndarray:
  """Loudness of the vowel and opening of the mouth at `times`, 0..1."""
  rise = np.clip((times - vowel.start) / _OPEN_SECONDS, 0, 1)
  fall = np.clip((vowel.end - times) / _CLOSE_SECONDS, 0, 1)
  ramp = np.minimum(rise, fall)
  return vowel.loudness * ramp * ramp * (3 - 2 * ramp)


def mouth(vowels, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Opening 0..1 and width 0..1 of the mouth at times [t]: two arrays [t]."""
  opening, width = np.zeros(len(times)), np.full(len(times), 0.75)
  for vowel in vowels:
    opening += envelope(vowel, times)
    width[(times >= vowel.start) & (times < vowel.end)] = MOUTHS[vowel.symbol]
  return opening, width


def wave(vowel: Vowel, sample_rate: int) -> np.ndarray:
  """The sound of one vowel, float32 [n], RMS 1 at loudness 1, from its start."""
  seconds = np.arange(round((vowel.end - vowel.start) * sample_rate)) / sample_rate
  if vowel.sung:
    bend = 1 + 0.012 * np.sin(2 * np.pi * 5.5 * seconds)
  else:
    bend = 1 - 0.1 * seconds / (vowel.end - vowel.start)
  phase = np.cumsum(vowel.pitch * bend) / sample_rate
  table = _period(vowel.symbol, vowel.pitch, sample_rate)
  sound = table[(phase * _TABLE).astype(np.int64) % _TABLE]
  return (sound * envelope(vowel, vowel.start + seconds)).astype(np.float32)


def _period(symbol, pitch, sample_rate) -> np.ndarray:
  """One period of the vowel, [_TABLE], RMS 1: harmonics of the pitch weighted by the formants."""
  harmonics = np.arange(1, int(min(_HIGHEST, 0.45 * sample_rate) / pitch) + 1)
  hertz = harmonics[:, None] * pitch
  peaks = np.array(_GAINS) / (1 + ((hertz - FORMANTS[symbol]) / _BANDWIDTHS) ** 2)
  spectrum = np.zeros(_TABLE // 2 + 1, complex)
  # The source falls off with frequency; the phases spread its energy over the period.
  weight = (peaks.sum(-1) + 0.02) / np.sqrt(harmonics)
  spectrum[harmonics] = weight * np.exp(-1j * np.pi * harmonics**2 / len(harmonics))
  period = np.fft.irfft(spectrum)
  return period / np.sqrt(np.mean(period * period))
