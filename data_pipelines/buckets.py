"""The pod's schedule: which bucket and which records a step takes, from (seed, step) alone.

A bucket is one static shape.  Steps come in cycles; within a cycle each bucket gets its exact
share, in an order drawn from (seed, cycle).  Hosts never talk: each computes the same answer and
takes those rows that its devices hold, so the global batch does not depend on how many hosts there
are, nor on which devices are whose.
"""

from collections.abc import Sequence
import dataclasses
import functools
import hashlib
import json

from grain import experimental
import numpy as np

from sr4.core import errors
from sr4.core.batch import Size

CYCLE = 1024  # steps in which the shares hold exactly


class ScheduleError(errors.UserError):
  """Buckets that no run can follow."""


@dataclasses.dataclass(frozen=True)
class Bucket:
  """One static shape and the records that fill it."""

  name: str
  size: Size
  rows: int  # of the global batch
  weight: float  # share of the steps, relative to the other buckets
  records: int  # how many there are to draw from
  tasks: tuple[tuple[str, float], ...] = ()  # names and their shares of the rows

  def __post_init__(self):
    if not self.records:
      raise ScheduleError(
        f'bucket {self.name!r} has no records; give it a folder that has some, or '
        'take the bucket out'
      )
    if self.rows < 1 or self.weight < 0:
      raise ScheduleError(
        f'bucket {self.name!r} has rows={self.rows}, weight={self.weight}; rows must '
        'be at least 1 and the weight not negative'
      )
    if self.tasks and not (min(w for _, w in self.tasks) >= 0 < sum(w for _, w in self.tasks)):
      raise ScheduleError(
        f'bucket {self.name!r} has the tasks {dict(self.tasks)}; no share may be negative, and one '
        'must be above 0'
      )


@dataclasses.dataclass(frozen=True)
class Schedule:
  seed: int
  buckets: tuple[Bucket, ...]
  cycle: int = CYCLE

  @functools.cached_property
  def shares(self) -> np.ndarray:
    """Steps of each bucket in a cycle, by largest remainder: [buckets], summing to the cycle."""
    weights = [b.weight for b in self.buckets]
    if not sum(weights) > 0:
      raise ScheduleError('the weights of the buckets sum to 0; give one a positive weight')
    return largest_remainder(weights, self.cycle)

  def at(self, step: int) -> tuple[int, int]:
    """(bucket, its visits before this step)."""
    cycle, offset = divmod(step, self.cycle)
    bucket, visit = _order(self.seed, tuple(self.shares.tolist()), cycle)
    b = int(bucket[offset])
    return b, cycle * int(self.shares[b]) + int(visit[offset])

  def draws(self, step: int, parts: Sequence[int] = (0,), of: int = 1) -> tuple[int, list[int]]:
    """(bucket, draws): positions in the bucket's endless shuffled sequence.

    Args:
      parts: which of the `of` equal parts of the rows; hosts that share rows name the same.
    """
    b, visit = self.at(step)
    rows = self.buckets[b].rows
    if rows % of:
      raise ScheduleError(
        f'bucket {self.buckets[b].name!r} has {rows} rows, which are not {of} equal parts; use a '
        f'multiple of {of}'
      )
    size = rows // of
    return b, [visit * rows + part * size + i for part in parts for i in range(size)]

  def task(self, b: int, draw: int) -> str:
    """Name of the task of a draw: in every cycle of steps each task has its exact share of rows."""
    names = [name for name, _ in self.buckets[b].tasks]
    rows = int(self.shares[b]) * self.buckets[b].rows
    counts = largest_remainder([weight for _, weight in self.buckets[b].tasks], rows)
    cycle, offset = divmod(draw, rows)
    return names[_tasks(_hash(self.seed, 'task', b), tuple(counts.tolist()), cycle)[offset]]

  def record(self, b: int, draw: int, attempt: int = 0) -> int:
    """Index of the record that a draw takes: each once an epoch; attempts name others instead."""
    size = self.buckets[b].records
    epoch, index = divmod(draw, size)
    if attempt and size > 1:  # Never the same again, as far as there are others.
      away = (_hash(self.seed, b, draw) + attempt - 1) % (size - 1)
      index = (index + 1 + away) % size
    if size == 1:
      return 0
    return experimental.index_shuffle(
      index, max_index=size - 1, seed=_hash(self.seed, b, epoch), rounds=4
    )

  def epochs(self, steps: int) -> list[float]:
    """How often each bucket's records are seen in a run of this many steps."""
    per_step = self.shares / self.cycle
    return [steps * share * b.rows / b.records for b, share in zip(self.buckets, per_step)]

  def fingerprint(self) -> str:
    """Names the schedule: a checkpoint's data position means nothing under another one."""
    state = [self.seed, self.cycle, [dataclasses.asdict(b) for b in self.buckets]]
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:16]


def largest_remainder(weights, total: int) -> np.ndarray:
  """Whole numbers in proportion to the weights, summing to the total."""
  exact = np.array(weights, float) / sum(weights) * total
  counts = np.floor(exact).astype(int)
  order = np.argsort(-(exact - counts), kind='stable')
  counts[order[: total - counts.sum()]] += 1
  return counts


@functools.lru_cache(maxsize=32)
def _tasks(seed: int, shares: tuple[int, ...], cycle: int) -> np.ndarray:
  """Of each draw of a cycle: its task."""
  random = np.random.Generator(np.random.Philox(key=[seed, cycle]))
  return random.permutation(np.repeat(np.arange(len(shares), dtype=np.uint8), shares))


@functools.lru_cache(maxsize=8)
def _order(seed: int, shares: tuple[int, ...], cycle: int) -> tuple[np.ndarray, np.ndarray]:
  """Of each step of a cycle: its bucket, and how often that bucket came before in the cycle."""
  random = np.random.Generator(np.random.Philox(key=[seed, cycle]))
  bucket = random.permutation(np.repeat(np.arange(len(shares)), shares))
  visit = np.zeros(len(bucket), int)
  for b, share in enumerate(shares):
    visit[bucket == b] = np.arange(share)
  return bucket, visit


def _hash(*xs) -> int:
  return int.from_bytes(hashlib.blake2b(repr(xs).encode(), digest_size=4).digest(), 'little')
