"""From noise to data along dx/dt = v(x, t), in a scan."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from sr4.core.av import AV
from sr4.flow import path


def times(steps: int, shift: AV) -> AV:
  """t from 0 to 1 in `steps` steps, float32 [steps + 1] per modality, each with its own shift."""
  t = jnp.linspace(0.0, 1.0, steps + 1)
  return AV(*(path.shifted(t, s) for s in shift))


def euler(velocity: Callable[[AV, AV], AV], x: AV, t: AV) -> AV:
  """x(1) from x(0).  velocity takes x and a pair of scalar times; t as `times` gives it."""

  def step(x, ends):
    start, end = ends
    return advance(x, velocity(x, start), start, end), None

  return jax.lax.scan(step, x, intervals(t))[0]


def heun(velocity: Callable[[AV, AV], AV], x: AV, t: AV) -> AV:
  """As euler, with the mean velocity of both ends of each step; the last step is Euler's."""

  def step(x, ends):
    start, end = ends
    v = velocity(x, start)
    v_end = velocity(advance(x, v, start, end), end)
    return advance(x, jax.tree.map(lambda a, b: (a + b) / 2, v, v_end), start, end), None

  starts, ends = intervals(t)
  but_last = jax.tree.map(lambda a: a[:-1], (starts, ends))
  x, _ = jax.lax.scan(step, x, but_last)
  start, end = jax.tree.map(lambda a: a[-1], (starts, ends))
  return advance(x, velocity(x, start), start, end)


SOLVERS = {'euler': euler, 'heun': heun}


def intervals(t: AV) -> tuple[AV, AV]:
  return AV(*(a[:-1] for a in t)), AV(*(a[1:] for a in t))


def advance(x: AV, v: AV, start: AV, end: AV) -> AV:
  span = AV(*(b - a for a, b in zip(start, end)))
  return path.each(lambda dt, x, v: x + dt * v, span, x, v)
