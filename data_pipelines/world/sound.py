"""Renders what is heard in a scene.

The shape of an object sets the pitch of its ring, the colour sets the overtones, the speed of the
impact sets the loudness, and the place on the picture sets the place between the loudspeakers.
"""

import functools

import numpy as np

from data_pipelines.world import scene as scene_lib
from data_pipelines.world import voice

# Hz, in steps of a fourth, so that no ring is an overtone of another.
PITCHES = {
  'circle': 196.0,
  'square': 262.0,
  'triangle': 349.0,
  'cross': 466.0,
  'ring': 622.0,
  'diamond': 831.0,
}
# Overtones: frequency in fundamentals, amplitude. Each recipe has its mark below 2.4, so that the
# colour is heard below 2 kHz even of the highest shape.
TIMBRES = {
  'red': ((1, 1.0),),
  'green': ((1, 1.0), (2, 0.8)),
  'blue': ((1, 1.0), (1.75, 0.7), (3, 0.3)),
  'yellow': ((1, 1.0), (1.5, 0.5), (2, 0.6), (2.5, 0.5), (3, 0.4), (4, 0.3)),
  'magenta': ((1, 1.0), (1.5, 0.8)),
  'cyan': ((1, 1.0), (1.4, 0.6), (2.35, 0.4)),
  'orange': ((1, 1.0), (2.24, 0.7), (3.6, 0.4)),
  'white': ((1, 1.0), (1.26, 0.7), (1.68, 0.6)),
}
TIMBRE_WORDS = {
  'red': 'pure',
  'green': 'bright',
  'blue': 'hollow',
  'yellow': 'brassy',
  'magenta': 'sweet',
  'cyan': 'glassy',
  'orange': 'bell-like',
  'white': 'dissonant',
}
RING_SECONDS = 1.0

_ATTACK = 0.002  # Seconds.
_DECAY = 0.22
_TICK_HERTZ, _TICK_DECAY, _TICK_LEVEL = 1400.0, 0.004, 1.4
_RING_LEVEL, _VOICE_LEVEL, _MUSIC_LEVEL, _WIND_LEVEL = 0.6, 0.1, 0.05, 0.02
_FULL_SPEED = 1.5  # Shorter sides a second: the loudest impact.
_FADE = 0.005  # Seconds, at a cut: hard but without a click.
_WIND_RATE = 4000
_CHORDS = {
  'major': ((0, 4, 7), (-3, 0, 4), (5, 9, 12), (7, 11, 14)),
  'minor': ((0, 3, 7), (-4, 0, 3), (5, 8, 12), (7, 10, 14)),
}
_SEMITONES = {'C': 0, 'D': 2, 'E': 4, 'F': 5, 'G': 7, 'A': 9}


def _partials(partials, decay, sample_rate, seconds):
  """Sum of decaying sines, (Hz, amplitude) each; higher ones fade sooner."""
  time = np.arange(round(seconds * sample_rate)) / sample_rate
  sound = np.zeros(len(time))
  for hertz, level in partials:
    if hertz < 0.45 * sample_rate:
      life = decay * np.sqrt(partials[0][0] / hertz)
      sound += level * np.exp(-time / life) * np.sin(2 * np.pi * hertz * time)
  return sound, time


@functools.lru_cache(maxsize=256)
def ring(shape: str, color: str, sample_rate: int) -> np.ndarray:
  """The sound of an impact of speed 1, float32 [RING_SECONDS * sample_rate], peak 1."""
  partials = [(PITCHES[shape] * ratio, level) for ratio, level in TIMBRES[color]]
  sound, time = _partials(partials, _DECAY, sample_rate, RING_SECONDS)
  sound /= sum(level for _, level in partials)
  # The tick of the mallet marks the onset even where two rings of one pitch cancel.
  tick = np.exp(-time / _TICK_DECAY) * np.sin(2 * np.pi * _TICK_HERTZ * time)
  rise = np.clip(time / _ATTACK, 0, 1)
  sound = (sound + _TICK_LEVEL * tick) * rise * np.clip((RING_SECONDS - time) / _FADE, 0, 1)
  sound = (sound / np.abs(sound).max()).astype(np.float32)
  sound.setflags(write=False)  # Shared by every caller.
  return sound


@functools.lru_cache(maxsize=256)
def _pluck(hertz: float, sample_rate: int) -> np.ndarray:
  """One note of the music, float32 [n]."""
  partials = [(hertz, 1.0), (2 * hertz, 0.3), (3 * hertz, 0.1)]
  sound, time = _partials(partials, 0.3, sample_rate, 1.2)
  sound *= np.clip(time / 0.01, 0, 1) * np.clip((1.2 - time) / 0.1, 0, 1)
  return sound.astype(np.float32)


def loudness(speed: float) -> float:
  """Level of a ring by its impact speed: 0.2 for the faintest touch, up to 1."""
  return 0.2 + 0.8 * min(speed / _FULL_SPEED, 1.0)


def pan(x: float, channels: int) -> np.ndarray:
  """Gains [channels] of equal total power for a place x in 0 (left) .. 1 (right)."""
  if channels == 1:
    return np.full(1, np.sqrt(0.5), np.float32)
  angle = np.clip(x, 0, 1) * np.pi / 2
  return np.array([np.cos(angle), np.sin(angle)], np.float32)


def samples(
  scene: scene_lib.Scene, rng: np.random.Generator, sample_rate: int, channels: int, count: int
) -> np.ndarray:
  """The sound of a scene: float32 [count, channels] in [-1, 1]; `rng` blows the wind."""
  mix = np.zeros((channels, count), np.float32)
  ends = [shot.end for shot in scene.shots[:-1]] + [np.inf]
  for contact in scene.contacts:
    for i in contact.objects:
      thing = scene.objects[i]
      gains = pan(thing.at(contact.time)[0] / scene.box[0], channels)
      gains *= _RING_LEVEL * loudness(contact.speed)
      sound = ring(thing.shape, thing.color, sample_rate)
      _add(mix, sound, contact.time, ends[thing.shot], gains, sample_rate)
  for shot in scene.shots:
    if shot.talker:
      gains = pan(shot.talker.x / scene.box[0], channels) * np.float32(_VOICE_LEVEL)
      for vowel in shot.talker.vowels:
        sound = voice.wave(vowel, sample_rate)
        _add(mix, sound, vowel.start, np.inf, gains, sample_rate)
  if scene.music:
    _add_music(mix, scene.music, sample_rate)
  if scene.ambience:
    mix += _wind(rng, sample_rate, count)
  # Sample by sample, so that what is loud now changes nothing elsewhere; quiet sounds pass as is.
  return np.ascontiguousarray(np.tanh(mix).T)


def _add(mix, sound, start, end, gains, sample_rate):
  """Adds `sound` [n] at `start` seconds with `gains` [channels], broken off at `end` seconds."""
  first = round(start * sample_rate)
  room = min(mix.shape[1], round(end * sample_rate) if end < np.inf else mix.shape[1]) - first
  if room <= 0:
    return
  if end < np.inf and room < len(sound):
    ramp = np.arange(room, 0, -1) / (_FADE * sample_rate)
    sound = sound[:room] * np.minimum(ramp, 1).astype(np.float32)
  sound = sound[:room]
  mix[:, first : first + len(sound)] += gains[:, None] * sound


def _add_music(mix, music: scene_lib.Music, sample_rate):
  """A broken chord, one note each half beat, the next chord after four beats."""
  step = 30 / music.beats
  gains = pan(0.5, len(mix)) * np.float32(_MUSIC_LEVEL)
  for number in range(int(mix.shape[1] / sample_rate / step) + 1):
    chord = _CHORDS[music.mode][number // 8 % 4]
    semitone = _SEMITONES[music.root] + chord[(0, 1, 2, 1)[number % 4]]
    sound = _pluck(261.63 * 2 ** (semitone / 12), sample_rate)
    _add(mix, sound, number * step, np.inf, gains, sample_rate)


def _wind(rng, sample_rate, count):
  """Low noise [count] that swells slowly; drawn at one rate, so that it is the same at any."""
  total = int(count / sample_rate * _WIND_RATE) + 16
  noise = np.convolve(rng.standard_normal(total), np.hanning(10)[1:-1] / 2, mode='valid')
  time = np.arange(count) / sample_rate
  swell = 0.7 + 0.3 * np.sin(2 * np.pi * 0.4 * time)
  wind = swell * np.interp(time * _WIND_RATE, np.arange(len(noise)), noise)
  return (_WIND_LEVEL * wind).astype(np.float32)
