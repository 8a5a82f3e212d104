"""AdaLN-Zero, shared: a projection of time per branch, a small table per block (as Wan, LTX)."""

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from sr4.core.sharding import FSDP
from sr4.nn import embed
from sr4.nn import linear
from sr4.nn import norm


class TimeEmbedding(nnx.Module):
  """t [b] in [0, 1] -> silu(MLP(sinusoid)) [b d], fp32."""

  def __init__(self, width: int, *, rngs: nnx.Rngs):
    make = lambda size, spec: linear.Linear(
      'bx,xd->bd', (size, width), spec, dtype='float32', rngs=rngs
    )
    self.up, self.out = make(256, (None, FSDP)), make(width, (FSDP, None))

  def __call__(self, t: jax.Array) -> jax.Array:
    return jax.nn.silu(self.out(jax.nn.silu(self.up(embed.sinusoid(t)))))


def projection(rows: int, width: int, *, rngs: nnx.Rngs) -> linear.Linear:
  """silu(time) [b d] -> [rows b d], zero at first, so that every gate starts closed."""
  return linear.Linear(
    'bd,dxe->xbe', (width, rows, width), (FSDP, None, None), dtype='float32', rngs=rngs, zero=True
  )


def table(rows: int, width: int) -> nnx.Param:
  """A block's own offset to the shared projection: [rows d]."""
  return nnx.Param(jnp.zeros((rows, width), out_sharding=P(None, None)))


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
  """LN(x) (1 + scale) + shift for x [b s d] and shift, scale [b d]; in fp32, back to x's dtype."""
  y = norm.layer_norm(x) * (1 + scale[:, None]) + shift[:, None]
  return y.astype(x.dtype)


def gate(x: jax.Array, update: jax.Array, amount: jax.Array) -> jax.Array:
  """x + amount * update for amount [b d]; in fp32, back to x's dtype."""
  y = x.astype(jnp.float32) + amount[:, None] * update.astype(jnp.float32)
  return y.astype(x.dtype)
