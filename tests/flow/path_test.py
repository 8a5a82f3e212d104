"""sr4/flow/path.py: the line between noise and data, and how times are drawn."""

from diffusers import FlowMatchEulerDiscreteScheduler
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sr4.core.av import AV
from sr4.flow import path

KEY = jax.random.key(3)
ROWS = 20_000
UNIFORM = path.TimeConfig()


def _pair(seed=0) -> AV:
  random = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(random.standard_normal(shape, dtype=np.float32))
  return AV((draw(2, 3, 2, 2, 4), draw(2, 1, 4, 4, 4)), (draw(2, 7, 5),))


TIMES = AV(jnp.asarray([0.25, 0.875]), jnp.asarray([0.5, 0.0]))


def test_both_ends():
  data, noise = _pair(), _pair(1)
  at = lambda t: path.interpolate(AV(jnp.full(2, t), jnp.full(2, t)), data, noise)
  jax.tree.map(np.testing.assert_array_equal, at(1.0), data)
  jax.tree.map(np.testing.assert_array_equal, at(0.0), noise)


def test_times_are_of_the_row_and_the_modality():
  data, noise = _pair(), _pair(1)
  z = path.interpolate(TIMES, data, noise)
  np.testing.assert_allclose(
    z.video[1][1], 0.875 * data.video[1][1] + 0.125 * noise.video[1][1], atol=1e-6
  )
  np.testing.assert_array_equal(z.audio[0][1], noise.audio[0][1])


def test_round_trip():
  """z_t and the velocity give back data and noise; the velocity is dz/dt."""
  data, noise = _pair(), _pair(1)
  z, v = path.interpolate(TIMES, data, noise), path.velocity(data, noise)
  close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5)
  jax.tree.map(close, path.data_from(TIMES, z, v), data)
  jax.tree.map(close, path.noise_from(TIMES, z, v), noise)
  _, slope = jax.jvp(
    lambda t: path.interpolate(t, data, noise), (TIMES,), (AV(jnp.ones(2), jnp.ones(2)),)
  )
  jax.tree.map(close, slope, v)


def test_noise_is_normal_and_each_leaf_its_own():
  like = AV((jnp.zeros((4, 40, 50)), jnp.zeros((4, 40, 50))), (jnp.zeros((4, 40, 50)),))
  noise = jax.tree.leaves(path.noise_like(KEY, like))
  for n in noise:
    assert abs(float(jnp.mean(n))) < 0.05 and abs(float(jnp.std(n)) - 1) < 0.05
  assert abs(np.corrcoef([np.ravel(n) for n in noise]) - np.eye(3)).max() < 0.05
  for one, again in zip(noise, jax.tree.leaves(path.noise_like(KEY, like))):
    np.testing.assert_array_equal(one, again)


# Times.


def _sample(video=UNIFORM, audio=UNIFORM, independent=0.0, rows=ROWS):
  return AV(*map(np.asarray, path.sample_times(KEY, rows, AV(video, audio), independent)))


def test_uniform():
  t = _sample().video
  assert t.dtype == np.float32 and t.min() > 0 and t.max() < 1
  np.testing.assert_allclose(np.quantile(t, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.015)


def test_logit_normal_quantiles():
  """Quantile q of t is sigmoid(mean + std z_q): arXiv 2403.03206, section 3.1."""
  t = _sample(path.TimeConfig('logit_normal', mean=-0.5, std=1.5)).video
  z = np.array([-1.2815516, -0.6744898, 0.0, 0.6744898, 1.2815516])  # of 10, 25, 50, 75, 90 %
  expected = 1 / (1 + np.exp(0.5 - 1.5 * z))
  np.testing.assert_allclose(np.quantile(t, [0.1, 0.25, 0.5, 0.75, 0.9]), expected, atol=0.015)


@pytest.mark.parametrize('shift', [0.5, 1.0, 3.0, 7.0])
def test_shift_is_the_formula_in_sigma(shift):
  t = jnp.linspace(0, 1, 101)
  out = np.asarray(path.shifted(t, shift))
  sigma = 1 - np.linspace(0, 1, 101)
  np.testing.assert_allclose(1 - out, shift * sigma / (1 + (shift - 1) * sigma), atol=1e-6)
  assert np.all(np.diff(out) > 0) and out[0] == 0 and out[-1] == 1
  assert np.all((out[1:-1] < t[1:-1]) if shift > 1 else (out[1:-1] >= t[1:-1] - 1e-6))


def test_any_shift_keeps_both_ends():
  """Exactly: a solver takes the logarithm of a first time, and 0 is where noise is whole."""
  shifts = jnp.arange(1, 1200) / 100
  assert not jnp.any(jax.vmap(lambda s: path.shifted(jnp.float32(0), s))(shifts))
  assert jnp.all(jax.vmap(lambda s: path.shifted(jnp.float32(1), s))(shifts) == 1)


def test_shift_as_diffusers():
  theirs = FlowMatchEulerDiscreteScheduler(shift=3.0)
  sigmas = theirs.sigmas.numpy()  # 1000 of them, shifted; of 1, 0.999, ... 0.001
  ours = 1 - np.asarray(path.shifted(1 - jnp.arange(1000, 0, -1) / 1000, 3.0))
  np.testing.assert_allclose(ours, sigmas, atol=1e-6)


def test_one_quantile_for_both_or_two():
  """independent = 0 couples the modalities, each by its own shift; 1 does not; between, a share."""
  shift = path.TimeConfig(shift=3.0)
  t = _sample(audio=shift)
  np.testing.assert_allclose(t.audio, path.shifted(jnp.asarray(t.video), 3.0), atol=1e-6)
  assert abs(np.corrcoef(*_sample(independent=1.0))[0, 1]) < 0.03
  some = _sample(independent=0.3)
  assert abs(np.mean(some.video != some.audio) - 0.3) < 0.015
  np.testing.assert_array_equal(some.video, _sample().video)


@pytest.mark.parametrize(
  'fields, words',
  [
    (dict(distribution='normal'), ("'normal'", 'uniform', 'logit_normal')),
    (dict(shift=0.0), ('shift=0.0', 'above 0')),
    (dict(std=-1.0), ('std=-1.0', 'above 0')),
  ],
)
def test_errors(fields, words):
  with pytest.raises(ValueError) as error:
    path.TimeConfig(**fields)
  for word in words:
    assert word in str(error.value)
