"""Foreign weights by name, both ways: one table for each model and release.

A table is a function (name, shape of ours) -> `Tensor`, the foreign one that holds the same
numbers.  What either side has and the other lacks is one error, with all names.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
import dataclasses
import fnmatch
import math
import re

import jax
import numpy as np

from sr4.convert import files
from sr4.core import errors
from sr4.core import tree


class ConvertError(errors.UserError):
  """A file of another model, or one that is broken or incomplete."""


@dataclasses.dataclass(frozen=True)
class Tensor:
  """ours = foreign.transpose(axes).reshape(shape of ours)."""

  name: str
  shape: tuple[int, ...]
  axes: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Stack:
  """Blocks that we hold as one array: ours[i] is what tensors[i] says."""

  tensors: tuple[Tensor, ...]


FLOATS = ('F64', 'F32', 'F16', 'BF16')  # What is narrower has scales, of which we know nothing.
Table = Callable[[str, tuple[int, ...]], Tensor | Stack]


def load(like, table: Table, source: files.Source, unused: Iterable[str] = ()):
  """The tree `like` (of arrays, or tree.abstract of them) with the numbers of a source.

  Each tensor is read by itself, for each device's part, so the host holds one at a time.

  Args:
    unused: patterns (fnmatch) of names in the source that are known not to be weights.
  Raises:
    ConvertError: names are missing or left over, or shapes differ, or numbers are no floats; it
      lists them.  Or numbers that are looked at are not finite.
  """
  flat = tree.to_flat(like)
  wanted = {name: table(name, x.shape) for name, x in flat.items()}
  check([tensor for found in wanted.values() for tensor in parts(found)], source, unused)

  def read(name: str, like):
    stacked = isinstance(wanted[name], Stack)
    shape = like.shape[stacked:]
    ours = lambda tensor: numbers(source, tensor.name).transpose(tensor.axes).reshape(shape)

    def part(at):
      found = parts(wanted[name])[at[0]] if stacked else parts(wanted[name])
      at = at[stacked:]
      x = np.empty(
        (len(found), *(len(range(*s.indices(n))) for s, n in zip(at, shape))), like.dtype
      )
      for i, tensor in enumerate(found):
        x[i] = ours(tensor)[at]
      return x if stacked else x[0]

    return jax.make_array_from_callback(like.shape, like.sharding, part)

  return tree.from_flat(like, {name: read(name, x) for name, x in flat.items()})


def numbers(source: files.Source, name: str, looked_at: int = 4096) -> np.ndarray:
  """A tensor; ConvertError where one of the numbers that are looked at is none."""
  x = source.read(name)
  if not np.isfinite(x.reshape(-1)[:: max(1, x.size // looked_at)].astype(np.float32)).all():
    raise ConvertError(f'{source.path}: {name} has numbers that are not finite; fetch it again')
  return x


def parts(found: Tensor | Stack) -> tuple[Tensor, ...]:
  return found.tensors if isinstance(found, Stack) else (found,)


def check(wanted: Iterable[Tensor], source: files.Source, unused: Iterable[str]):
  there = source.shapes()
  wanted = {tensor.name: tensor.shape for tensor in wanted}
  ignored = lambda name: any(fnmatch.fnmatch(name, pattern) for pattern in unused)
  told = {
    'missing': sorted(wanted.keys() - there.keys()),
    'left over': sorted(name for name in there.keys() - wanted.keys() if not ignored(name)),
    'of another shape': [
      f'{name} {list(there[name])} for {list(shape)}'
      for name, shape in wanted.items()
      if name in there and there[name] != shape
    ],
    'of no float': [
      f'{name} {kind}'
      for name, kind in source.dtypes().items()
      if name in wanted and kind not in FLOATS
    ],
  }
  if any(told.values()):
    parts = [f'{len(names)} {what}: {some(names)}' for what, names in told.items() if names]
    raise ConvertError(
      f'{source.path} has not the weights of this model ({"; ".join(parts)}); '
      "give the model's own file, or the config that it was made with"
    )


def some(names: list[str], most: int = 8) -> str:
  rest = f' and {len(names) - most} more' if len(names) > most else ''
  return ', '.join(names[:most]) + rest


def export(model, table: Table) -> dict[str, np.ndarray]:
  """{foreign name: array} of a model, the inverse of `load`."""
  found = {}
  for name, x in tree.to_flat(model).items():
    foreign = table(name, x.shape)
    rows = np.asarray(x) if isinstance(foreign, Stack) else [np.asarray(x)]
    for row, tensor in zip(rows, parts(foreign)):
      found[tensor.name] = given(tensor, row).copy(order='C')
  return found


def given(tensor: Tensor, ours: np.ndarray) -> np.ndarray:
  """The foreign tensor of an array of ours, as a view of it where that can be."""
  moved = ours.reshape([tensor.shape[axis] for axis in tensor.axes])
  back = [tensor.axes.index(axis) for axis in range(moved.ndim)]
  return moved.transpose(back)


@dataclasses.dataclass(frozen=True)
class Names:
  """The table of convolutional models: names by prefixes, kernels [*window in out] <-> [out in *].

  Args:
    prefixes: {ours: foreign} of whole words of a name, from its beginning; the longest is taken.
    words: {ours: foreign} of each word after a prefix.
    windows: {pattern of ours: axes of its foreign window}; where there is none, all of ours.
    vectors: {pattern of ours: axes of size 1 after the foreign vector's one}.
  """

  prefixes: Mapping[str, str]
  words: Mapping[str, str]
  windows: Mapping[str, int] = dataclasses.field(default_factory=dict)
  vectors: Mapping[str, int] = dataclasses.field(default_factory=dict)

  def __call__(self, name: str, shape: tuple[int, ...]) -> Tensor:
    foreign = self.name(name)
    if name.endswith('.kernel'):
      *window, inputs, outputs = shape
      axes = matched(self.windows, name, len(window))
      window = window[len(window) - axes :]
      if math.prod(shape) != math.prod(window) * inputs * outputs:
        raise ValueError(f'{name} {shape} has no window of {axes} axes')
      return Tensor(foreign, (outputs, inputs, *window), (*range(2, 2 + axes), 1, 0))
    ones = matched(self.vectors, name, 0)
    return Tensor(foreign, (*shape, *(1,) * ones), tuple(range(len(shape) + ones)))

  def name(self, ours: str) -> str:
    parts = ours.split('.')
    lengths = range(len(parts), 0, -1)
    longest = next((n for n in lengths if '.'.join(parts[:n]) in self.prefixes), 0)
    prefix = self.prefixes.get('.'.join(parts[:longest]), '')
    rest = [self.words.get(word, word) for word in parts[longest:]]
    return '.'.join(filter(None, [prefix, *rest]))


def matched(rules: Mapping[str, int], name: str, default: int) -> int:
  return next((value for pattern, value in rules.items() if re.search(pattern, name)), default)
