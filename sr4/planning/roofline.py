"""How long a step takes: a model of the compiled program's facts, not a measurement.

The instructions of each computation run one after another, as the compiler has ordered them.  Each
takes the longest of its arithmetic, its memory traffic, and the compiler's own estimate of its
cycles; a collective that is not asynchronous takes all of its time; one that is runs beside what
lies between its start and its end, and the rest of it is exposed.  Copies that are begun ahead take
memory bandwidth only.
"""

import collections
import dataclasses
import re

from sr4.planning import collectives
from sr4.planning import hlo
from sr4.planning import network as network_lib
from sr4.planning import operations
from sr4.planning import topology as topology_lib

# Share of the peak that the kernel's own instructions allow, forward and backward, by generation
# and head width: cycles of the splash kernel's inner loop as compiled (static, libtpu 0.0.51).
# v4 and v5e have the matrix unit of v5p, 128 wide.
SPLASH = {
  ('v4', 128): (0.78, 0.93),
  ('v4', 256): (0.84, 0.95),
  ('v5e', 128): (0.78, 0.93),
  ('v5e', 256): (0.84, 0.95),
  ('v5p', 128): (0.78, 0.93),
  ('v5p', 256): (0.84, 0.95),
  ('v6e', 128): (0.40, 0.47),
  ('v6e', 256): (0.69, 0.91),
  ('tpu7x', 128): (0.30, 0.38),
  ('tpu7x', 256): (0.44, 0.70),
}

# The same of the kernel of tiles (nn/kernels/block_sparse_tpu.py), by tokens of a tile, with heads
# of 128: its share of a dense product's operations (benchmarks/kernel_cycles.py), times `matmul`.
TILES = {
  ('v5e', 64): (0.23, 0.31),
  ('v5e', 128): (0.55, 0.77),
  ('v5e', 256): (0.67, 0.74),
  ('v5p', 64): (0.28, 0.38),
  ('v5p', 128): (0.67, 0.93),
  ('v5p', 256): (0.82, 0.92),
  ('v6e', 64): (0.08, 0.13),
  ('v6e', 128): (0.21, 0.33),
  ('v6e', 256): (0.32, 0.50),
  ('tpu7x', 64): (0.08, 0.12),
  ('tpu7x', 128): (0.18, 0.29),
  ('tpu7x', 256): (0.25, 0.43),
}


def shares(generation: str, kernel: str, size: int) -> tuple[float, float]:
  """Of the peak, forward and backward, of a kernel as operations.Work names it."""
  if kernel == 'tiles':
    return TILES[generation, size]
  return SPLASH[generation, min(256, max(128, size))]


@dataclasses.dataclass(frozen=True)
class Assumptions:
  """All that the model takes for granted apart from topology.Generation and SPLASH."""

  # Matrix products against the peak: static cycles of compiled ones are 0.93 to 0.95 of it.
  matmul: float = 0.94
  # Of the bandwidth of HBM: what streams reach on TPUs (STREAM-like kernels, 0.75 to 0.85).
  hbm: float = 0.8
  # What real steps reach of such a bound: 0.65 to 0.85 of it where a run was published (212 s for
  # 249 s, 110 s for 127 s of inference, 22.7 s for 36.0 s of training); this is the middle.
  achieved: float = 0.75
  # The same, for the best and the worst that is to be expected.
  best: float = 0.85
  worst: float = 0.65
  # The bound without the compiler's estimates of cycles, which come with machine code, as a share
  # of that with them: the published step, 22.4 of 23.7 s (benchmarks/published.py).
  laid_out: float = 0.945
  # Between slices, of one chip: 200 Gb/s a host of 4 chips (jax-ml.github.io/scaling-book, TPUs).
  dcn_gbs: float = 6.25
  # Between the two devices of a chip: 6 times a link (cloud.google.com/tpu/docs/tpu7x).
  on_chip_links: float = 6.0
  # To the host's memory and back, of one chip: PCIe gen 3 x16 shared by two (scaling-book, TPUs).
  host_gbs: float = 16.0


@dataclasses.dataclass(frozen=True)
class Times:
  """Seconds of a device; the sum is the step's at the bound."""

  matmul: float = 0.0  # at the unit's speed
  attention: float = 0.0  # kernels at theirs
  memory: float = 0.0  # all else: elementwise work, changes of layout, what waits for HBM
  host: float = 0.0  # waiting for the host's memory
  exposed: dict = dataclasses.field(default_factory=dict)  # axes: waiting for collectives

  def __add__(self, other):
    axes = collections.Counter(self.exposed)
    axes.update(other.exposed)
    return Times(*(a + b for a, b in zip(self.parts, other.parts)), dict(axes))

  def times(self, n: float):
    return Times(*(n * x for x in self.parts), {k: n * v for k, v in self.exposed.items()})

  @property
  def parts(self) -> tuple[float, float, float, float]:
    return self.matmul, self.attention, self.memory, self.host

  def named(self) -> dict[str, float]:
    """{'matmul': .., 'attention': .., 'memory': .., 'host': .., 'seq': ..}, axes at the end."""
    names = [field.name for field in dataclasses.fields(self)][:-1]
    return dict(zip(names, self.parts)) | {k: v for k, v in self.exposed.items() if v}

  @property
  def communication(self) -> float:
    return sum(self.exposed.values())

  @property
  def total(self) -> float:
    return sum(self.parts) + self.communication


@dataclasses.dataclass(frozen=True)
class Model:
  """A program on a mesh of a generation's devices."""

  module: hlo.Module
  mesh: object
  topology: topology_lib.Topology
  network: network_lib.Network
  assumed: Assumptions

  def instruction(self, computation, x) -> Times:
    """Its own time, without what it calls or waits for."""
    spec = self.topology.spec
    work = operations.of(self.module, computation, x)
    peak = spec.tflops * 1e12
    matmul, attention = work.passes / peak / self.assumed.matmul, 0.0
    if work.kernel[0]:
      forward, backward = shares(self.topology.generation, *work.kernel)
      attention = (work.forward / forward + work.backward / backward) / peak
    moved = operations.moved(self.module, computation, x)
    memory = moved[hlo.HBM] / (spec.hbm_tbs * 1e12 * self.assumed.hbm)
    cycles = re.search(r'"estimated_cycles":"(\d{1,15})"', x.rest)  # Longer is the largest number.
    estimate = int(cycles[1]) / spec.clock if cycles else 0.0
    waits = max(0.0, memory - matmul - attention, estimate - matmul - attention)
    host = moved[hlo.HOST] / (self.assumed.host_gbs * 1e9 / spec.devices)
    return Times(matmul, attention, waits, host)

  def computation(self, computation: hlo.Computation) -> Times:
    """One execution."""
    total, flying, free = Times(), {}, collections.Counter()
    streamed = 0.0  # Seconds of HBM bandwidth that all of it takes.
    bandwidth = self.topology.spec.hbm_tbs * 1e12 * self.assumed.hbm
    for x in computation:
      if x.op == 'while':
        inner = self.computation(self.module.body(x)).times(self.module.trips(computation, x))
        total, streamed = total + inner, streamed + inner.total
        continue
      if x.op in ('call', 'conditional'):
        inner = [self.computation(self.module.computations[name]) for name in x.called]
        longest = max(inner, key=lambda times: times.total)
        total, streamed = total + longest, streamed + longest.total
        continue
      moved = operations.moved(self.module, computation, x)
      streamed += moved[hlo.HBM] / bandwidth
      source = computation.operand(x)
      if x.op.endswith('-start') or x.op in ('async-update', 'send'):
        # An asynchronous call without operands begins with its update.
        if x.op == 'async-start' and not x.operands:
          continue
        began = source if x.op == 'async-update' else x
        if began.name in flying:
          flying[x.name] = flying[began.name]
          continue
        kind, seconds = self.transfer(computation, began)
        free[kind] = max(free[kind], total.total) + seconds
        flying[meeting(x) or x.name] = kind, free[kind]
      elif x.op.endswith('-done'):  # What slices send ends where it is received.
        began = (meeting(source) or source.name) if source else ''
        kind, end = flying.get(began, ('', 0.0)) if x.op != 'send-done' else ('', 0.0)
        late = max(0.0, end - total.total)
        total += Times(host=late) if kind == 'host' else Times(exposed={kind: late} if kind else {})
      else:
        total += self.instruction(computation, x)
        for name, seconds in self.waiting(computation, x):
          total += Times(exposed={name: seconds})
    if streamed > total.total:
      total += Times(memory=streamed - total.total)
    return total

  def transfer(self, computation, x) -> tuple[str, float]:
    """(axes or 'host', seconds) of what an instruction begins; '' for copies inside a device."""
    inner = [*self.waiting(computation, x)]
    if x.called:
      for name in x.called:
        for y, where, _, within in self.module.walk(self.module.computations[name]):
          if c := collectives.of(self.module, where, y, self.mesh, within):
            inner.append((c.axes, self.network.seconds(c)))
    if inner:
      return inner[0][0], sum(seconds for _, seconds in inner)
    moved = operations.moved(self.module, computation, x)[hlo.HOST]
    host = self.assumed.host_gbs * 1e9 / self.topology.spec.devices
    return ('host', moved / host) if moved else ('', 0.0)

  def waiting(self, computation, x):
    """(axes, seconds) of the collectives that an instruction is, or that are fused into it."""
    if c := collectives.of(self.module, computation, x, self.mesh):
      yield c.axes, self.network.seconds(c)
    if x.op == 'fusion':
      for name in x.called:
        inner = self.module.computations[name]
        for y in inner:
          if c := collectives.of(self.module, inner, y, self.mesh, (x,)):
            yield c.axes, self.network.seconds(c)


def meeting(x: hlo.Instruction) -> str:
  """What a send and a receive between slices have in common; '' of all else."""
  told = re.search(r'_xla_host_transfer_rendezvous="([^"]*)"', x.rest)
  return told[1] if told else ''


def model(module, mesh, topology: topology_lib.Topology, assumed=Assumptions()) -> Times:
  """Times of one step at the bound, before `achieved`."""
  ici = topology.spec.ici_gbs
  links = network_lib.Links(ici, assumed.dcn_gbs, ici * assumed.on_chip_links)
  network = network_lib.of(mesh, topology, links)
  return Model(module, mesh, topology, network, assumed).computation(module.entry)
