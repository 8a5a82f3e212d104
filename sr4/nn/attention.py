"""Attention over tokens that the mesh splits: to heads, attend locally, and back."""

import jax
import jax.numpy as jnp

from sr4.core import errors
from sr4.core import sharding
from sr4.core.sharding import HEADS
from sr4.core.sharding import P
from sr4.core.sharding import ROWS
from sr4.nn.kernels import splash


def local(q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array) -> jax.Array:
  """softmax(q k^T / sqrt(k)) v over the valid keys; zero where a row has none.

  A kernel that never holds the logits does it where there is one for the platform and the sizes.

  Args:
    q: [b s n k]; k, v: [b r n k]; valid: bool [b r], which keys there are.
  """
  args = q, k, v, valid
  if splash.fits(q, k):
    out = jax.lax.platform_dependent(*args, tpu=splash.attend, default=plain)
  else:
    out = plain(*args)
  return jnp.where(jnp.any(valid, -1)[:, None, None, None], out, 0)


def plain(q, k, v, valid):
  return jax.nn.dot_product_attention(q, k, v, mask=valid[:, None, None, :])


def attend(queries, keys, values, valid, layouts) -> tuple[jax.Array, ...]:
  """Joint attention of several token streams, each with its own layout outside (Eq. 2).

  Args:
    queries: streams of [b s_i n k]; keys, values: streams of [b r_j n k]; valid: bool [b r_j] each.
    layouts: one for each stream of queries, in which its result is wanted.
  Returns:
    One [b s_i n k] per stream of queries.
  """
  ways = sharding.axis_size('seq', 'tensor')
  heads = queries[0].shape[2]
  if heads % ways:
    raise errors.UserError(
      f'{heads} heads cannot be split over seq x tensor = {ways} devices; choose '
      f'mesh.seq * mesh.tensor among the divisors of {heads}'
    )

  def joined(queries, keys, values, valid):
    together = lambda xs: jnp.concatenate(xs, 1)
    out = local(*map(together, (queries, keys, values, valid)))
    ends, start, parts = [q.shape[1] for q in queries], 0, []
    for length in ends:
      parts.append(out[:, start : start + length])
      start += length
    return tuple(parts)

  to = lambda xs, spec: tuple(jax.reshard(x, spec) for x in xs)
  specs = tuple(HEADS for _ in queries)
  # Kernels do not say over which axes their results vary; all that goes in is split over all.
  out = jax.shard_map(joined, out_specs=specs, check_vma=False)(
    to(queries, HEADS), to(keys, HEADS), to(values, HEADS), to(valid, P(*ROWS, None))
  )
  return tuple(jax.reshard(x, spec) for x, spec in zip(out, layouts))
