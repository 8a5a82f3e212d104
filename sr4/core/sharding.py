"""Mesh axes, and every activation layout in one place.

Axes are Explicit: a layout is part of an array's type, `jax.reshard` moves, and what is not stated
is an error.  An axis that is not used has size 1; there is one code path.
"""

import contextlib
import dataclasses
import functools
import math

import jax
from jax.experimental import mesh_utils
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from sr4.core import errors

AXES = ('data', 'fsdp', 'seq', 'tensor')  # slices | parameters and batch | tokens | heads, MLP
DP = ('data', 'fsdp')

ROWS = P(DP)  # b ...: anything with a batch axis and nothing else split
KEYS = P(DP, None, 'tensor', None)  # b r n k: all tokens of a row, for queries that `seq` splits
WHOLE = P(DP, None, None)  # b s d: the tokens of a row on each device
FSDP = ('fsdp', 'seq')  # one side of a weight, at rest; collected for use


@dataclasses.dataclass(frozen=True)
class Layout:
  """Where a stream of tokens lies, and how the weights that it meets are split at rest."""

  tokens: P  # b s d
  heads: P  # b s n k
  fsdp: str | tuple[str, ...]  # a weight's width: collected for use
  split: str | tuple[str, ...]  # a weight's heads or MLP: each device uses its own


# Video: its tokens are split, and each device needs all of a weight that `tensor` does not split.
LONG = Layout(P(DP, 'seq', None), P(DP, 'seq', 'tensor', None), FSDP, 'tensor')


def short(heads: int) -> Layout:
  """Audio and text: whole on each device, heads and MLP over `seq` too where the heads divide.

  Half of the weights have a hundredth of the tokens: moving these is cheaper than moving those.
  """
  if heads % axis_size('tensor', 'seq'):
    return Layout(WHOLE, P(DP, None, 'tensor', None), FSDP, 'tensor')
  return Layout(WHOLE, P(DP, None, ('tensor', 'seq'), None), 'fsdp', ('tensor', 'seq'))


REPLICATED = P()


def make_mesh(devices=None, **sizes: int) -> jax.sharding.Mesh:
  """A mesh over these devices, or all; a process alone may leave some of its own out.

  Raises:
    UserError: as of `mesh_shape`.
  """
  alone = devices is None and jax.process_count() == 1
  devices = jax.devices() if devices is None else list(devices)
  slices = len({getattr(device, 'slice_index', 0) for device in devices})
  shape = mesh_shape(len(devices), slices, spare=alone, **sizes)
  return jax.sharding.Mesh(
    placed(tuple(shape.values()), slices, devices[: math.prod(shape.values())]),
    AXES,
    axis_types=(jax.sharding.AxisType.Explicit,) * len(AXES),
  )


def mesh_shape(devices: int, slices: int = 1, spare: bool = False, **sizes: int) -> dict[str, int]:
  """Devices along each axis.

  Args:
    spare: may devices be left out?
    sizes: devices along an axis, 1 where it is not named; one of `data` and `fsdp` may be -1 and
      takes what is left, `fsdp` where neither is named.
  Raises:
    UserError: an unknown axis, sizes that do not divide the devices or leave some out, or slices
      that would not lie along `data`, the only axis that may cross the network between them.
  """
  unknown = set(sizes) - set(AXES)
  if unknown:
    raise errors.UserError(f'mesh axes {sorted(unknown)} are not among {AXES}')
  shape = {axis: 1 for axis in AXES} | {'fsdp': -1} | sizes
  rest = [axis for axis in DP if shape[axis] == -1]
  if bad := {axis: n for axis, n in shape.items() if n < 1 and axis not in rest}:
    raise errors.UserError(f'mesh {bad}: an axis has 1 device or more; data or fsdp may be -1')
  if len(rest) > 1:
    raise errors.UserError('mesh: data and fsdp are both -1; give one of them a size')
  named = math.prod(n for n in shape.values() if n > 0)
  if devices % named:
    raise errors.UserError(
      f'mesh {sizes} takes {named} devices at a time, which does not divide the '
      f'{devices} there are; choose sizes whose product divides {devices}'
    )
  for axis in rest:
    shape[axis] = devices // named
  if not rest and named < devices and not spare:
    raise errors.UserError(
      f'mesh {shape} takes {named} of the {devices} devices, and a pod leaves none out; let '
      f'data=-1 take the rest, or make an axis {devices // named} times as long'
    )
  if shape['data'] % slices:
    raise errors.UserError(
      f'mesh.data={shape["data"]} must be a multiple of the {slices} slices; all other axes stay '
      'in one'
    )
  return shape


def placed(shape: tuple[int, ...], slices: int, devices):
  """The devices as an array of this shape, neighbours in the mesh near each other in the slice."""
  if slices == 1:
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
  return mesh_utils.create_hybrid_device_mesh(
    (shape[0] // slices, *shape[1:]),
    (slices, *(1 for _ in shape[1:])),
    devices,
    allow_split_physical_axes=True,
  )


def axis_size(*axes: str) -> int:
  """Product of the sizes of these axes in the mesh that is set."""
  shape = dict(jax.sharding.get_abstract_mesh().shape)
  return math.prod(shape.get(axis, 1) for axis in axes)


def rows(tree):
  """Host arrays onto the mesh, batch axis over DP; in a pod each host gives the rows of `parts`."""
  layout, (mine, of) = jax.NamedSharding(jax.sharding.get_mesh(), ROWS), parts()

  def place(x):
    size = len(x) // len(mine)  # rows of a part

    def piece(index):  # Rows of the whole batch that a device holds; x has those of `mine` alone.
      asked = range(size * of)[index[0]]
      start = mine.index(asked.start // size) * size + asked.start % size
      return x[start : start + len(asked)]

    return jax.make_array_from_callback((size * of, *x.shape[1:]), layout, piece)

  return jax.tree.map(place, tree)


def parts() -> tuple[tuple[int, ...], int]:
  """(which parts of a batch's rows this host's devices hold, of how many equal parts).

  Hosts that `seq` or `tensor` spans hold the same, and a host's parts need not be neighbours: a
  mesh follows the wires of a slice.
  """
  if meshless():
    return (0,), 1
  return parts_of(jax.sharding.get_mesh(), jax.local_devices()[0].process_index)


@functools.lru_cache
def parts_of(mesh: jax.sharding.Mesh, host: int) -> tuple[tuple[int, ...], int]:
  """`parts` of one host on a mesh."""
  of = mesh.shape['data'] * mesh.shape['fsdp']
  placed = jax.NamedSharding(mesh, ROWS).devices_indices_map((of,))
  held = {at.start or 0 for device, (at,) in placed.items() if device.process_index == host}
  return ((0,), 1) if len(held) == of else (tuple(sorted(held)), of)


# Where no mesh is set, as when a shape is asked or a model is exported, nothing is laid out.


def meshless() -> bool:
  return jax.sharding.get_abstract_mesh().empty


def laid(x: jax.Array, layout: P) -> jax.Array:
  """x in this layout."""
  return x if meshless() else jax.reshard(x, layout)


def mapped(f, layouts):
  """f on each device, on its own part; its results in these layouts."""
  # Kernels do not say over which axes their results vary, so nobody checks it.
  return f if meshless() else jax.shard_map(f, out_specs=layouts, check_vma=False)


def over_rows(x: jax.Array, rows: int) -> jax.Array:
  """The same for each row: [...] -> [b ...]."""
  return jnp.broadcast_to(x, (rows, *jnp.shape(x)), out_sharding=at_rest(*ROWS))


def on_rows(f):
  """f, for work within rows (codecs, patches); what is inside, the compiler lays out."""
  return f if meshless() else jax.sharding.auto_axes(f, out_sharding=ROWS)


def at_rest(*spec) -> P | None:
  """A layout that is stated where an array is made."""
  return None if meshless() else P(*spec)


def constrained(x: jax.Array, spec: P) -> jax.Array:
  """x laid out so, for what runs inside `on_rows`."""
  return x if meshless() else jax.lax.with_sharding_constraint(x, spec)


def spread(x: jax.Array) -> jax.Array:
  """Frames [b t h w c] with their height or width over the devices that share the batch's rows.

  For what runs inside `on_rows`: convolutions then exchange borders.  The side is that which can be
  halved more often without an uneven part, as codecs do; where none divides, they stay as they are.
  """
  for axes in (('seq', 'tensor'), ('seq',), ('tensor',)):
    ways = axis_size(*axes)
    if x.ndim == 5 and ways > 1:
      high, wide = (halvings(side, ways) for side in x.shape[2:4])
      if max(high, wide) >= 0:
        return constrained(x, P(DP, None, axes) if high >= wide else P(DP, None, None, axes))
  return x


def halvings(side: int, ways: int, most: int = 3) -> int:
  """How often a side in so many equal parts can be halved, up to `most`; -1: there are none."""
  return max((n for n in range(most + 1) if side % (ways << n) == 0), default=-1)


def of(x: jax.Array) -> P | None:
  """How an array is split."""
  return None if meshless() else jax.typeof(x).sharding.spec


def gathered(w: jax.Array, x: jax.Array) -> jax.Array:
  """A weight with its `fsdp` shards collected, for use with x.

  Its gradient is summed where x is split: reduce-scattered over the axes that were collected, and
  then, small, over `data`.  Where x is the same on all of an axis, so is the gradient.
  """
  if meshless():
    return w
  spec, used = of(w), axes_of(x)
  side = next((i for i, axes in enumerate(spec) if collected(axes)), None)
  if side is None:
    return w
  names = tuple(axis for axis in FSDP if axis in spec[side] and axis in used)
  at = lambda axes, *reduced: P(*spec[:side], axes, *spec[side + 1 :], reduced=used & {*reduced})
  if axis_size(*names) == 1:
    return jax.reshard(w, at(None))
  collect = lambda w: jax.lax.all_gather(w, names, axis=side, tiled=True, to='reduced')
  return jax.shard_map(collect, out_specs=at(None, *DP, *names))(jax.reshard(w, at(names, 'data')))


def near(x: jax.Array) -> jax.Array:
  """An array that may lie in the host's memory, on the device."""
  if jax.typeof(x).memory_space == jax.memory.Space.Host:
    return jax.device_put(x, jax.memory.Space.Device)
  return x


def axes_of(x: jax.Array) -> set[str]:
  """The mesh axes over which an array is split."""
  return {axis for axes in of(x) if axes for axis in ((axes,) if isinstance(axes, str) else axes)}


def collected(axes) -> bool:
  """Is a side of a weight, split over these axes, collected for use?"""
  return axes is not None and 'fsdp' in axes


@contextlib.contextmanager
def default_mesh():
  """The mesh that is set, or one over all devices."""
  if meshless():
    with jax.set_mesh(make_mesh()):
      yield
  else:
    yield
