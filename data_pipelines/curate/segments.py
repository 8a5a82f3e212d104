"""Times into segments: pure functions of seconds, no media.

    segments, rest = whole(shots, least, most)   shots to segments that no cut crosses
    pieces = even(start, end, most)              a long stretch into pieces of one length
    lists = join(sounds, most)                   short sounds together up to a length

A stretch is (start, end) in seconds, start < end.
"""

from collections.abc import Iterable
from collections.abc import Sequence
import itertools
import math

Stretch = tuple[float, float]
SLACK = 1e-6  # Seconds; sums of floats may exceed a limit by this much.


def even(start: float, end: float, most: float) -> list[Stretch]:
  """The fewest pieces of one length, none longer than `most`; they touch and cover the stretch.

  A piece of a stretch that had to be cut is longer than most / 2.
  """
  pieces = max(1, math.ceil((end - start) / most - SLACK))
  at = [start + (end - start) * k / pieces for k in range(pieces)] + [end]
  return list(itertools.pairwise(at))


def whole(
  shots: Iterable[Stretch], least: float, most: float
) -> tuple[list[Stretch], list[Stretch]]:
  """Segments of `least` to `most` seconds, each within one shot, and the shots too short for one.

  A segment that spans a cut would mean two things; a shot that is too long is cut evenly.  Segments
  and rest together are the shots: nothing is lost and nothing comes twice.

  Raises:
    ValueError: `most` is not at least twice `least`, so that some lengths could not be cut.
  """
  if not 0 <= 2 * least <= most:
    raise ValueError(
      f'segments of {least:g} to {most:g} s: a shot a little over {most:g} s could not be cut into '
      f'pieces of {least:g} s; give a longest of at least twice the shortest.'
    )
  segments, rest = [], []
  for start, end in shots:
    if end - start < least - SLACK:
      rest.append((start, end))
    else:
      segments += even(start, end, most)
  return segments, rest


def join(sounds: Sequence[tuple[str, float, float]], most: float) -> list[list[tuple]]:
  """First fit: each (path, start, end) goes into the first list that stays within `most` seconds.

  Lists and what they hold keep the order of `sounds`, so the same input gives the same lists; a
  sound longer than `most` is a list of its own.
  """
  lists, lengths = [], []
  for sound in sounds:
    length = sound[2] - sound[1]
    k = next((k for k, have in enumerate(lengths) if have + length <= most + SLACK), None)
    if k is None:
      lists.append([sound])
      lengths.append(length)
    else:
      lists[k].append(sound)
      lengths[k] += length
  return lists
