"""sr4/nn/kernels/splash.py against its plain reference, its program run on the CPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sr4.nn import attention
from sr4.nn.kernels import splash
from tests import one_tpu


@pytest.fixture(scope='module', autouse=True)
def mesh():
  """None: a kernel runs inside shard_map, where there is none to see."""


# Queries, keys: one block each, not whole blocks, several blocks of both, few keys, one and a half.
SIZES = [(128, 128), (100, 70), (1100, 1300), (700, 40), (730, 730)]


def _inputs(s, r, n=2, k=128, b=2):
  random = np.random.default_rng(s)
  draw = lambda *shape: jnp.asarray(random.standard_normal(shape), jnp.float32)
  valid = random.random((b, r)) < 0.7
  valid[:, 0] = True
  return draw(b, s, n, k), draw(b, r, n, k), draw(b, r, n, k), jnp.asarray(valid)


def _loss(attend, q, k, v, valid):
  return jnp.sum(jnp.sin(attend(q, k, v, valid)))


@pytest.mark.parametrize('sizes', SIZES)
def test_forward(sizes, relative):
  x = _inputs(*sizes)
  assert relative(splash.attend(*x, interpret=True), attention.plain(*x)) < 1e-5


# One kernel for dq and one for the rest; spans of the keys, of which the last is not whole; one.
@pytest.mark.parametrize('backward', [0, 1024, 8192])
@pytest.mark.parametrize('sizes', [(100, 70), (600, 1300)])
def test_gradients(sizes, backward, relative):
  x, blocks = _inputs(*sizes, b=1), splash.Blocks(backward=backward)
  run = lambda attend: jax.grad(functools.partial(_loss, attend), (0, 1, 2))(*x)
  found = run(functools.partial(splash.attend, blocks=blocks, interpret=True))
  for gradient, expected in zip(found, run(attention.plain)):
    assert relative(gradient, expected) < 1e-5


def test_keys_that_are_not_valid_do_not_exist():
  q, k, v, valid = _inputs(100, 70)
  hidden = ~valid[:, :, None, None]
  out = splash.attend(q, k, v, valid, interpret=True)
  far = splash.attend(
    q, jnp.where(hidden, 1e4, k), jnp.where(hidden, -1e4, v), valid, interpret=True
  )
  np.testing.assert_array_equal(out, far)


@pytest.mark.parametrize(
  'size, keys, fits', [(128, 2048, True), (64, 2048, False), (128, 64, False)]
)
def test_when_it_is_worth_it(size, keys, fits):
  q, k, *_ = jax.eval_shape(lambda: _inputs(16, keys, k=size, b=1))
  assert splash.fits(q, k) == fits


def test_half_a_million_tokens_have_a_program():
  """1080p, 15 s: what the kernel is told before it runs must fit into the scalar memory (1 MiB)."""
  x = [jax.ShapeDtypeStruct((1, 498_432, 1, 128), jnp.bfloat16)] * 3
  valid = jax.ShapeDtypeStruct((1, 498_432), bool)

  def gradients(q, k, v, valid):
    return jax.grad(functools.partial(_loss, splash.attend), (0, 1, 2))(q, k, v, valid)

  assert 'tpu_custom_call' in one_tpu.compiled(gradients, *x, valid, chip='v5p').as_text()
