"""The text of a compiled program (HLO) as computations of instructions, in the order they run.

Only what planning asks of it: types, operands, what calls what, and how often a loop runs.
"""

import collections
import dataclasses
import functools
import math
import re

# Others end in their number.
BITS = {'token': 0, 'pred': 8, 'bf16': 16, 'tf32': 32, 'c64': 64, 'c128': 128}
HBM, VMEM, HOST = 0, 1, 5  # Memory spaces of a TPU, as S(n) in a layout.

ARRAY = re.compile(r'\b([a-z]\w*)\[([\d,]*)\](?:\{([^{}]*)\})?')
ASSIGN = re.compile(r'^\s*(ROOT )?%?([\w.\-]+) = (.*)$', re.DOTALL)
HEADER = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$')
CALLED = re.compile(
  r'\b(calls|body|to_apply|called_computations|branch_computations|true_computation|'
  r'false_computation)=(\{[^}]*\}|%?[\w.\-]+)'
)


class HloError(ValueError):
  """Text that is not understood; figures from the rest of it would be wrong."""


@dataclasses.dataclass(frozen=True)
class Array:
  """A type.  `layout` has dimensions from the fastest to the slowest, `tile` is of the fastest."""

  dtype: str
  dims: tuple[int, ...]
  layout: tuple[int, ...] = ()
  tile: tuple[int, ...] = ()
  space: int = HBM

  @property
  def bits(self) -> int:
    told = re.fullmatch(r'[a-z]+?(\d+)(?:e\d.*)?', self.dtype)  # bf16, s32, f8e4m3fn, u4
    if self.dtype not in BITS and not told:
      raise HloError(f'the size of an element of {self.dtype!r} is not known')
    return BITS[self.dtype] if self.dtype in BITS else int(told[1])

  @property
  def bytes(self) -> float:
    return math.prod(self.dims) * self.bits / 8

  @property
  def held(self) -> float:
    """Bytes in memory: the fastest dimensions are padded to whole tiles."""
    dims = [self.dims[i] for i in self.layout or reversed(range(len(self.dims)))]
    for i, unit in enumerate(reversed(self.tile[-len(dims) :] if dims else ())):
      dims[i] = -(-dims[i] // unit) * unit
    return math.prod(dims) * self.bits / 8


@dataclasses.dataclass(frozen=True, eq=False)
class Instruction:
  name: str
  types: tuple[Array, ...]  # of the result, a tuple's one after another
  op: str
  operands: tuple[str, ...]
  rest: str  # the text after the operands
  literal: str  # the text of the operands: a constant's value, a parameter's number
  root: bool

  @functools.cached_property
  def called(self) -> tuple[str, ...]:
    """Computations that run as part of this one; a reduction's arithmetic is not among them."""
    found = CALLED.findall(re.split(r', (?:metadata|backend_config)=', self.rest, maxsplit=1)[0])
    keep = [names for key, names in found if key != 'to_apply' or self.op == 'call']
    return tuple(re.findall(r'[\w.\-]+', ' '.join(keep)))

  def number(self, key: str) -> int:
    """The value of `key=3`."""
    return int(re.search(rf'\b{key}=(\d+)', self.rest)[1])


class Computation:
  """Instructions by name, in order."""

  def __init__(self, name: str, instructions):
    self.name = name
    self.by_name = {x.name: x for x in instructions}

  def __iter__(self):
    return iter(self.by_name.values())

  @functools.cached_property
  def root(self) -> Instruction:
    return next((x for x in self if x.root), None) or next(reversed(self.by_name.values()))

  @functools.cached_property
  def users(self) -> dict[str, list[Instruction]]:
    found = collections.defaultdict(list)
    for x in self:
      for name in dict.fromkeys(x.operands):
        found[name].append(x)
    return found

  @functools.cached_property
  def parameters(self) -> dict[int, Instruction]:
    return {int(x.literal): x for x in self if x.op == 'parameter'}

  def operand(self, x: Instruction, i: int = 0) -> Instruction | None:
    return self.by_name.get(x.operands[i]) if i < len(x.operands) else None


@dataclasses.dataclass(frozen=True)
class Module:
  computations: dict[str, Computation]
  entry: Computation
  partitions: int = 0  # devices that it is of, those of one slice; 0: it does not say

  def body(self, loop: Instruction) -> Computation:
    return self.computations[re.search(r'\bbody=%?([\w.\-]+)', loop.rest)[1]]

  def trips(self, computation: Computation, loop: Instruction) -> int:
    """How often a `while` runs: what the compiler says, or from where its counter begins to where
    it ends, in ones, as jax.lax.scan and fori_loop count.

    A counter begins above 0 where the compiler has taken the first steps out of the loop.
    """
    if told := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest):
      return int(told[1])
    condition = self.computations[re.search(r'\bcondition=%?([\w.\-]+)', loop.rest)[1]]
    # The comparison, or the fusion around it, has one constant among its operands.
    compared = [condition.by_name[name] for name in condition.root.operands]
    bounds = [int(x.literal) for x in compared if x.op == 'constant']
    if len(bounds) != 1:
      raise HloError(f'{loop.name}: its condition compares with {len(bounds)} constants, not one')
    counter = next(x for x in compared if x.op != 'constant')
    at, given = counter.number('index'), computation.operand(loop)
    first = computation.operand(given, at) if given.op == 'tuple' else None
    while first is not None and first.op in ('copy', 'bitcast'):
      first = computation.operand(first)
    if first is None or first.op != 'constant':
      raise HloError(f'{loop.name}: its counter begins at {first and first.name}, not a constant')
    return bounds[0] - int(first.literal)

  def walk(self, computation=None, times: int = 1, within: tuple[Instruction, ...] = ()):
    """(instruction, its computation, how often it runs, the calls it lies in), all of a program.

    Every branch of a conditional is walked.
    """
    computation = computation or self.entry
    for x in computation:
      yield x, computation, times, within
      inside = times * self.trips(computation, x) if x.op == 'while' else times
      if x.op in ('async-update', 'async-done'):
        continue  # They name what their async-start has called.
      for name in x.called:
        yield from self.walk(self.computations[name], inside, (*within, x))


def parse(text: str) -> Module:
  """Raises HloError where the text has no entry computation."""
  computations, entry, name, lines = {}, None, None, []
  for line in text.splitlines():
    if name is None:
      if told := HEADER.match(line):
        name, lines = told[2], []
        entry = name if told[1] else entry
    elif re.match(r'\}($|, execution_thread)', line):
      computations[name] = Computation(name, map(instruction, lines))
      name = None
    elif ASSIGN.match(line):
      lines.append(line)
    else:  # Attributes of kernels go on over several lines.
      lines[-1] += line
  if entry is None:
    raise HloError('the text has no ENTRY computation')
  partitions = re.search(r'^HloModule .*\bnum_partitions=(\d+)', text)
  return Module(computations, computations[entry], int(partitions[1]) if partitions else 0)


def instruction(line: str) -> Instruction:
  root, name, text = ASSIGN.match(line).groups()
  end = closing(text, 0) if text.startswith('(') else text.index(' ')
  op, _, _ = text[end:].strip().partition('(')
  start = text.index('(', end)
  stop = closing(text, start)
  literal = text[start + 1 : stop - 1]
  operands = tuple(re.findall(r'%([\w.\-]+)', literal))
  return Instruction(name, arrays(text[:end]), op, operands, text[stop:], literal, bool(root))


def closing(text: str, start: int) -> int:
  """Where the bracket that opens at `start` is closed, one after it."""
  depth = 0
  for told in re.finditer(r'[()]', text[start:]):
    depth += 1 if told[0] == '(' else -1
    if not depth:
      return start + told.end()
  raise HloError(f'a bracket is not closed: {text[start : start + 80]!r}')


def arrays(text: str) -> tuple[Array, ...]:
  """All array types in a type, a tuple's in order."""
  return tuple(array(*told.groups()) for told in ARRAY.finditer(text))


def array(dtype: str, dims: str, layout: str | None) -> Array:
  numbers = lambda part: tuple(map(int, re.findall(r'\d+', part)))
  order, _, more = (layout or '').partition(':')
  tile, space = re.search(r'T\(([\d,]+)\)', more), re.search(r'S\((\d+)\)', more)
  return Array(
    dtype,
    numbers(dims),
    numbers(order),
    numbers(tile[1]) if tile else (),
    int(space[1]) if space else HBM,
  )
