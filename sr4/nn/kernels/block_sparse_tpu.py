"""Attention of tiles to chosen tiles, on TPU: a kernel of nn/kernels/block_sparse.py.

One side stays: all keys of a head lie in VMEM while tiles of queries pass, each of which reads its
own tiles of keys by their numbers.  Backward the queries stay and tiles of keys pass, each with the
tiles of queries that chose it: one pass gives dq, dk and dv, and computes the logits once.

What does not fit into VMEM stays a part at a time, and each part goes on from what those before it
have left: softmax from an output and its log-sum-exp, gradients from their sums.

Shapes: H rows times heads, i tiles of queries, j of keys, c parts of the side that stays.  A part
ends with a spare tile, which weighs nothing and fills up the last group of a list.
"""

import functools
import math

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from sr4.nn.kernels import chosen as chosen_lib
from sr4.nn.kernels.chosen import flat
from sr4.nn.kernels.chosen import tiled

LANES = 128
# The logit of a key that is not there: a power of two, so that scaling it is exact.
NONE = -(2.0**100)
LOG2E = math.log2(math.e)
GROUPS = {64: (16, 16), 128: (16, 16), 256: (12, 8)}  # tiles at once, forward and backward, by size
STAYS = 40 << 20  # bytes of VMEM for the side that stays: chips but v4 have 64 MiB or more
ROOM = 16 << 20  # for all else
STEP = 4  # tiles that pass at once, at most


def fits(q, mask) -> bool:
  """Does the head fill the lanes, and is the tile of a known size?"""
  return q.shape[-1] % LANES == 0 and q.shape[1] // mask.shape[2] in GROUPS


def forward(q, k, v, valid, mask, reads: float, interpret=False, stays=STAYS):
  """(output as q, its log-sum-exp to base 2: fp32 [H i 1 tile])."""
  like, (i, j), size = q, mask.shape[2:], k.shape[1] // mask.shape[3]
  part = part_of(j, stays // bytes_of(2, size, k))
  bias = jnp.where(valid, 0.0, NONE).reshape(len(valid), j, 1, size)
  bias = jnp.repeat(bias, q.shape[2], 0)
  q, k, v = tiled(q, i), tiled(k, j), tiled(v, j)
  chosen, spans = listed(mask, part)
  kernel = functools.partial(forward_kernel, group=GROUPS[size][0])
  cost = chosen_lib.cost(2, len(q) * i * reads / len(spans[0]), size, q.shape[3])

  def run(left, part):
    *span, k, v, bias = part
    numbers, passes, stays = (*span, chosen), (q, *left), (k, v, bias)
    return tuple(sweep('forward', kernel, cost, numbers, passes, stays, left, (), interpret)), None

  none = jnp.zeros(q.shape, jnp.float32), jnp.full((*q.shape[:2], 1, q.shape[2]), NONE)
  parts = *spans, parted(k, part), parted(v, part), parted(bias, part, NONE)
  (out, lse), _ = lax.scan(run, none, parts)
  return flat(out, like), lse


def forward_kernel(first, start, stop, chosen, q, o0, lse0, k, v, bias, o, lse, *, group):
  """A few tiles of queries, one after another, each over its keys, a group at a time.

  Args:
    first, start, stop, chosen: the numbers of `sweep`, in scalar memory.
    q, o0, lse0: [tiles ...] that pass, with what the parts before have left; k, v, bias: that stay.
    o, lse: what is left now.
  """
  unit = LOG2E * q.shape[-1] ** -0.5

  def one(at, _):
    read = reader(first, start, stop, chosen, at, group, spare=k.shape[0] - 1)

    def step(n, carry):
      top, total, out = carry
      tiles, filled = read(n)
      s = [dot(q[at], k[t], 1, 1) + bias[f] for t, f in zip(tiles, filled)]
      most = jnp.max(functools.reduce(jnp.maximum, s), 1, keepdims=True)
      new = jnp.maximum(top, unit * most)
      old, p = jnp.exp2(top - new), [jnp.exp2(unit * x - new) for x in s]
      parts = (dot(x.astype(v.dtype), v[t], 1, 0) for t, x in zip(tiles, p))
      return new, total * old + sum(p), out * old + sum(parts)

    # The sum of the weights is kept in the lanes, and added up once.
    lane = lax.broadcasted_iota(jnp.int32, (q.shape[1], k.shape[1]), 1)
    begin = column(lse0[at]), jnp.where(lane == 0, 1.0, 0.0), o0[at]
    top, total, out = lax.fori_loop(0, groups(start, stop, at, group), step, begin)
    total = jnp.sum(total, 1, keepdims=True)
    o[at] = out / total
    lse[at] = row(top + jnp.log2(total))
    return 0

  lax.fori_loop(0, q.shape[0], one, 0)


def backward(q, k, v, valid, mask, out, lse, grad, reads: float, interpret=False, stays=STAYS):
  """(dq, dk, dv) as q, k, v."""
  likes, (i, j), size = (q, k, v), mask.shape[2:], q.shape[1] // mask.shape[2]
  part = part_of(i, stays // (bytes_of(2, size, q) + 4 * q.shape[-1] * max(size, LANES)))
  delta = jnp.sum(out.astype(jnp.float32) * grad.astype(jnp.float32), -1)
  delta = tiled(delta[..., None], i).swapaxes(2, 3)
  k, v = (jnp.where(valid[..., None, None], x, 0) for x in (k, v))
  q, grad, k, v = tiled(q, i), tiled(grad, i), tiled(k, j), tiled(v, j)
  chosen, spans = listed(jnp.swapaxes(mask, 2, 3), part)
  kernel = functools.partial(backward_kernel, group=GROUPS[size][1])
  cost = chosen_lib.cost(5, len(q) * i * reads / len(spans[0]), size, q.shape[3])
  made = jax.ShapeDtypeStruct((len(q), part + 1, q.shape[3], size), jnp.float32)

  def run(left, part):
    *span, q, grad, lse, delta = part
    numbers, passes, stays = (*span, chosen), (k, v, *left), (q, grad, lse, delta)
    *left, dq = sweep('backward', kernel, cost, numbers, passes, stays, left, (made,), interpret)
    return tuple(left), dq[:, :-1]

  none = (jnp.zeros(k.shape, jnp.float32),) * 2
  parts = *spans, *(parted(x, part) for x in (q, grad, lse, delta))
  (dk, dv), dq = lax.scan(run, none, parts)
  dq = jnp.moveaxis(dq, 0, 1).reshape(len(q), -1, *dq.shape[3:])[:, :i].swapaxes(2, 3)
  unit = likes[0].shape[-1] ** -0.5
  dq, dk, dv = map(flat, (dq * unit, dk * unit, dv), likes)
  return dq, *(jnp.where(valid[..., None, None], x, 0) for x in (dk, dv))


def backward_kernel(
  first, start, stop, chosen, k, v, dk0, dv0, q, grad, lse, delta, dk, dv, dq, *, group
):
  """A few tiles of keys, each over the queries that chose it.

  Logits are [keys queries] here, so that dk and dv are plain products; dq is kept as [k tile].

  Args:
    first, start, stop, chosen: the numbers of `sweep`, in scalar memory.
    k, v, dk0, dv0: [tiles ...] that pass, with the sums of the parts before.
    q, grad, lse, delta, dq: that stay; dq is summed over all steps of the grid.
  """
  unit = LOG2E * q.shape[-1] ** -0.5

  @pl.when(pl.program_id(1) == 0)
  def _():
    def clear(t, _):
      dq[t] = jnp.zeros(dq.shape[1:], dq.dtype)
      return 0

    lax.fori_loop(0, dq.shape[0], clear, 0)

  def one(at, _):
    turned = k[at].astype(jnp.float32).T.astype(k.dtype)
    read = reader(first, start, stop, chosen, at, group, spare=q.shape[0] - 1)

    def step(n, carry):
      dk, dv = carry
      _, tiles = read(n)
      weights, slopes = [], []
      for t in tiles:
        # A key that is not valid may lie above all that are, but no weight above one.
        p = jnp.exp2(jnp.minimum(dot(k[at], q[t], 1, 1) * unit - lse[t], 0))
        slope = p * (dot(v[at], grad[t], 1, 1) - delta[t])
        weights.append(p.astype(v.dtype))
        slopes.append(slope.astype(k.dtype))
      for t, p, slope in zip(tiles, weights, slopes):
        dv += dot(p, grad[t], 1, 0)
        dk += dot(slope, q[t], 1, 0)
      for t, slope in zip(tiles, slopes):
        dq[t] += dot(turned, slope, 1, 0)
      return dk, dv

    count = groups(start, stop, at, group)
    dk[at], dv[at] = lax.fori_loop(0, count, step, (dk0[at], dv0[at]))
    return 0

  lax.fori_loop(0, k.shape[0], one, 0)


def sweep(name, kernel, cost, numbers, passes, stays, made_passing, made_staying, interpret):
  """One part: a grid of heads by steps of passing tiles.

  Args:
    numbers: first [1], start and stop int32 [H passing], chosen int32 [H passing staying].
    passes, made_passing: [H passing ...]; stays, made_staying: [H staying ...].
  """
  first, *numbers = numbers
  heads, count = passes[0].shape[:2]
  step = math.gcd(count, STEP)
  numbers = [x.reshape(heads, count // step, 1, -1) for x in numbers]
  number = lambda x: pl.BlockSpec(
    (None, None, None, x.shape[-1]), lambda h, i: (h, i, 0, 0), memory_space=pltpu.SMEM
  )
  passing = lambda x: pl.BlockSpec((None, step, *x.shape[2:]), lambda h, i: (h, i, 0, 0))
  staying = lambda x: pl.BlockSpec(
    (None, *x.shape[1:]), lambda h, i: (h, 0, 0, 0), pipeline_mode=pl.Buffered(1)
  )
  made = *made_passing, *made_staying
  return pl.pallas_call(
    kernel,
    grid=(heads, count // step),
    in_specs=[
      pl.BlockSpec(memory_space=pltpu.SMEM),
      *map(number, numbers),
      *map(passing, passes),
      *map(staying, stays),
    ],
    out_specs=[*map(passing, made_passing), *map(staying, made_staying)],
    out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in made],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'arbitrary'), vmem_limit_bytes=STAYS + ROOM
    ),
    cost_estimate=cost,
    name=f'block_sparse_{name}',
    interpret=interpret,
  )(first, *numbers, *passes, *stays)


def listed(mask, part: int):
  """Which tiles each passing tile reads, of bool [b n passing staying].

  Returns:
    chosen: int32 [H passing staying].
    (firsts [c 1], the first tile of each part; starts, stops [c H passing], where in `chosen` a
    part's begin and end).
  """
  mask = mask.reshape(-1, *mask.shape[2:])
  starts, stops = chosen_lib.spans(mask, part)
  firsts = part * jnp.arange(len(starts), dtype=jnp.int32)[:, None]
  return chosen_lib.lists(mask), (firsts, starts, stops)


def groups(start, stop, at, group: int):
  return pl.cdiv(stop[at] - start[at], group)


def reader(first, start, stop, chosen, at, group: int, spare: int):
  """n -> the n-th group of numbers of the tile at `at`, counted from the part's first tile.

  The last group is filled up, in the first list that comes back with a tile that is there (its
  logits move no maximum), in the second with the spare one (which weighs nothing).
  """
  base, last = at * (chosen.shape[0] // start.shape[0]), stop[at] - 1

  def read(n):
    places = [start[at] + n * group + g for g in range(group)]
    tiles = [chosen[base + jnp.minimum(place, last)] - first[0] for place in places]
    return tiles, [jnp.where(p <= last, t, spare) for p, t in zip(places, tiles)]

  return read


def bytes_of(count: int, size: int, x) -> int:
  """Of so many tiles of channels, and of the rows of fp32 beside them."""
  return count * (size * x.shape[-1] * x.dtype.itemsize + 4 * max(size, LANES))


def part_of(count: int, most: int) -> int:
  """Tiles of a part: as few parts as it takes, none longer than it must be."""
  return -(-count // -(-count // max(1, most)))


def parted(x, part: int, spare=0):
  """[H tiles ...] -> [c H part+1 ...], a spare tile at the end of each."""
  parts = -(-x.shape[1] // part)
  rest = ((0, 0),) * (x.ndim - 2)
  pad = lambda x, n: jnp.pad(x, ((0, 0), (0, n), *rest), constant_values=spare)
  whole = pad(x, parts * part - x.shape[1])
  return jnp.stack([pad(x, 1) for x in jnp.split(whole, parts, 1)])


def dot(x, y, left: int, right: int):
  return lax.dot_general(x, y, (((left,), (right,)), ((), ())), preferred_element_type=jnp.float32)


def column(row):
  """[1 tile] -> [tile 1], in whole lanes."""
  return jnp.max(jnp.broadcast_to(row, (LANES, row.shape[1])).T, 1, keepdims=True)


def row(column):
  """[tile 1] -> [1 tile]."""
  return jnp.broadcast_to(column, (column.shape[0], LANES)).T[:1]
