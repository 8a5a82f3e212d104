"""Attention over tokens that the mesh splits.

What travels depends on who is long (sharding.LONG, split over `seq`) and who is short:

  all short           nothing
  long reads short    the short keys
  short reads long    nothing but the results: each device reads its own keys, and the parts meet
  both read both      tokens change places with heads (Ulysses) as far as there are heads, and the
                      keys go around what is left of `seq` (as a ring does, all at once)
"""

import functools
import math

import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from sr4.core import errors
from sr4.core import sharding
from sr4.core.sharding import P
from sr4.nn.kernels import blocked
from sr4.nn.kernels import cudnn
from sr4.nn.kernels import splash


def local(q, k, v, valid, blocks=splash.Blocks(), kept=True) -> jax.Array:
  """softmax(q k^T / sqrt(k)) v over the valid keys; zero where a row has none.

  A kernel that never holds the logits does it where there is one for the platform and the sizes.

  Args:
    q: [b s n k]; k, v: [b r n k]; valid: bool [b r], which keys there are.
    kept: name the result, so that a policy may keep it for the backward pass.
  """
  kernels, known = {}, all(isinstance(n, int) for n in (*q.shape, *k.shape))
  if known and splash.fits(q, k):
    kernels['tpu'] = functools.partial(splash.attend, blocks=blocks, kept=kept)
  if known and cudnn.fits(q):
    kernels['cuda'] = functools.partial(cudnn.attend, kept=kept)
  if known and blocked.fits(q.shape[1]):
    kernels['cpu'] = functools.partial(named, blocked.attend, kept)
  args, other = (q, k, v, valid), functools.partial(named, plain if known else of_any_length, kept)
  out = jax.lax.platform_dependent(*args, **kernels, default=other) if kernels else other(*args)
  return jnp.where(jnp.any(valid, -1)[:, None, None, None], out, 0)


def plain(q, k, v, valid):
  return jax.nn.dot_product_attention(q, k, v, mask=valid[:, None, None, :])


def of_any_length(q, k, v, valid):
  """Where sizes are symbols (jax.export): the two ways of a CPU, chosen when they are known."""
  many = blocked.fits(jnp.asarray(q.shape[1]))
  return jax.lax.cond(many, blocked.attend, plain, q, k, v, valid)


def named(way, kept: bool, *args):
  out = way(*args)
  return checkpoint_name(out, splash.SAVED) if kept else out


def attend(
  queries, keys, values, valid, blocks=splash.Blocks(), kept=True
) -> tuple[jax.Array, ...]:
  """Joint attention of several token streams (Eq. 2), each in the layout that it comes in.

  Args:
    queries: streams of [b s_i n k]; keys, values: streams of [b r_j n k]; valid: bool [b r_j] each.
      Layouts: `heads` of sharding.LONG, the first of them if any, and of sharding.short.
    blocks: of the kernel, where there is one.
    kept: name the results, so that a policy may keep them for the backward pass.
  Returns:
    One [b s_i n k] per stream of queries.
  """
  check_heads(queries[0].shape[2])
  specs = tuple(map(sharding.of, queries))
  if not is_long(keys[0]):
    way = read_short
  elif is_long(queries[0]):
    long = tuple(map(is_long, queries))
    way = lambda *args: exchange(long, *args)
  else:
    way, valid = read_long, tuple(jax.reshard(x, P(sharding.DP, 'seq')) for x in valid)
  way = functools.partial(way, functools.partial(local, blocks=blocks, kept=kept))
  return sharding.mapped(way, specs)(queries, keys, values, valid)


def check_heads(heads: int):
  if heads % sharding.axis_size('tensor'):
    raise errors.UserError(
      f'{heads} heads cannot be split over mesh.tensor={sharding.axis_size("tensor")} devices; '
      f'choose mesh.tensor among the divisors of {heads}'
    )


def is_long(x: jax.Array) -> bool:
  layout = sharding.of(x)
  return bool(layout) and tuple(layout[1:2]) == ('seq',)


# What follows runs on each device, on its own part.


def read_short(attend, queries, keys, values, valid):
  """Each device's queries read all keys, with the heads that the queries have there."""
  heads = queries[0].shape[2]
  keys, values = ([every(x, heads) for x in xs] for xs in (keys, values))
  return split(attend(*map(joined, (queries, keys, values, valid))), queries)


def read_long(attend, queries, keys, values, valid):
  """softmax over keys that lie on several devices: sum exp(l - max) v / sum exp(l - max)."""
  (q,), (k,), (v,), (valid,) = queries, keys, values, valid
  if sharding.axis_size('seq') == 1:
    return (attend(q, k, v, valid),)
  mine = q.shape[2]
  q = every(q, k.shape[2])
  logits = jnp.einsum('bsnk,brnk->bnsr', q, k, preferred_element_type=jnp.float32)
  logits = jnp.where(valid[:, None, None], logits * q.shape[-1] ** -0.5, -jnp.inf)
  top = jax.lax.pmax(jax.lax.stop_gradient(jnp.max(logits, -1, keepdims=True)), 'seq')
  weights = jnp.exp(logits - jnp.where(jnp.isfinite(top), top, 0))
  parts = jnp.einsum(
    'bnsr,brnk->bsnk', weights.astype(v.dtype), v, preferred_element_type=jnp.float32
  )
  totals = jnp.moveaxis(jnp.sum(weights, -1), 1, 2)[..., None]
  if mine == q.shape[2]:
    parts, totals = jax.lax.psum((parts, totals), 'seq')
  else:
    meet = lambda x: jax.lax.psum_scatter(x, 'seq', scatter_dimension=2, tiled=True)
    parts, totals = meet(parts), meet(totals)
  out = parts / jnp.where(totals > 0, totals, 1)
  return (out.astype(v.dtype),)


def exchange(long: tuple[bool, ...], attend, queries, keys, values, valid):
  """Streams that read each other, the first of them long."""
  seq, ways = sharding.axis_size('seq'), by_heads(queries[0].shape[2])
  near = [[ring * ways + i for i in range(ways)] for ring in range(seq // ways)]
  far = [[ring * ways + i for ring in range(seq // ways)] for i in range(ways)]

  heads = queries[0].shape[2] // ways

  def to_heads(xs):
    return [moved(x, 2, 1, near) if l else chosen(x, heads, ways) for x, l in zip(xs, long)]

  def around(xs):
    if len(near) == 1:
      return xs
    collect = lambda x: jax.lax.all_gather(x, 'seq', axis=1, tiled=True, axis_index_groups=far)
    return [collect(x) if l else x for x, l in zip(xs, long)]

  q, k, v = to_heads(queries), around(to_heads(keys)), around(to_heads(values))
  out = split(attend(*map(joined, (q, k, v, valid))), q)
  return tuple(
    moved(x, 1, 2, near) if l else every(x, like.shape[2], near)
    for x, like, l in zip(out, queries, long)
  )


def by_heads(heads: int) -> int:
  """Devices of `seq` that change tokens for heads (Ulysses); the other seq / by_heads: the ring."""
  return math.gcd(heads, sharding.axis_size('seq'))


def ring_part(heads: int) -> tuple[jax.Array, int]:
  """(which part of the queries `exchange` brings to this device; by_heads)."""
  if sharding.axis_size('seq') == 1:
    return 0, 1
  return jax.lax.axis_index('seq') // by_heads(heads), by_heads(heads)


def moved(x, split_axis, concat_axis, groups):
  """All-to-all among neighbours of `seq`: one axis is split, the other joined."""
  if len(groups[0]) == 1:
    return x
  return jax.lax.all_to_all(x, 'seq', split_axis, concat_axis, tiled=True, axis_index_groups=groups)


def chosen(x, heads: int, ways: int):
  """This device's heads of a short stream: those that it has, or its part of all."""
  if x.shape[2] == heads:
    return x
  return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index('seq') % ways * heads, heads, 2)


def every(x, heads: int, groups=None):
  """A short stream with this many heads, collected among neighbours if they are split."""
  if x.shape[2] == heads:
    return x
  return jax.lax.all_gather(x, 'seq', axis=2, tiled=True, axis_index_groups=groups)


def joined(xs):
  return jnp.concatenate(xs, 1) if len(xs) > 1 else xs[0]


def split(x, like) -> tuple[jax.Array, ...]:
  ends = [sum(q.shape[1] for q in like[:i]) for i in range(1, len(like))]
  return tuple(jnp.split(x, ends, 1))
