"""sr4/flow/loss.py: weights, and that a row without a modality contributes exactly nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from sr4.core import prng
from sr4.core.av import AV
from sr4.core.batch import Batch
from sr4.core.batch import Condition
from sr4.flow import conditioning
from sr4.flow import loss
from sr4.flow import path

KEY = jax.random.key(11)
SHAPES = AV(((3, 2, 4, 4, 2), (3, 1, 8, 8, 2)), ((3, 6, 5),))


def _normal(shapes, seed=0) -> AV:
  random = np.random.default_rng(seed)
  return AV(
    *(
      s and tuple(jnp.asarray(random.standard_normal(x, dtype=np.float32)) for x in s)
      for s in shapes
    )
  )


def _weights(seed=1) -> AV:
  """Random; the video of row 0 has none, nor the audio of row 2."""
  random = np.random.default_rng(seed)
  video = [random.uniform(0, 2, (*s[:-1], 1)) for s in SHAPES.video]
  audio = [random.uniform(0, 2, (*s[:-1], 1)) for s in SHAPES.audio]
  for w in video:
    w[0] = 0
  for w in audio:
    w[2] = 0
  return jax.tree.map(jnp.float32, AV(tuple(video), tuple(audio)))


def _batch(weights=None) -> Batch:
  cond = Condition(
    AV((), ()),
    jnp.ones((3, 2, 4)),
    jnp.ones((3, 2), bool),
    AV(jnp.ones(3, bool), jnp.ones(3, bool)),
  )
  return Batch(_normal(SHAPES), weights or _weights(), cond)


def test_weighted_mean_over_all_segments_of_a_row():
  v, target, w = _normal(SHAPES, 2), _normal(SHAPES, 3), _weights()
  out = loss.squared_error(v, target, w)
  for i, name in enumerate(AV._fields):
    for row in range(3):
      total = size = 0.0
      for a, b, c in zip(v[i], target[i], w[i]):
        total += np.sum(np.float64(c[row]) * (np.float64(a[row]) - b[row]) ** 2)
        size += np.sum(np.broadcast_to(c[row], a[row].shape), dtype=np.float64)
      expected = total / size if size else 0.0
      np.testing.assert_allclose(out[i][row], expected, rtol=1e-5, err_msg=name)


def test_a_row_without_weight_is_exactly_zero_in_value_and_gradient():
  target, w = _normal(SHAPES, 3), _weights()
  out, pull = jax.vjp(lambda v: loss.squared_error(v, target, w), _normal(SHAPES, 2))
  assert out.video[0] == 0 and out.audio[2] == 0
  assert np.all(out.video[1:] > 0) and np.all(out.audio[:2] > 0)
  (gradient,) = pull(AV(jnp.ones(3), jnp.ones(3)))
  for g in gradient.video:
    assert not np.any(g[0]) and np.all(np.isfinite(g)) and np.any(g[1]) and np.any(g[2])
  assert not np.any(gradient.audio[0][2]) and np.any(gradient.audio[0][0])


def test_a_modality_that_no_row_has():
  w = _weights()
  v = AV(_normal(SHAPES).video, None)
  out = loss.squared_error(v, v, AV(w.video, None))
  assert out.audio is None and not np.any(out.video)
  assert loss.row_weights(AV(w.video, None)).audio is None
  none = jax.tree.map(jnp.zeros_like, w)
  assert not any(
    np.any(x)
    for x in jax.tree.leaves(
      (loss.row_weights(none), loss.squared_error(_normal(SHAPES), _normal(SHAPES, 2), none))
    )
  )


def test_row_weights_sum_to_one_over_the_rows_that_have_it():
  out = loss.row_weights(_weights())
  np.testing.assert_allclose(out.video, [0, 0.5, 0.5])
  np.testing.assert_allclose(out.audio, [0.5, 0.5, 0])
  # However much of a row is to be learnt, it is one row.
  np.testing.assert_allclose(
    loss.row_weights(jax.tree.map(lambda w: 0.01 * w, _weights())).video, [0, 0.5, 0.5]
  )


def test_per_example_is_equation_6():
  """The error against z_0 - eps at z_t = t z_0 + (1 - t) eps, with t that the model is told."""
  batch, config = _batch(), loss.Config(drop=conditioning.DropConfig(0.0, 0.0, 0.0))
  seen = []

  def model(x, t, cond):
    seen.append((x, t, cond))
    return jax.tree.map(jnp.zeros_like, x)

  out = loss.per_example(model, batch, loss.draw(KEY, batch, config))
  ((x, t, cond),) = seen
  # z_t and z_0 give the noise back, which gives the target.
  noise = path.each(lambda t, x, z: (x - t * z) / (1 - t), t, x, batch.latents)
  expected = loss.squared_error(
    path.velocity(batch.latents, noise), jax.tree.map(jnp.zeros_like, x), batch.weights
  )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3), out, expected)
  assert 0.8 < np.std(noise.video[0]) < 1.2
  jax.tree.map(np.testing.assert_array_equal, cond.text_valid, batch.cond.text_valid)
  exact = path.velocity(batch.latents, path.noise_like(prng.named(KEY, 'noise'), batch.latents))
  assert not any(
    np.any(x) for x in loss.per_example(lambda *_: exact, batch, loss.draw(KEY, batch, config))
  )


def test_times_are_drawn_as_the_config_says():
  config = loss.Config(path.TimeConfig(shift=3.0), path.TimeConfig('logit_normal', 1.0), 0.5)
  t, _, _ = loss.draw(KEY, _batch(), config)
  times = lambda *args: path.sample_times(prng.named(KEY, 'time'), 3, *args)
  jax.tree.map(
    np.testing.assert_array_equal, t, times(AV(config.video_time, config.audio_time), 0.5)
  )
  plain = loss.draw(KEY, _batch(), loss.Config())[0]
  assert np.all(plain.video == plain.audio) and np.all(t.video < plain.video)


def test_what_is_given_whole_stands_at_its_end():
  """t = 1, where z_t is the data; the other modality has a time as ever."""
  clean = AV(jnp.array([True, False, False]), jnp.array([False, True, False]))
  batch, seen = dataclasses.replace(_batch(), clean=clean), []
  model = lambda x, t, cond: (seen.append((x, t)), x)[1]
  loss.per_example(model, batch, loss.draw(KEY, batch, loss.Config()))
  ((x, t),) = seen
  for whole, time, z, data in zip(clean, t, x, batch.latents):
    np.testing.assert_array_equal(time == 1, whole)
    same = [np.all(np.asarray(a) == b, range(1, b.ndim)) for a, b in zip(z, data)]
    assert all(np.array_equal(s, whole) for s in same)


def test_the_key_is_all_the_randomness():
  batch, config = _batch(), loss.Config()
  model = lambda x, t, cond: jax.tree.map(lambda a: 0.5 * a + cond.text_valid.sum(), x)
  run = lambda key: loss.per_example(model, batch, loss.draw(key, batch, config))
  jax.tree.map(np.testing.assert_array_equal, run(KEY), run(KEY))
  assert np.all(run(KEY).video[1:] != run(jax.random.key(12)).video[1:])


def test_dropped_conditions_reach_the_model():
  batch, told = _batch(), []
  model = lambda x, t, cond: (told.append(cond), x)[1]
  for share in (0.0, 1.0):
    config = loss.Config(drop=conditioning.DropConfig(share, share, share))
    loss.per_example(model, batch, loss.draw(KEY, batch, config))
  kept, dropped = told
  assert np.all(kept.text_valid) and np.all(kept.present.video & kept.present.audio)
  assert not np.any(dropped.text_valid)
  assert not np.any(dropped.present.video | dropped.present.audio)
