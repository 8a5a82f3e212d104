"""What the instructions of a compiled program compute and move: facts of its text.

Floating-point operations are those of matrix products, twice the multiplications, in dots,
convolutions and attention kernels.  A kernel's are of its padded blocks, and of all of them: masks
by which it would skip blocks are not looked at.
"""

import dataclasses
import math
import re

import numpy as np

from sr4.planning import hlo

# Matrix products of queries x keys x head in a pass of the splash kernel (jax 0.10.2,
# splash_attention_kernel.py): logits and values; then what its backward passes compute again.
SPLASH = {
  'fwd': 2,  # q k^T, p v
  'dq': 3,  # q k^T, do v^T, ds k
  'dkv': 4,  # q k^T, p^T do, do v^T, ds^T q
  'fused': 5,  # dkv, and ds k
}
# Of these, what is computed for a second or third time: the logits, and do v^T in two kernels.
AGAIN = {'fwd': 0, 'dq': 2, 'dkv': 1, 'fused': 1}
PASSES = {'highest': 6, 'high': 3}  # bf16 products for one of fp32 at such precision, on a TPU.
# They move or compute nothing: names for what is there already, and ends of what was begun.
FREE = {
  *('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'after-all', 'iota'),
  *('partition-id', 'replica-id', 'opt-barrier', 'while', 'call', 'conditional', 'broadcast'),
}


@dataclasses.dataclass(frozen=True)
class Work:
  """Of one device, once."""

  matmul: float = 0.0  # operations of dots and convolutions
  passes: float = 0.0  # the same, as many times as the unit does them for their precision
  forward: float = 0.0  # operations of attention kernels
  backward: float = 0.0
  again: float = 0.0  # of these, what the backward kernels compute once more
  kernel: tuple[str, int] = ('', 0)  # ('splash', width of a head) or ('tiles', tokens of a tile)
  unknown: tuple[str, ...] = ()  # kernels whose operations are not counted

  def __add__(self, other):
    return Work(
      self.matmul + other.matmul,
      self.passes + other.passes,
      self.forward + other.forward,
      self.backward + other.backward,
      self.again + other.again,
      max(self.kernel, other.kernel),
      self.unknown + other.unknown,
    )

  def times(self, n: int):
    kept = self.kernel, self.unknown
    return Work(*(n * x for x in dataclasses.astuple(self)[:5]), *kept)

  @property
  def flops(self) -> float:
    return self.matmul + self.forward + self.backward


def program(module: hlo.Module) -> Work:
  """All of it, loops as often as they run."""
  found = Work()
  for x, computation, times, _ in module.walk():
    found += one(computation, x).times(times)
  return dataclasses.replace(found, unknown=tuple(dict.fromkeys(found.unknown)))


def of(module: hlo.Module, computation: hlo.Computation, x: hlo.Instruction) -> Work:
  """An instruction with all that is fused into it; not what a loop or a call runs."""
  found = one(computation, x)
  if x.op == 'fusion':
    for name in x.called:
      inner = module.computations[name]
      found = sum((of(module, inner, y) for y in inner), found)
  return found


def one(computation: hlo.Computation, x: hlo.Instruction) -> Work:
  if x.op in ('dot', 'convolution'):
    flops = (dot if x.op == 'dot' else convolution)(computation, x)
    told = re.search(r'operand_precision=\{(\w+)', x.rest)
    wide = any(computation.operand(x, i).types[0].dtype == 'f32' for i in range(2))
    return Work(flops, flops * (PASSES.get(told[1], 1) if told and wide else 1))
  if x.op == 'custom-call' and 'custom_call_target="tpu_custom_call"' in x.rest:
    return kernel(computation, x)
  return Work()


def kernel(computation: hlo.Computation, x: hlo.Instruction) -> Work:
  """A Pallas kernel, by its name."""
  if told := re.match(r'splash_m[hq]a_(fwd|dq|dkv)', x.name):
    return splash(computation, x, told[1])
  if told := re.match(r'block_sparse_(forward|backward)', x.name):
    return tiles(computation, x, told[1])
  return Work(unknown=(re.sub(r'\.\d+$', '', x.name),))


def splash(computation: hlo.Computation, x: hlo.Instruction, kind: str) -> Work:
  """Its first real operands are queries [.. s k], keys [.. r k]."""
  types = [computation.by_name[name].types[0] for name in x.operands]
  q, k, *_ = (t for t in types if t.dtype in ('bf16', 'f32') and len(t.dims) >= 3)
  # In one backward kernel there is a part of dq for each block of keys, [parts .. s k].
  parts = [t for t in x.types if t.dims[-2:] == q.dims[-2:] and len(t.dims) > len(q.dims)]
  product, kind = 2 * math.prod(q.dims) * k.dims[-2], 'fused' if parts and kind == 'dkv' else kind
  way = 'forward' if kind == 'fwd' else 'backward'
  flops = {way: SPLASH[kind] * product, 'again': AGAIN[kind] * product}
  return Work(kernel=('splash', q.dims[-1]), **flops)


def tiles(computation: hlo.Computation, x: hlo.Instruction, way: str) -> Work:
  """How many tiles it reads is data: the kernel tells how many are expected (kernels/chosen.py)."""
  flops = float(re.search(r'"cost_estimate":\{[^}]*"flops":"(\d+)"', x.rest)[1])
  side = next(
    t
    for name in x.operands
    if len((t := computation.by_name[name].types[0]).dims) == 4 and t.dtype != 's32'
  )
  again = flops / 5 if way == 'backward' else 0.0  # The logits, of five products.
  return Work(kernel=('tiles', side.dims[2]), again=again, **{way: flops})


def dot(computation: hlo.Computation, x: hlo.Instruction) -> float:
  left = computation.operand(x).types[0]
  told = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', x.rest)
  contracted = math.prod(left.dims[int(i)] for i in told[1].split(',') if i) if told else 1
  return 2 * math.prod(x.types[0].dims) * contracted


def convolution(computation: hlo.Computation, x: hlo.Instruction) -> float:
  """A TPU's dots are convolutions, too: their batch is a window most of which is padding."""
  left, right = (computation.operand(x, i).types[0].dims for i in range(2))
  labels = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', x.rest).groups()
  window = dict(re.findall(r'(\w+)=([\dx_\-]+)', re.search(r'window=\{([^}]*)\}|$', x.rest)[0]))
  group = lambda key: int(told[1]) if (told := re.search(rf'{key}=(\d+)', x.rest)) else 1
  count = left[labels[0].index('b')] // group('batch_group_count')
  count *= left[labels[0].index('f')] // group('feature_group_count')
  count *= right[labels[1].index('o')]
  for i in map(str, range(len(labels[0]) - 2)):
    part = lambda key, i=i: window[key].split('x')[int(i)] if key in window else None
    sizes = (dims[label.index(i)] for dims, label in zip((left, right, x.types[0].dims), labels))
    count *= positions(*sizes, part)
  return 2.0 * count


def positions(base: int, window: int, out: int, part) -> int:
  """Pairs of an output and a window position that meet an element, and not padding or a hole.

  Args:
    part: 'stride', 'pad', 'lhs_dilate' or 'rhs_dilate' -> its text, None where it is not stated.
  """
  stride, spread, holes = (int(part(key) or 1) for key in ('stride', 'rhs_dilate', 'lhs_dilate'))
  low, high = map(int, (part('pad') or '0_0').split('_'))
  if (low, high, holes) == (0, 0, 1):
    return window * out
  starts = np.arange(out)[:, None] * stride - low
  at = starts + np.arange(window) * spread
  return int(np.count_nonzero((at >= 0) & (at <= (base - 1) * holes) & (at % holes == 0)))


def moved(module: hlo.Module, computation: hlo.Computation, x: hlo.Instruction) -> dict[int, float]:
  """{memory space: bytes} that an instruction reads and writes, of HBM and of the host.

  Slices of an operand are what is read of it, and an update in place is what is written.
  """
  found = {hlo.HBM: 0.0, hlo.HOST: 0.0}
  if x.op in FREE or x.op.endswith('-done') or x.op.startswith('async-'):
    return found

  def add(array: hlo.Array, share: float):
    if array.space in found:
      found[array.space] += array.held * share

  if x.op.endswith('-start'):  # The result names source and target again; one is moved.
    for array in {t.space: t for t in x.types[:2]}.values():
      add(array, min(1.0, x.types[1].held / array.held) if array.held else 0.0)
    return found
  for i, name in enumerate(x.operands):
    if (source := computation.by_name.get(name)) and len(source.types) == 1:
      add(source.types[0], read(module, computation, x, i))
  share = written(module, x)
  for i, array in enumerate(x.types):
    add(array, share[i] if i < len(share) else 1.0)
  return found


def read(module, computation, x: hlo.Instruction, i: int) -> float:
  """The share of operand i that x reads."""
  if x.op in ('dynamic-slice', 'slice', 'gather') and not i:
    source = computation.operand(x).types[0]
    return min(1.0, math.prod(x.types[0].dims) / max(1, math.prod(source.dims)))
  if x.op == 'dynamic-update-slice' and not i:
    return 0.0
  if x.op != 'fusion' or not x.called:
    return 1.0
  inner = module.computations[x.called[0]]
  parameter = inner.parameters.get(i)
  if parameter is None:
    return 1.0
  return min(1.0, sum(used(module, inner, parameter)))


def used(module, inner: hlo.Computation, source: hlo.Instruction):
  """Shares of a value that its users in a fusion read."""
  for user in inner.users[source.name]:
    if user.op == 'bitcast':
      yield from used(module, inner, user)
    elif user.op == 'tuple':
      yield 0.0
    else:
      yield read(module, inner, user, user.operands.index(source.name))


def written(module, x: hlo.Instruction) -> tuple[float, ...]:
  """The share of each result that x writes: an update's in place is the update's own."""
  if x.op == 'fusion' and x.called:
    inner = module.computations[x.called[0]]
    roots = [inner.root]
    if inner.root.op == 'tuple':
      roots = [inner.by_name[name] for name in inner.root.operands]
    return tuple(update_share(inner, root) for root in roots)
  return ()


def update_share(inner: hlo.Computation, x: hlo.Instruction) -> float:
  while x.op == 'bitcast' and inner.operand(x):
    x = inner.operand(x)
  if x.op != 'dynamic-update-slice':
    return 1.0
  part = math.prod(inner.operand(x, 1).types[0].dims)
  return part / max(1, math.prod(x.types[0].dims))
