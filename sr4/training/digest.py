"""A digest of an array: equal for any layout, on any number of hosts, and for its chunks on disk.

Two sums mod 2^32 of the bits of all elements, each weighted by odd numbers of its place.  An odd
weight is invertible mod 2^32, so no change within one element goes unseen.
"""

import collections
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore

from sr4.core.sharding import P

AHEAD = 4  # chunks being read
BLOCK = 1 << 20  # elements that are summed at once


def of(flat: dict) -> dict[str, str]:
  """{name: digest}; computed where the arrays lie."""
  return {name: hexadecimal(jax.device_get(_of_whole(x))) for name, x in flat.items()}


def at_rest(arrays: str, name: str) -> tuple[str, int]:
  """(digest, bytes) of an array on disk, of which a few chunks are in memory.

  Args:
    arrays: the folder that Orbax wrote.
  Raises:
    OSError, ValueError: it cannot be read.
  """
  x = stored(arrays, name)
  total, ahead = np.zeros(2, np.uint32), collections.deque()

  def add():
    offsets, read = ahead.popleft()
    total[:] += np.asarray(_of_part(read.result(), offsets, x.shape))

  for offsets, part in chunks(x):
    ahead.append((offsets, x[part].read()))
    if len(ahead) > AHEAD:
      add()
  while ahead:
    add()
  return hexadecimal(total), x.size * x.dtype.numpy_dtype.itemsize


def stored(arrays: str, name: str, context=None) -> tensorstore.TensorStore:
  """An array of a checkpoint, not read yet.  context: what tensorstore may use, all by default."""
  base = {'driver': 'file', 'path': f'{arrays}/'}
  spec = {'driver': 'zarr', 'kvstore': {'driver': 'ocdbt', 'base': base, 'path': f'{name}/'}}
  return tensorstore.open(spec, open=True, read=True, context=context).result()


def chunks(x: tensorstore.TensorStore):
  """(offsets, slices) of each chunk, as they are stored."""
  starts = [range(0, n, c) for n, c in zip(x.shape, x.chunk_layout.read_chunk.shape or ())]
  for offsets in itertools.product(*starts):
    stops = (min(r.start + at + r.step, r.stop) for r, at in zip(starts, offsets))
    yield (
      np.asarray(offsets, np.uint32),
      tuple(slice(at, stop) for at, stop in zip(offsets, stops)),
    )


def of_run(x: np.ndarray, start: int) -> np.ndarray:
  """The sums of a run of an array's elements in their order (C), from number `start` on.

  In blocks of one size, so that one program does for all; zeros at the end add nothing.
  """
  flat, total = x.reshape(-1), np.zeros(2, np.uint32)
  for at in range(0, len(flat), BLOCK):
    part = flat[at : at + BLOCK]
    part = part if len(part) == BLOCK else np.pad(part, (0, BLOCK - len(part)))
    total += np.asarray(_of_block(part, np.uint32((start + at) % 2**32)))
  return total


def hexadecimal(pair) -> str:
  return f'{int(pair[0]):08x}{int(pair[1]):08x}'


def sums(x, offsets, shape: tuple[int, ...]) -> jax.Array:
  """uint32 [2] of a part of an array.  offsets: where it lies in the whole, of that shape."""
  unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
  bits = x if x.dtype == bool else jax.lax.bitcast_convert_type(x, unsigned)
  bits = bits.astype(jnp.uint32)
  place = jnp.zeros(x.shape, jnp.uint32)
  for axis, size in enumerate(shape):
    here = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) + offsets[axis]
    place = place * jnp.uint32(size) + here
  mixed = (place ^ (place >> 15)) * jnp.uint32(0x2C1B3C6D)
  weights = (2 * place + 1, 2 * (mixed ^ (mixed >> 12)) + 1)
  return jnp.stack([jnp.sum(bits * w, dtype=jnp.uint32) for w in weights])


@jax.jit  # Of each array, not of all: the same shapes come four times in a State.
def _of_whole(x: jax.Array) -> jax.Array:
  zeros = (jnp.uint32(0),) * x.ndim
  return jax.sharding.auto_axes(lambda x: sums(x, zeros, x.shape), out_sharding=P())(x)


_of_part = functools.partial(jax.jit, static_argnums=2)(sums)
_of_block = jax.jit(lambda x, start: sums(x, (start,), x.shape))
