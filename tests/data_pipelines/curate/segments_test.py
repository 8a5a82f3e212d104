"""Segments: nothing is lost, nothing comes twice, no length is out of bounds."""

import itertools

import numpy as np
import pytest

from data_pipelines.curate import segments

RNG = np.random.default_rng(0)


def random_shots(count):
  """Shots that touch, of lengths from a tenth of a second to a minute."""
  times = np.cumsum([RNG.uniform(0, 5), *np.exp(RNG.uniform(np.log(0.1), np.log(60), count))])
  return [(float(a), float(b)) for a, b in itertools.pairwise(times)]


@pytest.mark.parametrize('trial', range(50))
def test_segments_and_rest_are_the_shots(trial):
  least = RNG.uniform(0, 5)
  most = RNG.uniform(2 * least, 20) + 0.1
  shots = random_shots(RNG.integers(1, 30))
  good, rest = segments.whole(shots, least, most)
  pieces = sorted(good + rest)
  assert pieces[0][0] == shots[0][0] and pieces[-1][1] == shots[-1][1]
  assert all(a[1] == b[0] for a, b in itertools.pairwise(pieces))  # Cover, without overlap.
  assert all(least - 1e-5 <= b - a <= most + 1e-5 for a, b in good)
  assert all(0 < b - a < least for a, b in rest)
  edges = {t for piece in pieces for t in piece}
  assert {t for shot in shots for t in shot} <= edges  # No segment crosses a cut.


@pytest.mark.parametrize('trial', range(50))
def test_even_pieces_are_few_and_equal(trial):
  start, length, most = RNG.uniform(0, 100), RNG.uniform(0.01, 200), RNG.uniform(0.5, 20)
  pieces = segments.even(start, start + length, most)
  lengths = np.array([b - a for a, b in pieces])
  assert pieces[0][0] == start and pieces[-1][1] == start + length
  assert np.ptp(lengths) < 1e-9 * max(1, start + length) and lengths.max() <= most + 1e-5
  assert len(pieces) == 1 or lengths.min() > most / 2
  assert (len(pieces) - 1) * most < length  # One fewer would be too long.


def test_cuts_of_what_is_just_at_the_limit():
  assert segments.even(0, 15, 15) == [(0, 15)]
  assert segments.even(0, 15 + 1e-9, 15) == [(0, 15 + 1e-9)]  # A sum of floats, no cut.
  assert segments.even(0, 45, 15) == [(0, 15), (15, 30), (30, 45)]
  assert segments.whole([(0, 2), (2, 3)], 2, 15) == ([(0, 2)], [(2, 3)])


def test_lengths_that_could_not_be_cut_are_refused():
  with pytest.raises(ValueError, match='at least twice the shortest'):
    segments.whole([(0, 10)], 3, 5)


@pytest.mark.parametrize('trial', range(50))
def test_joined_sounds_are_all_there_once_and_within_the_limit(trial):
  most, count = 15.0, RNG.integers(0, 60)
  starts, lengths = RNG.uniform(0, 9, count), RNG.uniform(0.1, 18, count)
  sounds = [(f'{i:03d}', float(a), float(a + n)) for i, (a, n) in enumerate(zip(starts, lengths))]
  lists = segments.join(sounds, most)
  assert sorted(sound for one in lists for sound in one) == sounds
  assert all(one == sorted(one) for one in lists)
  totals = [sum(b - a for _, a, b in one) for one in lists]
  assert all(total <= most + 1e-5 or len(one) == 1 for one, total in zip(lists, totals))
  # First fit: what begins a later list found no room in any before it.
  for k, one in enumerate(lists):
    for before in lists[:k]:
      room = most - sum(b - a for name, a, b in before if name < one[0][0])
      assert one[0][2] - one[0][1] > room


def test_first_fit_by_hand():
  sounds = [('a', 0, 9), ('b', 1, 8), ('c', 0, 6), ('d', 0, 8), ('e', 2, 3)]
  assert [[x[0] for x in one] for one in segments.join(sounds, 15)] == [
    ['a', 'c'],
    ['b', 'd'],
    ['e'],
  ]
