"""sr4/flow/guidance.py: scale 1 is the model, and each scale does what its formula says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sr4.core import sharding
from sr4.core.av import AV
from sr4.core.batch import Condition
from sr4.core.batch import Segment
from sr4.flow import guidance

COND = Condition(
  AV((), ()),
  jnp.ones((3, 2, 4)),
  jnp.asarray([[True, True], [True, False]] * 1 + [[False, False]]),
  AV(jnp.asarray([True, True, False]), jnp.asarray([True, False, True])),
)
X = AV((jnp.zeros((3, 2, 2, 2, 1)), jnp.ones((3, 1, 1, 1, 1))), (jnp.zeros((3, 5, 2)),))
TIME = AV(jnp.float32(0.25), jnp.float32(0.5))


class Model:
  """A velocity that tells which condition it was given: 1 + 10 text + 100 present, by row."""

  def __init__(self):
    self.calls = 0

  def __call__(self, x, t, cond):
    self.calls += 1
    assert [a.shape for a in t] == [(3,), (3,)]
    told = 1.0 + 10 * cond.text_valid.sum(1) + 100 * (cond.present.video & cond.present.audio)
    fill = lambda a, t: jnp.broadcast_to((told * t).reshape(3, *(1,) * (a.ndim - 1)), a.shape)
    return AV(*(tuple(fill(a, now) for a in m) if m is not None else None for m, now in zip(x, t)))


def _first(v) -> np.ndarray:
  """[modality row]."""
  return np.stack([np.asarray(m[0]).reshape(3, -1)[:, 0] for m in v])


TEXT = np.array([2, 1, 0])
READ = np.array([1, 0, 0])
T = np.array([[0.25], [0.5]])
CONDITIONAL = T * (1 + 10 * TEXT + 100 * READ)


def test_scale_one_is_the_model_called_once():
  model = Model()
  v = guidance.guided(model, COND, guidance.Scales(AV(1.0, 1.0), AV(1.0, 1.0)))(X, TIME)
  assert model.calls == 1
  np.testing.assert_array_equal(_first(v), CONDITIONAL)
  assert [[a.shape for a in m] for m in v] == [[a.shape for a in m] for m in X]


@pytest.mark.parametrize(
  'text, modality, calls',
  [
    (AV(4.0, 2.0), AV(1.0, 1.0), 2),
    (AV(1.0, 1.0), AV(3.0, 1.5), 2),
    (AV(4.0, 2.0), AV(3.0, 1.5), 3),
    (AV(1.0, 6.0), AV(1.0, 1.0), 2),
    (AV(0.0, 0.0), AV(1.0, 1.0), 2),
  ],
)
def test_formula_of_each_modality(text, modality, calls):
  """v + (s_text - 1)(v - v without text) + (s_modality - 1)(v - v alone), by modality."""
  model = Model()
  v = guidance.guided(model, COND, guidance.Scales(text, modality))(X, TIME)
  assert model.calls == calls
  expected = (
    CONDITIONAL
    + (np.array(text)[:, None] - 1) * T * 10 * TEXT
    + (np.array(modality)[:, None] - 1) * T * 100 * READ
  )
  np.testing.assert_allclose(_first(v), expected, rtol=1e-6)


def test_text_scale_zero_is_the_model_without_text():
  v = guidance.guided(Model(), COND, guidance.Scales(AV(0.0, 0.0), AV(1.0, 1.0)))(X, TIME)
  np.testing.assert_allclose(_first(v), T * (1 + 100 * READ), rtol=1e-6)


def test_a_negative_prompt_takes_the_place_of_none():
  negative = AV((COND.text, jnp.ones((3, 2), bool)), None)
  v = guidance.guided(Model(), COND, guidance.Scales(AV(3.0, 3.0)), negative)(X, TIME)
  np.testing.assert_allclose(_first(v), CONDITIONAL + 2 * T * 10 * (TEXT - 2), rtol=1e-6)


def test_each_modality_has_a_negative_prompt_of_its_own():
  one, two = jnp.asarray([[True, False]] * 3), jnp.ones((3, 2), bool)
  model = Model()
  negative = AV((COND.text, one), (COND.text, two))
  v = guidance.guided(model, COND, guidance.Scales(AV(3.0, 2.0)), negative)(X, TIME)
  away = np.array([[2.0], [1.0]]) * T * 10 * (TEXT - np.array([[1], [2]]))
  np.testing.assert_allclose(_first(v), CONDITIONAL + away, rtol=1e-6)
  assert model.calls == 3


def test_references_have_a_scale():
  """Only the segments that are context are taken away."""
  context = Segment(None, None, jnp.zeros((3, 4, 3)), jnp.ones((3, 4), bool), generated=False)
  clip = Segment(None, None, jnp.zeros((3, 4, 3)), jnp.ones((3, 4), bool))
  cond = dataclasses.replace(COND, segments=AV((context, clip), ()))

  def model(x, t, cond):
    seen = sum(of.valid.sum(1) for of in cond.segments.video)
    fill = lambda a: jnp.broadcast_to(seen.reshape(3, *(1,) * (a.ndim - 1)), a.shape) * 1.0
    return jax.tree.map(fill, x)

  scales = guidance.Scales(AV(1.0, 1.0), references=AV(3.0, 1.0))
  v = guidance.guided(model, cond, scales)(X, TIME)
  np.testing.assert_allclose(_first(v), [[8 + 2 * 4] * 3, [8] * 3])


def test_rescaling_gives_the_spread_of_the_conditional_model():
  noise = lambda key: jax.tree.map(lambda a: jax.random.normal(jax.random.key(key), a.shape), X)

  def model(x, t, cond):
    told = cond.text_valid.sum() > 0
    return jax.tree.map(lambda a, b: jnp.where(told, a, b), noise(1), noise(2))

  make = lambda share: guidance.guided(model, COND, guidance.Scales(AV(5.0, 5.0), rescale=share))(
    X, TIME
  )
  plain, half, full = (make(share).audio[0] for share in (0.0, 0.5, 1.0))
  std = lambda x: np.std(np.asarray(x), (1, 2))
  np.testing.assert_allclose(std(full), std(noise(1).audio[0]), rtol=1e-5)
  np.testing.assert_allclose(half, (plain + full) / 2, rtol=1e-5)
  assert np.all(std(plain) > 2 * std(full))


def test_a_modality_left_out():
  v = guidance.guided(Model(), COND, guidance.Scales(AV(4.0, 4.0), AV(2.0, 2.0)))(
    AV(X.video, None), TIME
  )
  assert v.audio is None and v.video[0].shape == X.video[0].shape


def test_on_a_mesh_conditions_are_rows_of_one_batch():
  """One call, each row's copies on its device, and the numbers of one after the other."""
  calls = []

  def model(x, t, cond):
    calls.append(x.audio[0].shape[0])
    told = 1.0 + 10 * cond.text_valid.sum(1) + 100 * (cond.present.video & cond.present.audio)
    fill = lambda a, told: a * told.reshape(-1, *(1,) * (a.ndim - 1))
    return jax.tree.map(lambda a: sharding.on_rows(fill)(a, told + t.video), x)

  twice = lambda tree: jax.tree.map(lambda a: np.concatenate([a, a[:1]]), tree)
  scales = guidance.Scales(AV(4.0, 2.0), AV(3.0, 1.5))
  x = twice(jax.tree.map(lambda a: np.float32(a) + 1, X))

  def run():
    given = sharding.rows((x, twice(COND)))
    return jax.jit(lambda x, cond: guidance.guided(model, cond, scales)(x, TIME))(*given)

  one = run()
  assert calls == [4, 4, 4]
  with jax.set_mesh(sharding.make_mesh(jax.devices()[:4], fsdp=2, seq=2)):
    for a, b in zip(jax.tree.leaves(run()), jax.tree.leaves(one)):
      np.testing.assert_allclose(a, b, rtol=1e-6)
  assert calls[3:] == [12]
