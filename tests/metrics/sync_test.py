"""sr4/metrics/sync.py: on the world in time, and late, silent, swapped or noisy as made so."""

import itertools

import numpy as np
import pytest

from data_pipelines import world
from sr4.metrics import sync
from sr4.models import codec

RATE, FPS = 16_000, 16.0


@pytest.fixture(scope='module')
def samples():
  source = world.World(world.Config.simple(height=32, width=32, frames=17, channels=1), seed=5)
  return [source[i] for i in range(64)]


@pytest.fixture(scope='module')
def as_coded(samples):
  """[(frames, samples)] through the codecs of `make demo`."""
  video = codec.build_video({'name': 'dct', 'space_factor': 4, 'channels': 16})
  audio = codec.build_audio({'name': 'mdct', 'sample_rate': RATE, 'audio_channels': 1})
  frames, sounds = (np.stack([getattr(s, name) for s in samples]) for name in ('frames', 'samples'))
  frames = np.uint8(np.round((np.asarray(video.decode(video.encode(frames))) + 1) * 127.5))
  return list(zip(frames, np.asarray(audio.decode(audio.encode(sounds), sounds.shape[1]))))


@pytest.fixture(scope='module')
def pairs(samples):
  return [sync.rings_and_bounces(s.frames, FPS, s.samples, RATE) for s in samples]


def missed_and_extra(found, real, within):
  near = lambda time, times: any(abs(time - other) < within for other in times)
  return (sum(not near(time, found) for time in real), sum(not near(time, real) for time in found))


def times(sample, until):
  return [contact.time for contact in sample.truth.contacts if contact.time < until]


@pytest.mark.parametrize('through_codec', [False, True])
def test_onsets_are_the_contacts(samples, as_coded, through_codec):
  sounds = [sound for _, sound in as_coded] if through_codec else [s.samples for s in samples]
  told = [
    # Two rings within 45 ms may be heard as one, but at the time of one of them.
    missed_and_extra(sync.onsets(sound, RATE), times(s, 1.05), 0.045)[0]
    + missed_and_extra(sync.onsets(sound, RATE), times(s, 1.05), 0.01)[1]
    for s, sound in zip(samples, sounds)
  ]
  assert sum(told) == 0


@pytest.mark.parametrize('through_codec', [False, True])
def test_bounces_are_the_contacts(samples, as_coded, through_codec):
  clips = [frames for frames, _ in as_coded] if through_codec else [s.frames for s in samples]
  found = [sync.contacts(frames, FPS) for frames in clips]
  inner = lambda all_times: [t for t in all_times if 0.06 < t < 0.94]  # Seen from both sides.
  told = [
    missed_and_extra(seen, inner(times(s, 1)), 0.04)[0]
    + missed_and_extra(inner(seen), times(s, 1), 0.04)[1]
    for s, seen in zip(samples, found)
  ]
  assert sum(told) <= 0.03 * sum(len(times(s, 1)) for s in samples)


def test_the_world_is_in_time_and_shuffled_it_is_not(pairs, as_coded):
  coded = [sync.rings_and_bounces(frames, FPS, sound, RATE) for frames, sound in as_coded]
  assert sync.median_error(pairs) < 0.002
  assert sync.median_error(coded) < 0.010
  assert sync.median_error(sync.shuffled(pairs)) > 0.3
  assert sync.median_error(sync.shuffled(coded)) > 0.3


def test_late_sound_is_late(samples):
  late = round(0.1 * RATE)
  errors = []
  for s in samples:
    if len(times(s, 2)) == 1 and 0.1 < times(s, 2)[0] < 0.85:
      shifted = np.concatenate([np.zeros((late, 1), np.float32), s.samples[:-late]])
      errors.append(sync.onset_error(*sync.rings_and_bounces(s.frames, FPS, shifted, RATE)))
  assert len(errors) > 5
  assert np.median(errors) == pytest.approx(0.1, abs=0.003)


def test_noise_and_silence_do_not_ring():
  noise = np.random.default_rng(0).normal(0, 1e-3, (RATE, 2)).astype(np.float32)
  assert not len(sync.onsets(noise, RATE))
  assert not len(sync.onsets(np.zeros((RATE, 1), np.float32), RATE))


def test_a_ring_that_opens_the_clip_is_heard():
  ring = np.sin(np.arange(RATE) * 0.3)[:, None] * np.exp(-np.arange(RATE) / 3000)[:, None]
  np.testing.assert_allclose(sync.onsets(np.float32(ring), RATE), [0], atol=1e-3)


def test_what_does_not_move_or_is_not_there_does_not_bounce(samples):
  assert not len(sync.contacts(np.zeros((9, 32, 32, 3), np.uint8), FPS))
  assert not len(sync.contacts(np.repeat(samples[0].frames[:1], 17, axis=0), FPS))
  assert not len(sync.contacts(samples[0].frames[:1], FPS))


def test_to_turn_away_from_a_wall_is_no_bounce():
  frames = np.full((17, 32, 32, 3), 16, np.uint8)
  for i, frame in enumerate(frames):
    left = 6 + abs(8 - i)  # Back and forth in the middle.
    frame[12:20, left : left + 8] = 240
  assert not len(sync.contacts(frames, FPS))
  np.testing.assert_allclose(sync.contacts(frames[:, :, 6:], FPS), [0.5], atol=1e-6)


def test_to_turn_unseen_is_no_bounce():
  """It goes, is away for half of the clip, and comes back from where nobody saw it turn."""
  frames = np.zeros((17, 32, 32, 3), np.uint8)
  for at, x in [(0, 6), (1, 9), (2, 12), (3, 15), (13, 15), (14, 12), (15, 9), (16, 6)]:
    frames[at, 13:19, x : x + 6] = 255
  assert len(sync.contacts(frames, FPS)) == 0


def test_onset_error_by_hand():
  assert np.isnan(sync.onset_error([], []))
  assert sync.onset_error([0.2], []) == sync.onset_error([], [0.2, 0.4]) == sync.CAP
  assert sync.onset_error([0.3], [0.2]) == pytest.approx(0.1)
  assert sync.onset_error([0.6, 0.25], [0.2, 0.7]) == pytest.approx(0.075)
  assert sync.onset_error([5.0], [0.2]) == sync.CAP
  # One of two bounces rings: half of the clip is wrong.
  assert sync.onset_error([0.7], [0.2, 0.7]) == pytest.approx(0.5)
  # To ring all the time is not to be in time.
  assert sync.onset_error(np.linspace(0, 1, 21), [0.5]) == pytest.approx(20 / 21)


def test_onset_error_pairs_off_best():
  rng = np.random.default_rng(0)
  for _ in range(50):
    few, many = rng.uniform(0, 1.5, rng.integers(1, 4)), rng.uniform(0, 1.5, 4)
    best = min(
      sum(min(abs(a - b), 1) for a, b in zip(few, some))
      for some in itertools.permutations(many, len(few))
    )
    expected = (best + len(many) - len(few)) / len(many)
    assert sync.onset_error(few, many) == pytest.approx(expected)
    assert sync.onset_error(many, few) == pytest.approx(expected)


def test_median_and_shuffled():
  pairs = [([0.1], [0.1]), ([0.5], [0.6]), ([], [])]
  assert sync.median_error(pairs) == pytest.approx(0.05)  # The empty one is not counted.
  assert np.isnan(sync.median_error([([], [])])) and np.isnan(sync.median_error([]))
  assert sync.shuffled(pairs) == [
    ([0.1], [0.6]),
    ([0.1], []),
    ([0.5], [0.1]),
    ([0.5], []),
    ([], [0.1]),
    ([], [0.6]),
  ]


def test_spectrogram_shows_a_tone_at_its_place_and_level():
  tone = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE)[:, None]
  shown = sync.spectrogram(np.float32(tone), RATE, seconds=0.032, top=4000)
  assert shown.shape == (129, 126)
  assert shown[:, 60].argmax() == 32  # 1000 Hz / (1 / 0.032 s)
  assert shown[32, 60] == pytest.approx(-6.02, abs=0.05)
  assert shown[64, 60] < -60
