"""Balance: the same choice in any order, and no change when chosen again."""

import collections

import numpy as np
import pytest

from data_pipelines.curate import balance

RNG = np.random.default_rng(0)


@pytest.mark.parametrize('trial', range(20))
def test_any_order_gives_the_same_choice_and_choosing_again_changes_nothing(trial):
  ids = [f'clip {i}' for i in range(RNG.integers(0, 300))]
  groups = {name: int(RNG.geometric(0.2)) for name in ids if RNG.random() < 0.9}
  cap = int(RNG.integers(1, 20))
  stay = balance.by_group(ids, groups, cap)
  assert balance.by_group(list(RNG.permutation(ids)), groups, cap) == stay
  assert balance.by_group(stay, groups, cap) == stay
  assert stay == balance.by_group(stay | set(ids[::3]), groups, cap)  # Losers change nothing.
  before, after = (collections.Counter(groups.get(n) for n in x) for x in (ids, stay))
  assert all(after[g] == min(n, cap) for g, n in before.items() if g is not None)
  assert after[None] == before[None]


def test_a_larger_cap_only_adds():
  ids = [str(i) for i in range(100)]
  groups = {name: int(name) % 3 for name in ids}
  assert balance.by_group(ids, groups, 5) < balance.by_group(ids, groups, 9) < set(ids)


def test_motion_falls_into_octaves():
  bins = balance.motion_bins({'a': 0.5, 'b': 0.99, 'c': 1.0, 'd': 0.0, 'e': 1e-9, 'f': 7.9})
  assert bins == {'a': -1, 'b': -1, 'c': 0, 'd': -10, 'e': -10, 'f': 2}


def blobs(spread=0.05):
  """Three directions in 16 dimensions, 40 vectors about each, of any length."""
  centres = np.eye(16)[:3]
  vectors = {}
  for k in range(3):
    for i in range(40):
      x = centres[k] + spread * RNG.standard_normal(16)
      vectors[f'{"abc"[k]}{i:02d}'] = RNG.uniform(0.1, 10) * x
  return vectors


def test_clusters_are_found_whatever_the_order():
  vectors = blobs()
  got = balance.clusters(vectors, 3)
  assert all(len({got[n] for n in vectors if n[0] == letter}) == 1 for letter in 'abc')
  assert len(set(got.values())) == 3
  names = list(RNG.permutation(list(vectors)))
  assert balance.clusters({n: vectors[n] for n in names}, 3) == got


def test_clusters_of_few_or_equal_vectors():
  assert balance.clusters({}) == {}
  assert balance.clusters({'a': [1.0, 2.0]}) == {'a': 0}
  assert set(balance.clusters({str(i): [3.0, 4.0] for i in range(9)})) == set(map(str, range(9)))


def test_a_label_comes_before_a_cluster():
  got = balance.concepts({'a': 'dog'}, {'a': [1.0, 0.0], 'b': [0.0, 1.0]})
  assert got == {'a': 'dog', 'b': 'cluster 0'}
