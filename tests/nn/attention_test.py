"""sr4/nn/attention.py: the plain formula in fp64, and that what is masked does not exist."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sr4.core import sharding
from sr4.nn import attention


def _inputs(s=5, r=7, n=2, k=8, b=2, seed=0):
  random = np.random.default_rng(seed)
  draw = lambda *shape: random.standard_normal(shape, dtype=np.float32)
  return draw(b, s, n, k), draw(b, r, n, k), draw(b, r, n, k)


def _naive(q, k, v, valid):
  """softmax(q k^T / sqrt(k)) v in fp64, one query at a time, over the valid keys alone."""
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  out = np.zeros((*q.shape[:3], v.shape[3]))
  for b, s, n in np.ndindex(*q.shape[:3]):
    if valid[b].any():
      logits = k[b, valid[b], n] @ q[b, s, n] / np.sqrt(q.shape[-1])
      weights = np.exp(logits - logits.max())
      out[b, s, n] = weights / weights.sum() @ v[b, valid[b], n]
  return out


VALID = np.array([[1, 1, 0, 1, 0, 1, 1], [1, 0, 0, 0, 0, 0, 0]], bool)


def test_is_the_formula(relative):
  q, k, v = _inputs()
  assert relative(attention.local(q, k, v, VALID), _naive(q, k, v, VALID)) < 1e-6


def test_masked_keys_have_no_influence_and_no_gradient():
  q, k, v = _inputs()
  hidden = ~VALID[:, :, None, None]
  out = attention.local(q, k, v, VALID)
  far = attention.local(q, np.where(hidden, 1e4, k), np.where(hidden, -1e4, v), VALID)
  np.testing.assert_array_equal(far, out)
  loss = lambda q, k, v: jnp.sum(jnp.sin(attention.local(q, k, v, VALID)))
  for gradient in jax.grad(loss, (1, 2))(q, k, v):
    gradient = np.asarray(gradient)
    assert not np.any(gradient[~VALID])
    assert np.all(np.any(gradient[0, VALID[0]], (1, 2)))


def test_nothing_to_read_is_zero_with_a_finite_gradient():
  q, k, v = _inputs()
  valid = VALID & np.array([[True], [False]])
  np.testing.assert_array_equal(attention.local(q, k, v, valid)[1], 0)
  assert np.any(np.asarray(attention.local(q, k, v, valid)[0]))
  gradients = jax.grad(lambda *x: jnp.sum(jnp.sin(attention.local(*x, valid))), (0, 1, 2))(q, k, v)
  for gradient in gradients:
    assert np.all(np.isfinite(gradient))
    np.testing.assert_array_equal(gradient[1], 0)


def _streams():
  """A long and a short stream of queries over the same two of keys."""
  q, k, v = _inputs(s=12, r=12, n=4)
  valid = np.ones((2, 12), bool)
  valid[0, 10:], valid[1, 3:5] = False, False
  cut = lambda x: (jnp.asarray(x[:, :8]), jnp.asarray(x[:, 8:]))
  return (q, k, v, valid), tuple(map(cut, (q, k, v, valid)))


def test_streams_meet_in_one_softmax(relative):
  whole, (q, k, v, valid) = _streams()
  layouts = (sharding.TOKEN_HEADS, sharding.TEXT_HEADS)
  parts = attention.attend(q, k, v, valid, layouts)
  assert [p.shape for p in parts] == [(2, 8, 4, 8), (2, 4, 4, 8)]
  assert relative(np.concatenate(parts, 1), _naive(*whole)) < 1e-6


def test_layouts_do_not_change_the_answer(relative):
  whole, (q, k, v, valid) = _streams()
  layouts = (sharding.TOKEN_HEADS, sharding.TEXT_HEADS)
  with jax.set_mesh(sharding.make_mesh(fsdp=2, seq=2, tensor=2)):
    rows = lambda xs, specs: tuple(jax.device_put(x, s) for x, s in zip(xs, specs))
    masks = (sharding.P(sharding.DP, 'seq'), sharding.P(sharding.DP, None))
    parts = jax.jit(lambda *x: attention.attend(*x, layouts))(
      *(rows(x, layouts) for x in (q, k, v)), rows(valid, masks)
    )
    assert [jax.typeof(p).sharding.spec for p in parts] == list(layouts)
    assert relative(np.concatenate(parts, 1), _naive(*whole)) < 1e-6


def test_heads_that_cannot_be_split():
  q, k, v = _inputs(n=6)
  with jax.set_mesh(sharding.make_mesh(fsdp=2, seq=2, tensor=2)):
    with pytest.raises(ValueError) as error:
      attention.attend((q,), (k,), (v,), (VALID,), (sharding.TOKEN_HEADS,))
  assert '6 heads' in str(error.value) and '4 devices' in str(error.value)
  assert 'mesh.seq * mesh.tensor' in str(error.value)
