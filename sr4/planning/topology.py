"""TPU slices by name: how many chips, how much memory, how fast; and a mesh over them for the
compiler, with no chip at hand.

  parse('v5p:8x8x8')  parse('v5p-1024')  parse('2*v5p:8x8x8')
"""

import dataclasses
import math
import os
import re

from sr4.core import errors


@dataclasses.dataclass(frozen=True)
class Generation:
  """Of one device as JAX sees it.  Sources: PODS of the vendor's pages, and the compiler itself."""

  hbm_gib: float  # usable: what the compiler gives a program
  tflops: float  # bf16, dense
  hbm_tbs: float
  ici_gbs: float  # of one link, one way
  dimensions: int
  units: int  # matrix units of 128 x 128, or as many as a larger one is worth
  devices: int = 1  # a chip
  cores: int = 1  # a chip, in names such as v5p-1024

  @property
  def clock(self) -> float:
    """Cycles a second, by which the compiler's estimates become times: the peak has all units."""
    return self.tflops * 1e12 / (self.units * 2 * 128 * 128)


GENERATIONS = {
  'v4': Generation(30.5, 275, 1.23, 45, 3, 8, cores=2),
  'v5e': Generation(15.75, 197, 0.82, 45, 2, 4),
  'v5p': Generation(95.73, 459, 2.77, 90, 3, 8, cores=2),
  'v6e': Generation(31.24, 918, 1.64, 90, 2, 16),
  'tpu7x': Generation(94.74, 2307 / 2, 7.38 / 2, 90, 3, 16, devices=2, cores=2),
}


class TopologyError(errors.UserError):
  """A name of no slice."""


@dataclasses.dataclass(frozen=True)
class Topology:
  generation: str
  shape: tuple[int, ...]  # chips of a slice
  slices: int = 1

  @property
  def spec(self) -> Generation:
    return GENERATIONS[self.generation]

  @property
  def chips(self) -> int:
    return math.prod(self.shape) * self.slices

  @property
  def devices(self) -> int:
    return self.chips * self.spec.devices

  def __str__(self):
    one = f'{self.generation}:{"x".join(map(str, self.shape))}'
    return one if self.slices == 1 else f'{self.slices}*{one}'


def parse(name: str) -> Topology:
  """A Topology; TopologyError where there is no such slice."""
  told = re.fullmatch(r'(?:(\d+)\*)?(\w+?)(?::(\d+(?:x\d+)*)|-(\d+))', name)
  if not told or told[2] not in GENERATIONS:
    raise TopologyError(
      f'topology {name!r}: write GENERATION:CHIPS as in v5p:8x8x8, or v5p-1024, or 2*v5p:8x8x8 for '
      f'two slices; generations are {", ".join(GENERATIONS)}'
    )
  slices, spec = int(told[1] or 1), GENERATIONS[told[2]]
  shape = tuple(map(int, told[3].split('x'))) if told[3] else standard(int(told[4]), spec, name)
  if len(shape) != spec.dimensions or not slices or 0 in shape:
    raise TopologyError(
      f'topology {name!r}: {told[2]} slices have {spec.dimensions} dimensions, such as '
      f'{told[2]}:{"x".join(["4"] * spec.dimensions)}'
    )
  return Topology(told[2], shape, slices)


def standard(count: int, spec: Generation, name: str) -> tuple[int, ...]:
  """The shape of a slice that is named by its number of cores: the most even powers of 2."""
  chips, rest = divmod(count, spec.cores)
  if rest or chips < 1 or chips & (chips - 1):
    raise TopologyError(
      f'topology {name!r}: {count} must be {spec.cores} times a power of 2; other slices are named '
      'by their shape, as in v5p:4x4x12'
    )
  bits, n = chips.bit_length() - 1, spec.dimensions
  return tuple(1 << (bits // n + (i >= n - bits % n)) for i in range(n))


def devices(topology: Topology):
  """The slice's devices, for the compiler alone: nothing can run on them.

  Raises:
    TopologyError: libtpu is not installed, or knows no such slice.
  """
  # Before libtpu is loaded: it is not to look for chips, nor to mind another process.
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
  from jax.experimental import topologies

  name = f'{topology.generation}:{"x".join(map(str, topology.shape))}'
  many = {'num_slices': topology.slices} if topology.slices > 1 else {}
  if topology.generation == 'v4':
    many['chip_config_name'] = 'megacore'  # Both cores of a chip as one device, as in a run.
  try:
    return topologies.get_topology_desc(platform='tpu', topology_name=name, **many).devices
  except Exception as error:  # Of many kinds, by what is missing.
    reason = str(error).partition('\n')[0][:200]
    raise TopologyError(
      f'{topology}: the TPU compiler cannot make it ({reason}); install it with pip install '
      "'sr4[tpu]', and check the shape"
    ) from error
