"""Ways to lay a training out over a slice: which there are, which cannot be, which are best.

A `Candidate` is a mesh, what is kept for the backward pass, the kernel's blocks and the parts of a
batch.  RULES say why one is not worth compiling; a rule that is added there is seen in the sweep.
"""

from collections.abc import Iterator
import dataclasses
import itertools
import math

from sr4.core import sharding
from sr4.models import mmdit
from sr4.nn.kernels import splash
from sr4.planning import topology as topology_lib

BYTES = 16  # of a parameter at rest: fp32 weight, moving average, two moments
GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Candidate:
  data: int
  fsdp: int
  seq: int
  tensor: int
  remat: str
  queries: int  # of the kernel's blocks
  keys: int
  accumulate: int

  @property
  def overrides(self) -> tuple[str, ...]:
    """As after --config."""
    return (
      *(f'mesh.{axis}={getattr(self, axis)}' for axis in sharding.AXES),
      f'model.remat={self.remat}',
      f'model.blocks.queries={self.queries}',
      f'model.blocks.keys={self.keys}',
      f'step.accumulate={self.accumulate}',
    )

  @property
  def name(self) -> str:
    mesh = '-'.join(f'{axis}{getattr(self, axis)}' for axis in sharding.AXES)
    return f'{mesh}-{self.remat}-{self.queries}x{self.keys}-accumulate{self.accumulate}'


@dataclasses.dataclass(frozen=True)
class Job:
  """What is laid out."""

  model: mmdit.Config
  parameters: int
  rows: int  # of the global batch
  tokens: int  # of the longest stream of a row
  topology: topology_lib.Topology


@dataclasses.dataclass(frozen=True)
class Choices:
  """What is tried beside meshes."""

  remat: tuple[str, ...] = ('results', 'attention', 'full')
  blocks: tuple[tuple[int, int], ...] = ((512, 1024), (1024, 1024))
  accumulate: tuple[int, ...] = (1, 2, 4, 8, 16)

  def __post_init__(self):
    for remat in self.remat:
      if remat not in mmdit.REMAT:
        raise ValueError(f'remat={remat!r} is not among {tuple(mmdit.REMAT)}')
    for queries, keys in self.blocks:
      splash.Blocks(queries, keys)
    if min(self.accumulate) < 1:
      raise ValueError(f'accumulate={self.accumulate}: parts of a batch are 1 or more')


def candidates(job: Job, choices: Choices = Choices()) -> Iterator[Candidate]:
  """All of them: every mesh of powers of two, every choice."""
  powers = [1 << i for i in range(job.topology.devices.bit_length())]
  for seq, tensor, data in itertools.product(powers, repeat=3):
    fsdp, rest = divmod(job.topology.devices, seq * tensor * data)
    if fsdp and not rest:
      for remat, blocks, parts in itertools.product(
        choices.remat, choices.blocks, choices.accumulate
      ):
        yield Candidate(data, fsdp, seq, tensor, remat, *blocks, parts)


# Each rule: (candidate, job) -> why it is not worth compiling, or ''.


def heads(c: Candidate, job: Job) -> str:
  """Each device of `tensor` has whole heads."""
  return job.model.heads % c.tensor and f'{job.model.heads} heads over tensor={c.tensor}'


def width(c: Candidate, job: Job) -> str:
  """A weight's width is split without padding."""
  ways = c.fsdp * c.seq
  return job.model.width % ways and f'width {job.model.width} over fsdp x seq = {ways}'


def collected(c: Candidate, job: Job) -> str:
  """Over more than 64 devices a gather becomes a padded all-reduce (PODS); where 64 hold too much
  of a model for any step, it is the smaller evil."""
  ways = c.fsdp * c.seq
  return (
    ways > 64
    and at_rest(job, 64) < 1 / 3
    and (f'weights over fsdp x seq = {ways} devices; at most 64 gather well')
  )


def rows(c: Candidate, job: Job) -> str:
  """Each device has whole rows in each part of a batch."""
  ways = c.data * c.fsdp * c.accumulate
  return job.rows % ways and f'{job.rows} rows over data x fsdp x accumulate = {ways}'


def tokens(c: Candidate, job: Job) -> str:
  """Enough tokens on a device to fill the kernel's blocks."""
  mine = job.tokens // c.seq
  return c.seq > 1 and mine < splash.BLOCK and f'{mine} tokens a device with seq={c.seq}'


def neighbours(c: Candidate, job: Job) -> str:
  """Heads go round first: they move an eighth of what keys do."""
  ring = c.seq // math.gcd(c.seq, job.model.heads // c.tensor)
  return ring > 4 and f'keys around {ring} devices; fewer seq or tensor leave more to the heads'


def slices(c: Candidate, job: Job) -> str:
  """Only `data` crosses the network between slices."""
  return c.data % job.topology.slices and f'data={c.data} over {job.topology.slices} slices'


def spread(c: Candidate, job: Job) -> str:
  """More devices that share a weight hold less of it, and gather the same bytes."""
  ways = c.fsdp * c.seq
  return ways < 32 and c.data > job.topology.slices and f'weights over {ways} devices; 32 hold less'


def moved(c: Candidate, job: Job) -> str:
  """`tensor` moves all activations four times a layer, `seq` four tensors once."""
  return c.tensor > 4 and f'tensor={c.tensor}; at most 4'


def memory(c: Candidate, job: Job) -> str:
  """What lies on a device at rest leaves half of it to the step."""
  share = at_rest(job, c.fsdp * c.seq * c.tensor)
  return share > 1 / 2 and f'{share:.0%} of the device at rest, above half of it'


def at_rest(job: Job, ways: int) -> float:
  """Share of a device's memory that weights over so many take between steps."""
  return job.parameters * BYTES / ways / GIB / job.topology.spec.hbm_gib


RULES = (slices, heads, width, rows, tokens, neighbours, collected, spread, moved, memory)


def objection(c: Candidate, job: Job) -> tuple[str, str]:
  """(name of the first rule against a candidate, its reason); empty if there is none."""
  told = ((rule.__name__, rule(c, job)) for rule in RULES)
  return next(((name, why) for name, why in told if why), ('', ''))


def promising(c: Candidate, job: Job) -> tuple:
  """Sorts candidates: little moved and little computed again first, for when time runs out.

  `tensor` comes last: every such layout that was compiled was slower than its like without.
  """
  return (
    c.tensor,
    c.seq + c.accumulate,
    c.remat != 'attention',
    (c.queries, c.keys) != (512, 1024),
    c.data,
  )


def doubtful(c: Candidate, rows: list[dict]) -> bool:
  """Will it hardly fit, by what `rows` took?

  Activations of a device depend on the parts of the batch and on what is kept, and little on the
  mesh.  So a row that keeps no more than `c`, of parts no larger, and yet took a tenth more than
  the device has, speaks against it.
  """
  keeps = [*mmdit.REMAT].index  # from the most to the least
  return any(
    row['hbm_gib']['total'] > 1.1 * row['hbm_gib']['capacity']
    and keeps(row['remat']) >= keeps(c.remat)
    and row['accumulate'] >= c.accumulate
    for row in rows
    if 'hbm_gib' in row
  )


def front(rows: list[dict]) -> list[dict]:
  """Those than which none is both smaller and faster, by memory."""
  found, best = [], math.inf
  for row in sorted(rows, key=lambda row: (row['hbm_gib']['total'], row['step_seconds'])):
    if row['step_seconds'] < best:
      found.append(row)
      best = row['step_seconds']
  return found
