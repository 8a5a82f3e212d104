"""Attention on CPUs: a block of queries at a time, so that its logits stay in the cache.

Kept for the backward pass is each row's log-sum-exp, of which the weights are made again (Dao et
al., arXiv:2307.08691, algorithm 2).
"""

import jax
import jax.numpy as jnp

BLOCK = 128  # queries
LEAST = 4 * BLOCK  # for fewer the plain product is as fast
NONE = -1e30


def fits(queries):
  return queries >= LEAST


@jax.custom_vjp
def attend(q, k, v, valid) -> jax.Array:
  """softmax(q k^T / sqrt(k)) v over the valid keys; what a row without any gets is not defined.

  Args:
    q: [b s n k]; k, v: [b r n k]; valid: bool [b r].
  """
  return forward(q, k, v, valid)[0]


def forward(q, k, v, valid):
  keys, values = k.swapaxes(1, 2), v.swapaxes(1, 2)

  def block(q):
    x = logits(q, keys, valid)
    most = jnp.max(x, -1, keepdims=True)
    weights = jnp.exp(x - most)
    total = jnp.sum(weights, -1, keepdims=True)
    out = product('bnsr,bnrk->bnsk', weights.astype(v.dtype), values) / total
    return out.astype(v.dtype), most + jnp.log(total)

  out, lse = jax.lax.map(block, blocks(q))
  out = whole(out, q.shape[1])
  return out, (q, k, v, valid, out, lse)


def backward(kept, slope):
  q, k, v, valid, out, lse = kept
  keys, values = k.swapaxes(1, 2), v.swapaxes(1, 2)

  def block(sums, xs):
    q, out, slope, lse = xs
    weights = jnp.exp(logits(q, keys, valid) - lse)
    mean = jnp.sum(out.astype(jnp.float32) * slope, -1, keepdims=True)
    moved = weights * (product('bnsk,bnrk->bnsr', slope, values) - mean) * q.shape[-1] ** -0.5
    weights, moved = weights.astype(q.dtype), moved.astype(q.dtype)
    of_keys = product('bnsr,bnsk->bnrk', moved, q)
    of_values = product('bnsr,bnsk->bnrk', weights, slope)
    of_queries = product('bnsr,bnrk->bnsk', moved, keys).astype(q.dtype)
    return (sums[0] + of_keys, sums[1] + of_values), of_queries

  zeros = tuple(jnp.zeros_like(x, jnp.float32) for x in (keys, values))
  sums, of_queries = jax.lax.scan(block, zeros, (blocks(q), blocks(out), blocks(slope), lse))
  of_keys, of_values = (x.swapaxes(1, 2).astype(k.dtype) for x in sums)
  return whole(of_queries, q.shape[1]), of_keys, of_values, None


attend.defvjp(forward, backward)


def logits(q, keys, valid) -> jax.Array:
  """fp32 [b n s r] of [b n s k] and [b n r k]."""
  return jnp.where(
    valid[:, None, None], product('bnsk,bnrk->bnsr', q, keys) * q.shape[-1] ** -0.5, NONE
  )


def product(eqn: str, *operands) -> jax.Array:
  return jnp.einsum(eqn, *operands, preferred_element_type=jnp.float32)


def blocks(x) -> jax.Array:
  """[b s n k] -> [blocks b n BLOCK k], the last filled with zeros."""
  b, s, *rest = x.shape
  x = jnp.pad(x, ((0, 0), (0, -s % BLOCK), (0, 0), (0, 0)))
  return x.reshape(b, -(-s // BLOCK), BLOCK, *rest).transpose(1, 0, 3, 2, 4)


def whole(x, length: int) -> jax.Array:
  """[blocks b n BLOCK k] -> [b length n k]."""
  x = x.transpose(1, 0, 3, 2, 4)
  return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]
