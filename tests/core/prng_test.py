"""sr4/core/prng.py: a key is a function of (root, name, step)."""

import jax
import numpy as np

from sr4.core import prng

ROOT = jax.random.key(7)


def _data(*args):
  return tuple(np.asarray(jax.random.key_data(prng.named(*args))))


def test_equal_arguments_give_equal_keys():
  assert _data(ROOT, 'noise', 3) == _data(jax.random.key(7), 'noise', 3)
  assert _data(ROOT, 'noise') == _data(ROOT, 'noise', 0)
  assert _data(ROOT, 'noise', 3) == tuple(
    np.asarray(jax.random.key_data(jax.jit(lambda step: prng.named(ROOT, 'noise', step))(3)))
  )


def test_name_step_and_root_each_make_another_key():
  roots = [ROOT, jax.random.key(8)]
  keys = [
    _data(root, name, step)
    for root in roots
    for name in ('noise', 'time', 'Noise', '')
    for step in range(50)
  ]
  assert len(set(keys)) == len(keys) == 400


def test_golden_number():
  """A resume on another machine, years later, draws the same."""
  key = prng.named(jax.random.key(0), 'time', 5)
  assert float(jax.random.normal(key)) == np.float32(0.50682324)
