"""sr4/flow/solver.py: exact where it can be, and of the order that it says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sr4.core.av import AV
from sr4.flow import solver

ONE = AV(1.0, 1.0)
X = AV((jnp.asarray([[1.0, -2.0], [0.5, 3.0]]),), (jnp.asarray([[0.25], [-1.5]]),))


def test_times_have_their_own_shift():
  t = solver.times(10, AV(1.0, 3.0))
  np.testing.assert_allclose(t.video, np.linspace(0, 1, 11), atol=1e-7)
  sigma = 1 - np.linspace(0, 1, 11)
  np.testing.assert_allclose(1 - t.audio, 3 * sigma / (1 + 2 * sigma), atol=1e-6)
  assert t.audio[0] == 0 and t.audio[-1] == 1


@pytest.mark.parametrize('name', solver.SOLVERS)
@pytest.mark.parametrize('steps', [1, 2, 7])
def test_straight_lines_are_exact(name, steps):
  """A constant velocity, and so the path of a single data point, in any number of steps."""
  v = jax.tree.map(lambda x: 3 * x + 1, X)
  out = solver.SOLVERS[name](lambda x, t: v, X, solver.times(steps, AV(1.0, 5.0)))
  jax.tree.map(lambda o, x: np.testing.assert_allclose(o, 4 * x + 1, atol=1e-5), out, X)


def test_velocity_sees_the_time_of_each_modality():
  """dx/dt = t by Euler: the sum of the starts, weighed with the steps, of each clock."""
  t = solver.times(8, AV(1.0, 4.0))
  velocity = lambda x, now: AV(
    *(jax.tree.map(lambda a, s=s: jnp.full_like(a, s), m) for m, s in zip(x, now))
  )
  out = solver.euler(velocity, X, t)
  for ends, start, clock in zip(out, X, t):
    clock = np.asarray(clock, np.float64)
    expected = np.sum(clock[:-1] * np.diff(clock))
    np.testing.assert_allclose(ends[0] - start[0], np.full(start[0].shape, expected), atol=1e-5)


@pytest.mark.parametrize('name, order', [('euler', 1), ('heun', 2)])
def test_order_of_convergence(name, order):
  """dx/dt = -x^2 t, x(1) = x / (1 + x / 2), fp64: half the step, 1 / 2^order of the error."""
  with jax.enable_x64(True):
    x = AV((jnp.asarray([1.5, 0.5]),), (jnp.asarray([2.0]),))
    exact = jax.tree.map(lambda x: x / (1 + x / 2), x)
    velocity = lambda x, t: AV(*(jax.tree.map(lambda a, s=s: -a * a * s, m) for m, s in zip(x, t)))

    def error(steps):
      t = AV(jnp.linspace(0.0, 1.0, steps + 1), jnp.linspace(0.0, 1.0, steps + 1))
      out = solver.SOLVERS[name](velocity, x, t)
      return max(
        float(jnp.max(jnp.abs(a - b))) for a, b in zip(jax.tree.leaves(out), jax.tree.leaves(exact))
      )

    rates = np.log2([error(32) / error(64), error(64) / error(128)])
  np.testing.assert_allclose(rates, order, atol=0.1)


def _velocity(x, t):
  """Ours, of a tree and scalars, and no line."""
  return AV(*(jax.tree.map(lambda a, s=s: jnp.sin(3 * a) - a * s, m) for m, s in zip(x, t)))


@pytest.mark.parametrize('name', solver.SOLVERS)
def test_each_modality_goes_by_its_own_times(name, relative):
  """Both at once, with clocks apart, are each as with the other on its clock."""
  t = solver.times(6, AV(1.0, 4.0))
  run = lambda video, audio: solver.SOLVERS[name](_velocity, X, AV(video, audio))
  both = run(t.video, t.audio)
  assert relative(both.video[0], run(t.video, t.video).video[0]) < 1e-6
  assert relative(both.audio[0], run(t.audio, t.audio).audio[0]) < 1e-6
  assert relative(both.audio[0], run(t.video, t.video).audio[0]) > 1e-3


@pytest.mark.parametrize('steps', [1, 2, 3, 12])
@pytest.mark.parametrize('name', ['FlowMatchEulerDiscreteScheduler', 'UniPCMultistepScheduler'])
def test_the_schedulers_of_diffusers(name, steps, relative):
  """Their sigma is 1 - t, and their velocity the negative of ours; each modality by itself."""
  diffusers, torch = pytest.importorskip('diffusers'), pytest.importorskip('torch')
  fields = dict(shift=3.0)
  if name.startswith('Uni'):
    fields = dict(prediction_type='flow_prediction', use_flow_sigmas=True, flow_shift=3.0)
  scheduler = getattr(diffusers, name)(**fields)
  scheduler.set_timesteps(steps)
  t = 1 - scheduler.sigmas.numpy()
  with jax.enable_x64(True):
    grid = AV(jnp.asarray(t, jnp.float64), jnp.linspace(0.0, 1.0, steps + 1))
    double = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), X)
    out = solver.SOLVERS['euler' if 'Euler' in name else 'unipc'](_velocity, double, grid)
    other = solver.SOLVERS['euler' if 'Euler' in name else 'unipc'](
      _velocity, double, AV(grid.audio, grid.video)
    )
  x = torch.tensor(np.asarray(X.video[0]), dtype=torch.float64)
  for i, moment in enumerate(scheduler.timesteps):
    v = torch.sin(3 * x) - x * t[i]
    x = scheduler.step(-v, moment, x, return_dict=False)[0]
  assert relative(out.video[0], x.numpy()) < 1e-5
  assert np.any(np.asarray(out.video[0]) != np.asarray(other.video[0])) or steps == 1


def test_what_is_clean_stays():
  """A modality whose times are all 1, beside one that is made."""
  t = solver.times(5, AV(1.0, 1.0))
  for name, solve in solver.SOLVERS.items():
    out = solve(_velocity, X, AV(t.video, jnp.ones_like(t.audio)))
    np.testing.assert_allclose(out.audio[0], X.audio[0], atol=1e-6, err_msg=name)
    assert np.all(np.isfinite(out.video[0])) and np.any(out.video[0] != X.video[0])
