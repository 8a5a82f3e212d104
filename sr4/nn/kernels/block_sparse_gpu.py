"""Attention of tiles to chosen tiles, on NVIDIA GPUs: a kernel of nn/kernels/block_sparse.py.

Each program has a part of a tile of queries and goes through its list of tiles of keys, a part of a
tile at a time; backward once more for dq, and a part of a tile of keys with the tiles of queries
that chose it for dk and dv.
"""

import functools
import math

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
import jax.numpy as jnp

from sr4.nn.kernels import chosen as chosen_lib

LOG2E = math.log2(math.e)
NONE = -1e30  # the logit of a key that is not there
OWN, READ = 128, 64  # tokens of a program, and of a step of its loop, at most
SMALL = 16  # fewer tokens than this, or channels, the unit does not multiply


def fits(q, mask) -> bool:
  """Are head and tile powers of two that the unit multiplies?"""
  sizes = q.shape[-1], q.shape[1] // mask.shape[2]
  return all(size >= SMALL and size & (size - 1) == 0 for size in sizes) and sizes[0] <= 256


def forward(q, k, v, valid, mask, reads: float, interpret: bool = False):
  """(output as q, its log-sum-exp to base 2: fp32 [H s])."""
  like, (i, j) = q, mask.shape[2:]
  listed = lists(mask)
  q, k, v = rows(q, i), rows(k, j), rows(v, j)
  made = q, jax.ShapeDtypeStruct(q.shape[:2], jnp.float32)
  kernel = functools.partial(forward_kernel, tile=q.shape[1] // i)
  cost = chosen_lib.cost(2, len(q) * i * reads, q.shape[1] // i, q.shape[2])
  whole = k, v, seen(valid, like)
  out, lse = call('forward', kernel, cost, i, listed, (q,), whole, made, interpret)
  return chosen_lib.flat(out, like), lse


def forward_kernel(count, chosen, q, k, v, valid, out, lse, *, tile):
  unit, read, q_ = LOG2E * q.shape[-1] ** -0.5, min(tile, READ), q[...]

  def step(n, carry):
    top, total, out = carry
    at = place(chosen, n, tile, read)
    s = jnp.where(valid[at][None], dot(q_, k[at, :].T) * unit, NONE)
    new = jnp.maximum(top, jnp.max(s, 1))
    old, p = jnp.exp2(top - new), jnp.exp2(s - new[:, None])
    out = out * old[:, None] + dot(p.astype(v.dtype), v[at, :])
    return new, total * old + jnp.sum(p, 1), out

  size = q.shape[0]
  begin = jnp.full(size, NONE), jnp.zeros(size), jnp.zeros(q.shape, jnp.float32)
  top, total, result = lax.fori_loop(0, count[0] * (tile // read), step, begin)
  total = jnp.maximum(total, 1e-30)  # There may be no tile.
  out[...] = (result / total[:, None]).astype(out.dtype)
  lse[...] = top + jnp.log2(total)


def backward(q, k, v, valid, mask, out, lse, grad, reads: float, interpret: bool = False):
  """(dq, dk, dv) as q, k, v."""
  likes, (i, j) = (q, k, v), mask.shape[2:]
  tile = q.shape[1] // i
  delta = jnp.sum(out.astype(jnp.float32) * grad.astype(jnp.float32), -1)
  delta = jnp.swapaxes(delta, 1, 2).reshape(lse.shape)
  there = seen(valid, q)
  q, grad, k, v = rows(q, i), rows(grad, i), rows(k, j), rows(v, j)
  kernel = lambda f: functools.partial(f, tile=tile)
  own = q, grad, lse, delta
  keys, chose = (k, v, there), lists(jnp.swapaxes(mask, 2, 3))
  cost = lambda products: chosen_lib.cost(products, len(q) * i * reads, tile, q.shape[2])
  (dq,) = call('dq', kernel(dq_kernel), cost(3), i, lists(mask), own, keys, (q,), interpret)
  dk, dv = call('dkv', kernel(dkv_kernel), cost(4), j, chose, keys, own, (k, v), interpret)
  return tuple(map(chosen_lib.flat, (dq, dk, dv), likes))


def dq_kernel(count, chosen, q, grad, lse, delta, k, v, valid, dq, *, tile):
  unit, read = LOG2E * q.shape[-1] ** -0.5, min(tile, READ)
  q_, grad_, lse_, delta_ = q[...], grad[...], lse[...], delta[...]

  def step(n, dq):
    at = place(chosen, n, tile, read)
    s = jnp.where(valid[at][None], dot(q_, k[at, :].T) * unit, NONE)
    p = jnp.exp2(s - lse_[:, None])
    slope = p * (dot(grad_, v[at, :].T) - delta_[:, None])
    return dq + dot(slope.astype(k.dtype), k[at, :])

  result = lax.fori_loop(0, count[0] * (tile // read), step, jnp.zeros(q.shape, jnp.float32))
  dq[...] = (result * q.shape[-1] ** -0.5).astype(dq.dtype)


def dkv_kernel(count, chosen, k, v, valid, q, grad, lse, delta, dk, dv, *, tile):
  unit, read = LOG2E * q.shape[-1] ** -0.5, min(tile, READ)
  k_, v_, valid_ = k[...], v[...], valid[...]

  def step(n, carry):
    dk, dv = carry
    at = place(chosen, n, tile, read)
    s = jnp.where(valid_[:, None], dot(k_, q[at, :].T) * unit, NONE)
    p = jnp.exp2(s - lse[at][None])
    slope = p * (dot(v_, grad[at, :].T) - delta[at][None])
    return dk + dot(slope.astype(q.dtype), q[at, :]), dv + dot(p.astype(grad.dtype), grad[at, :])

  zero = jnp.zeros(k.shape, jnp.float32)
  left, right = lax.fori_loop(0, count[0] * (tile // read), step, (zero, zero))
  dk[...] = (left * q.shape[-1] ** -0.5).astype(dk.dtype)
  dv[...] = right.astype(dv.dtype)


def call(name, kernel, cost, tiles: int, listed, own, whole, made, interpret):
  """A grid of heads by parts of tiles.

  Args:
    listed: count int32 [H tiles 1] and chosen [H tiles of the other side].
    own, made: [H s ...], of which each program has its part; whole: [H r ...], a head's.
  """
  heads, tokens = own[0].shape[:2]
  size = min(OWN, tokens // tiles)
  of_tile = tokens // tiles // size
  numbers = lambda x: pl.BlockSpec((None, None, x.shape[2]), lambda h, i: (h, i // of_tile, 0))
  part = lambda x: pl.BlockSpec((None, size, *x.shape[2:]), lambda h, i: (h, i, 0)[: x.ndim])
  every = lambda x: pl.BlockSpec((None, *x.shape[1:]), lambda h, i: (h, 0, 0)[: x.ndim])
  return pl.pallas_call(
    kernel,
    grid=(heads, tokens // size),
    in_specs=[*map(numbers, listed), *map(part, own), *map(every, whole)],
    out_specs=[part(x) for x in made],
    out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in made],
    compiler_params=triton.CompilerParams(num_warps=8 if size == OWN else 4, num_stages=2),
    cost_estimate=cost,
    name=f'block_sparse_{name}',
    interpret=interpret,
  )(*listed, *own, *whole)


def place(chosen, n, tile: int, read: int):
  """The n-th `read` tokens of a list of tiles."""
  of_tile = jnp.int32(tile // read)
  return pl.ds(chosen[lax.div(n, of_tile)] * tile + lax.rem(n, of_tile) * read, read)


def lists(mask):
  """(count, chosen) of bool [b n passing staying], rows and heads as one."""
  mask = mask.reshape(-1, *mask.shape[2:])
  return jnp.sum(mask, -1, dtype=jnp.int32, keepdims=True), chosen_lib.lists(mask)


def rows(x, tiles: int):
  """[b s n k] -> [H s k]."""
  x = chosen_lib.tiled(x, tiles)
  return x.reshape(len(x), -1, x.shape[-1])


def seen(valid, like):
  """bool [b r] -> [H r]."""
  return jnp.repeat(valid, like.shape[2], 0)


dot = functools.partial(jnp.dot, preferred_element_type=jnp.float32)
