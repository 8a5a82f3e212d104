"""Flattens what there is too much of: at most so many of one group, chosen by a hash of the id.

The choice depends on the ids and their groups alone: not on the order, not on the machine, and
choosing again among the chosen changes nothing.
"""

from collections.abc import Iterable
from collections.abc import Mapping
import hashlib
import math

import numpy as np

ROUNDS = 50  # Of k-means, which seldom needs half of them.


def by_group(ids: Iterable[str], groups: Mapping[str, object], cap: int) -> set[str]:
  """The ids that stay: of each group the `cap` with the smallest hash; those without group, all."""
  members, stay = {}, set()
  for name in set(ids):
    if groups.get(name) is None:
      stay.add(name)
    else:
      members.setdefault(groups[name], []).append(name)
  for names in members.values():
    stay.update(sorted(names, key=_rank)[:cap])
  return stay


def _rank(name: str) -> tuple[bytes, str]:
  return hashlib.sha256(name.encode()).digest(), name


def motion_bins(motion: Mapping[str, float]) -> dict[str, int]:
  """Octaves of the motion score: 0.5 to 1 is one bin, 1 to 2 the next; stillness is the lowest.

  Quantiles would hold equally many by construction, and a cap would find nothing to flatten.  A
  fixed scale also gives a clip the same bin in every collection.
  """
  return {
    name: max(-10, math.floor(math.log2(value))) if value > 0 else -10
    for name, value in motion.items()
  }


def concepts(
  labels: Mapping[str, str], embeddings: Mapping[str, Iterable[float]]
) -> dict[str, str]:
  """The concept of each id: its label or else the cluster of its embedding."""
  rest = {name: vector for name, vector in embeddings.items() if name not in labels}
  return {name: f'cluster {k}' for name, k in clusters(rest).items()} | dict(labels)


def clusters(
  embeddings: Mapping[str, Iterable[float]], count: int | None = None, seed: int = 0
) -> dict[str, int]:
  """k-means of the directions of vectors: the cluster of each id, the same in any order of ids.

  `count` is the square root of how many there are unless it is given.
  """
  names = sorted(embeddings)
  if not names:
    return {}
  x = np.array([list(embeddings[name]) for name in names], np.float64)
  x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
  count = min(len(names), count or math.ceil(math.sqrt(len(names))))
  centres = _spread(x, count, np.random.default_rng(seed))
  for _ in range(ROUNDS):
    nearest = np.argmin(_distances(x, centres), 1)
    moved = np.array(
      [x[nearest == k].mean(0) if (nearest == k).any() else centres[k] for k in range(count)]
    )
    if np.array_equal(moved, centres):
      break
    centres = moved
  return {name: int(k) for name, k in zip(names, nearest)}


def _spread(x, count, rng):
  """First centres [count d], each drawn with the squared distance to those before (k-means++)."""
  chosen = [int(rng.integers(len(x)))]
  for _ in range(count - 1):
    weight = _distances(x, x[chosen]).min(1)
    weight = weight / weight.sum() if weight.sum() > 0 else None
    chosen.append(int(rng.choice(len(x), p=weight)))
  return x[chosen]


def _distances(x, centres):
  """Squared distances [n k] of points [n d] and centres [k d]."""
  square = (x**2).sum(1)[:, None] - 2 * x @ centres.T + (centres**2).sum(1)
  return np.maximum(square, 0)
