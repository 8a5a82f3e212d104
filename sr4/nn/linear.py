"""The one dense layer: an einsum whose weight states its shape and its layout together."""

import math

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from sr4.core import sharding


class Linear(nnx.Module):
  """y = einsum(eqn, x, kernel) + bias, in `dtype`, from fp32 parameters.

  eqn is 'input,kernel->output', such as 'bsd,dxnk->xbsnk'.  The bias has the axes of the kernel
  that reach the output.  The kernel is drawn with variance 1/fan-in, or is zero.  One that is
  stored in float8 has a scale, as the bias, for what comes out (models/storage.py).

  The product takes the kernel as it lies, and what is turned to the output's order is the small
  result: an einsum would turn the kernel, which on the CPU is a copy of it at every step.
  """

  def __init__(self, eqn: str, shape, spec, *, dtype, rngs: nnx.Rngs, zero: bool = False):
    operands, out = eqn.split('->')
    inputs, kernel = operands.split(',')
    size, layout = dict(zip(kernel, shape)), dict(zip(kernel, spec))
    summed = [axis for axis in kernel if axis not in out]
    kept = [axis for axis in kernel if axis in out]
    # fsdp splits a contracted axis; a bias is too small to split by it.
    bias_spec = [None if sharding.collected(layout[axis]) else layout[axis] for axis in kept]
    fan_in = math.prod(size[axis] for axis in summed)
    draw = jax.random.normal(rngs.params(), shape, out_sharding=P(*spec)) * fan_in**-0.5
    self.kernel = nnx.Param(jnp.zeros_like(draw) if zero else draw)
    self.bias = nnx.Param(jnp.zeros([size[axis] for axis in kept], out_sharding=P(*bias_spec)))
    self.scale = None
    self.eqn, self.dtype = eqn, dtype
    self.summed = tuple(tuple(axes.index(axis) for axis in summed) for axes in (inputs, kernel))
    # A product has the input's axes and then the kernel's; turned, it has those of the output.
    product = [axis for axis in inputs if axis not in summed] + kept
    self.turn = tuple(product.index(axis) for axis in out)

  def __call__(self, x: jax.Array, out: P | None = None) -> jax.Array:
    """`out` is the output's layout, needed where the contracted axis is split (tensor parallel)."""
    kernel = sharding.gathered(self.kernel[...].astype(self.dtype), x)
    if out is not None:  # As the product's axes lie, before they are turned.
      out = P(*(out[self.turn.index(axis)] for axis in range(len(self.turn))))
    with jax.named_scope(self.eqn):
      no_batch = (), ()
      y = jax.lax.dot_general(
        x.astype(self.dtype), kernel, (self.summed, no_batch), out_sharding=out
      )
    if self.scale is not None:
      y = y * self.scale[...].astype(self.dtype)
    return (y + self.bias[...].astype(self.dtype)).transpose(self.turn)
