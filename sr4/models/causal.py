"""Clips through causal layers in parts: the same numbers as in one pass, in less memory."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


class Past:
  """What causal layers keep of one part of a clip for the next, in the order of their calls."""

  def __init__(self, before: list | None = None):
    self.begins = before is None
    self.before = iter(before or ())
    self.kept = []

  def join(self, x: jax.Array, frames: int) -> jax.Array:
    """x [b T ...] after the frames that come before it: zeros, where the clip begins."""
    shape = (x.shape[0], frames, *x.shape[2:])
    before = jnp.zeros(shape, x.dtype) if self.begins else next(self.before)
    x = jnp.concatenate([before, x], 1)
    self.keep(x[:, -frames:])
    return x

  def keep(self, x: jax.Array):
    self.kept.append(x)


def in_parts(
  f: Callable[[jax.Array, Past], jax.Array], x: jax.Array, size: int, unit: int = 1
) -> jax.Array:
  """f(x, Past()), along axis 1: its first entry, then `size` at a time, in one program.

  A size that does not divide what follows the first entry is lowered to one that does.

  Args:
    unit: what f makes one entry of; a size is a multiple of it.
  """
  rest = x.shape[1] - 1
  size = next((n for n in range(min(size, rest) // unit * unit, 0, -unit) if rest % n == 0), 0)
  if size in (0, rest):
    return f(x, Past())
  past = Past()
  first = f(x[:, :1], past)

  def part(kept, at):
    past = Past(kept)
    y = f(jax.lax.dynamic_slice_in_dim(x, at, size, 1), past)
    return past.kept, y

  _, parts = jax.lax.scan(part, past.kept, 1 + size * jnp.arange(rest // size))
  return jnp.concatenate([first, jax.lax.collapse(jnp.moveaxis(parts, 0, 1), 1, 3)], 1)
