"""The same file twice, and the same pictures in two files."""

import collections
from collections.abc import Iterator
from collections.abc import Mapping
import hashlib
import itertools

import numpy as np

from data_pipelines.curate import video

PICTURES = 4  # Hashed in a clip.
BITS = 64
AGREEING = 3  # Bands that two near hashes must share: more are fewer chance pairs, but more sorts.


def exact(path) -> str:
  """SHA-256 of the file's bytes, in hex."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def perceptual(picture) -> int:
  """64 bits of uint8 [h w 3] that survive scaling and coding, but no crop and no mirror.

  The picture is shrunk to 32x32 luma; bit k tells whether the k-th of its 8x8 lowest cosine
  coefficients, without the constant one, is above their median.  (The 64th bit is always 0.)
  """
  import cv2

  small = cv2.resize(picture @ video.LUMA, (32, 32), interpolation=cv2.INTER_AREA)
  # Rounded, so that a flat picture has the bits of zeros and not of rounding errors.
  low = np.round(cv2.dct(small)[:8, :8].ravel()[1:], 2)
  return sum(1 << k for k in np.flatnonzero(low > np.median(low)).tolist())


def of_clip(frames) -> tuple[int, ...]:
  """Hashes of PICTURES moments of uint8 [t h w 3], evenly spread; of a still picture, one."""
  count = PICTURES if len(frames) > 1 else 1
  return tuple(perceptual(frames[int((k + 0.5) / count * len(frames))]) for k in range(count))


def groups(hashes: Mapping[str, tuple[int, ...]], distance: int = 6) -> list[list[str]]:
  """Near duplicates: sets of two and more, each and all sorted by name.

  Two are near if each hash of the one differs from its counterpart in `distance` bits at most;
  near ones of near ones are in one set.  Those with different numbers of hashes are never near,
  nor those without.  Of n hashes that are alike by chance alone 2**-21 of the pairs are compared.
  """
  if not 0 <= distance < BITS - AGREEING:
    raise ValueError(f'distance is {distance}; give 0 to {BITS - AGREEING - 1} bits.')
  same = collections.defaultdict(list)  # Equal ones are a group before any search.
  for name in sorted(hashes):
    if hashes[name]:
      same[tuple(hashes[name])].append(name)
  parents = {key: key for key in same}

  def root(key):
    while parents[key] != key:
      parents[key] = key = parents[parents[key]]
    return key

  for length in sorted({len(key) for key in same}):
    keys = [key for key in same if len(key) == length]
    for a, b in _near(np.array(keys, np.uint64), distance):
      parents[root(keys[a])] = root(keys[b])
  found = collections.defaultdict(list)
  for key, names in same.items():
    found[root(key)] += names
  return sorted(sorted(names) for names in found.values() if len(names) > 1)


def _near(table: np.ndarray, distance: int) -> Iterator[tuple[int, int]]:
  """Pairs of rows of uint64 [n hashes] whose hashes all differ in `distance` bits at most.

  Hashes cut into distance + AGREEING bands differ in `distance` of them at most: the other
  AGREEING are equal.  So for each choice of AGREEING bands the rows are sorted by those bits, and
  only rows with equal bits are compared.  The column with the most values is the one cut.
  """
  column = table[:, np.argmax([len(np.unique(c)) for c in table.T])]
  edges = np.linspace(0, BITS, distance + AGREEING + 1).round().astype(int).tolist()
  bands = [(1 << high) - (1 << low) for low, high in itertools.pairwise(edges)]
  for chosen in itertools.combinations(bands, AGREEING):
    masked = column & np.uint64(sum(chosen))
    order = np.argsort(masked, kind='stable')
    masked, first = masked[order], np.arange(len(order))
    for step in itertools.count(1):  # Rows that are this far apart in a run of equal bits.
      first = first[first + step < len(order)]
      first = first[masked[first] == masked[first + step]]
      if not len(first):
        break
      a, b = order[first], order[first + step]
      near = np.bitwise_count(table[a] ^ table[b]).max(1) <= distance
      yield from zip(a[near].tolist(), b[near].tolist())
