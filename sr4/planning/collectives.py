"""Collectives of a compiled program: what they move, and over which axes of the mesh.

Bytes are those that one device sends in a ring of n, with b the bytes of its operand: an
all-gather (n - 1) b, a reduce-scatter and an all-to-all (n - 1) / n b, an all-reduce both of the
former, 2 (n - 1) / n b; a permute b, as far as the device is a source.  Between slices a device
sends what its own slice has made of it, to as many others: there the compiler has sends, with the
collective that they are named beside them.
"""

import collections
import dataclasses
import math
import re

import numpy as np

from sr4.planning import hlo

RING = {
  'all-gather': lambda n: n - 1,
  'reduce-scatter': lambda n: (n - 1) / n,
  'all-reduce': lambda n: 2 * (n - 1) / n,
  'all-to-all': lambda n: (n - 1) / n,
  'ragged-all-to-all': lambda n: (n - 1) / n,
  'collective-broadcast': lambda n: (n - 1) / n,
}
KINDS = (*RING, 'collective-permute')


@dataclasses.dataclass(frozen=True)
class Collective:
  """One instruction, once."""

  kind: str
  axes: str  # 'fsdp', 'fsdp+seq'; 'fsdp:4' is 4 of more along it; '' moves nothing
  sent: float  # bytes, of a device
  # The first group's places in the mesh; of a permute source, target, source, target, ..
  group: tuple[int, ...]


def find(module: hlo.Module, mesh) -> list[dict]:
  """All of a program, those of a kind over the same axes together, the largest first.

  Args:
    mesh: with `shape`, {axis: devices}; the program numbers devices in its order.
  Returns:
    {kind, axes, gib, count, async}: GiB that a device sends in a step, and how many there are.
  """
  total = collections.defaultdict(lambda: [0.0, 0])
  for x, computation, times, within in module.walk():
    if found := of(module, computation, x, mesh, within):
      key = found.kind, found.axes, x.op.endswith(('-start', 'send')) or starts(within)
      total[key][0] += times * found.sent / 2**30
      total[key][1] += times
  rows = [
    {'kind': kind, 'axes': axes, 'gib': gib, 'count': count, 'async': split}
    for (kind, axes, split), (gib, count) in total.items()
  ]
  return sorted(rows, key=lambda row: -row['gib'])


def starts(within) -> bool:
  """Does it run beside what follows?"""
  return any(call.op == 'async-start' for call in within)


def of(module, computation, x: hlo.Instruction, mesh, within=()) -> Collective | None:
  """What this instruction itself communicates; nothing for the end of what was begun before."""
  kind = x.op.removesuffix('-start')
  if x.op == 'send':
    return between_slices(computation, x, mesh)
  if kind not in KINDS:
    return None
  sent = sum(t.bytes for name in x.operands for t in computation.by_name[name].types)
  # A program of several slices is that of one of them.
  places = module.partitions or math.prod(mesh.shape.values())
  if kind == 'collective-permute':
    pairs = np.array(re.findall(r'\{(\d+),(\d+)\}', x.rest), int)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    if not len(pairs):
      return Collective(kind, '', 0.0, ())
    names = dict.fromkeys(name for pair in pairs for name in axes(pair, mesh).split('+'))
    return Collective(kind, '+'.join(names), sent * len(pairs) / places, tuple(pairs.ravel()))
  of_all = groups(x.rest, places)
  if kind == 'all-reduce' and scatters(module, within):
    kind = 'reduce-scatter'
  count = of_all.shape[1]
  return Collective(kind, axes(of_all[0], mesh), sent * RING[kind](count), tuple(of_all[0]))


def between_slices(computation, x: hlo.Instruction, mesh) -> Collective:
  """The sends of "{1,2}x{0:7}": of each of 8 devices of a slice to its like in another."""
  told = re.search(
    r'_xla_megascale_target="\{([\d,]+)\}x.*_xla_megascale_transfer_type="(\w+)"', x.rest
  )
  kind = told and told[2].lower().replace('_', '-')
  if kind not in RING:
    raise hlo.HloError(f'{x.name} sends for {kind}, which is no collective that is known')
  count, places = len(told[1].split(',')), math.prod(mesh.shape.values())
  group = tuple(range(0, places, places // count))
  sent = computation.operand(x).types[0].bytes * RING[kind](count)
  return Collective(kind, axes(group, mesh), sent, group)


def scatters(module: hlo.Module, within) -> bool:
  """An all-reduce fused with taking this device's part of it: a TPU's reduce-scatter."""
  if not within or within[-1].op != 'fusion':
    return False
  return module.computations[within[-1].called[0]].root.op == 'dynamic-slice'


def groups(text: str, places: int) -> np.ndarray:
  """[groups, members] of device places, from any of the forms that HLO has.

  {{0,1},{2,3}}; [4,2]<=[2,4]T(1,0), an iota; mesh['a'=4,'b'=2] {'b'}, axes of a mesh of the
  compiler's own, also parts of one: {'a':(2)2}, a part of size 2 inside a part of size 2.
  """
  told = re.search(
    r'replica_groups=(\{\{.*?\}\}|\{\}|\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?|mesh\[.*?\})', text
  )
  if not told:
    raise hlo.HloError(f'no replica_groups that are known in {text[:160]!r}')
  form = told[1]
  if form == '{}':
    return np.arange(places)[None]
  if form.startswith('{'):
    return np.array([row.split(',') for row in re.findall(r'\{([\d,]+)\}', form)], int)
  if form.startswith('mesh'):
    return mesh_groups(form)
  return iota(form)


def iota(form: str) -> np.ndarray:
  """[4,2]<=[2,4]T(1,0): 0, 1, .. in the second shape, transposed, in the first."""
  shape, dims, order = re.fullmatch(r'\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', form).groups()
  numbers = lambda part: [int(n) for n in part.split(',')]
  found = np.arange(math.prod(numbers(dims))).reshape(numbers(dims))
  if order:
    found = found.transpose(numbers(order))
  return found.reshape(numbers(shape))


def mesh_groups(form: str) -> np.ndarray:
  if 'device_ids' in form:
    raise hlo.HloError(f'the devices of {form!r} are in an order of their own')
  sizes = [(name, int(n)) for name, n in re.findall(r"'([^']*)'=(\d+)", form)]
  # Axes that are used in part are split in three: before the part, the part, after it.
  parts = {
    name: (int(before), int(part))
    for name, before, part in re.findall(r"'([^']*)':\((\d+)\)(\d+)", form)
  }
  chosen = re.findall(r"'([^']*)'", form[form.rindex('{') :])
  shape, inside = [], {}
  for name, n in sizes:
    before, part = parts.get(name, (1, n))
    inside[name] = len(shape) + 1
    shape += [before, part, n // before // part]
  grouped = [inside[name] for name in chosen]
  rest = [i for i in range(len(shape)) if i not in grouped]
  members = math.prod(shape[i] for i in grouped)
  places = np.arange(math.prod(shape)).reshape(shape)
  return places.transpose(rest + grouped).reshape(-1, members)


def axes(group, mesh) -> str:
  """The axes along which the members of a group differ, such as 'fsdp+seq'."""
  at = np.array(np.unravel_index(group, tuple(mesh.shape.values())))
  extents = [len(set(row)) for row in at]
  names = [
    axis if extent == size else f'{axis}:{extent}'
    for axis, size, extent in zip(mesh.shape, mesh.shape.values(), extents)
    if extent > 1
  ]
  return '+'.join(names)
