"""From noise to data along dx/dt = v(x, t)."""

from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp

from sr4.core.av import AV
from sr4.flow import path


def times(steps: int, shift: AV) -> AV:
  """t from 0 to 1 in `steps` steps, float32 [steps + 1] per modality, each with its own shift."""
  t = jnp.linspace(0.0, 1.0, steps + 1)
  return AV(*(path.shifted(t, s) for s in shift))


@dataclasses.dataclass(frozen=True)
class Solver:
  """x(1) from x(0), step by step or all at once.

  Args:
    begin: (x, t) -> (what goes from step to step, of which x is the first; what each is given,
      leaves [steps ...]).  t is as `times` gives it.
    step: (velocity, carry, given) -> carry.  velocity takes x and a pair of scalar times.
  """

  begin: Callable
  step: Callable

  def __call__(self, velocity: Callable[[AV, AV], AV], x: AV, t: AV) -> AV:
    carry, given = self.begin(x, t)
    step = lambda carry, given: (self.step(velocity, carry, given), None)
    return jax.lax.scan(step, carry, given)[0][0]


def euler_step(velocity, carry, given):
  (x,), (start, end) = carry, given
  return (advance(x, velocity(x, start), start, end),)


def heun_begin(x: AV, t: AV):
  return (x,), (*intervals(t), jnp.arange(1, len(t.video)) == len(t.video) - 1)


def heun_step(velocity, carry, given):
  """With the mean velocity of both ends of each step; the last step is Euler's."""
  (x,), (start, end, last) = carry, given
  v = velocity(x, start)

  def mean(v):
    v_end = velocity(advance(x, v, start, end), end)
    return jax.tree.map(lambda a, b: (a + b) / 2, v, v_end)

  return (advance(x, jax.lax.cond(last, lambda v: v, mean, v), start, end),)


def unipc_begin(x: AV, t: AV):
  coefficients = AV(*map(unipc_coefficients, t))
  starts, _ = intervals(t)
  nothing = jax.tree.map(jnp.zeros_like, x)
  # What is given at each step, by modality turned inside out.
  both = AV(*(of[0] for of in coefficients)), AV(*(of[1] for of in coefficients))
  return (x, nothing, nothing, nothing), (starts, both)


def unipc_step(velocity, carry, given):
  """UniPC of order 2 with B(h) = e^h - 1 (arXiv 2302.04867, Eq. 3 and 9), one velocity a step.

  In terms of the data m = x + (1 - t) v that a velocity points at; the first and the last step are
  of order 1.
  """
  (x, last, m, before), (start, (correct, predict)) = carry, given
  now = path.data_from(start, x, velocity(x, start))
  x = combined(correct, x, last, before, m, now)
  return combined(predict, x, m, now), x, now, m


def unipc_coefficients(t: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Of each step from t[i] to t[i + 1]: the corrector's [steps 5], the predictor's [steps 3].

  The corrector, which ends the step before: of x, of x where that began, and of the data of two
  steps before, one before, and now.  The predictor: of x, of the data one step before, and now.
  """
  steps = len(t) - 1
  s, e, i = t[:-1], t[1:], jnp.arange(steps)
  still, second = s == e, (i > 0) & (i < steps - 1)
  signal = jnp.log(t) - jnp.log1p(-t)  # lambda; infinite at the ends, where the order is 1
  h = signal[1:] - signal[:-1]
  ratio = jnp.where(still, 1, (1 - e) / jnp.where(s == 1, 1, 1 - s))
  keep = e - ratio * s  # alpha (1 - e^-h)
  # h over the log-SNR since the step before, 1 / r of the paper: how much its data tells.
  back = jnp.where(second & ~still, h / (jnp.roll(signal[:-1], 1) - signal[:-1]), 0)
  far = keep * back / 2
  predictor = jnp.stack([ratio, far, keep - far], -1)
  # rho of the corrector: R rho = b for rows 1 and 2, solved by hand (first, other are b).
  phi = jnp.expm1(-h)
  first = (phi / -h - 1) / phi
  other = ((phi / -h - 1) / -h - 0.5) * 2 / phi
  slope = (first - other) / (back - 1)
  new = keep * jnp.where(second, first - slope * back, 0.5)
  old = keep * jnp.where(second, slope * back**2, 0)
  ends = jnp.stack([jnp.zeros_like(ratio), ratio, old, keep - new - old, new], -1)
  ends = jnp.where(still[:, None], jnp.eye(5)[0], ends)
  return jnp.concatenate([jnp.eye(5)[:1], ends[:-1]]), predictor


def combined(weights: AV, *trees: AV) -> AV:
  """Of each modality the sum of trees, by its own weights [trees]."""
  of = lambda weights, *trees: jax.tree.map(
    lambda *xs: sum(w * x for w, x in zip(weights, xs)), *trees
  )
  return AV(*(of(*args) for args in zip(weights, *trees)))


def intervals(t: AV) -> tuple[AV, AV]:
  return AV(*(a[:-1] for a in t)), AV(*(a[1:] for a in t))


def advance(x: AV, v: AV, start: AV, end: AV) -> AV:
  span = AV(*(b - a for a, b in zip(start, end)))
  return path.each(lambda dt, x, v: x + dt * v, span, x, v)


euler = Solver(lambda x, t: ((x,), intervals(t)), euler_step)
heun = Solver(heun_begin, heun_step)
unipc = Solver(unipc_begin, unipc_step)
SOLVERS = {'euler': euler, 'heun': heun, 'unipc': unipc}
