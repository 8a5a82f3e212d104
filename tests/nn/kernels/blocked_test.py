"""sr4/nn/kernels/blocked.py beside the plain product."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sr4.core import sharding
from sr4.nn import attention
from sr4.nn.kernels import blocked


@pytest.fixture(scope='module', autouse=True)
def mesh():
  """None: a kernel runs inside shard_map, where there is none to see."""


def inputs(s, r, dtype=jnp.float32, b=2, n=3, k=16):
  random = np.random.default_rng(s)
  draw = lambda *shape: jnp.asarray(random.standard_normal(shape), dtype)
  valid = jnp.asarray(random.random((b, r)) < 0.7)
  return draw(b, s, n, k), draw(b, r, n, k), draw(b, r, n, k), valid


@pytest.mark.parametrize('sizes', [(640, 640), (515, 70), (128, 300), (1, 5)])
def test_is_the_plain_product(sizes, relative):
  x = inputs(*sizes)
  run = lambda way: jax.value_and_grad(lambda *x: jnp.sum(jnp.sin(way(*x))), (0, 1, 2))(*x)
  assert relative(blocked.attend(*x), attention.plain(*x)) < 1e-6
  (one, gradients), (two, expected) = run(blocked.attend), run(attention.plain)
  assert relative(one, two) < 1e-5
  for gradient, wanted in zip(gradients, expected):
    assert relative(gradient, wanted) < 1e-5


def test_bfloat16_is_as_near_as_the_plain_product(relative):
  x = inputs(640, 640, jnp.bfloat16)
  exact = attention.plain(*(a.astype(jnp.float32) for a in x[:3]), x[3])
  error = lambda way: relative(way(*x).astype(jnp.float32), exact)
  assert blocked.attend(*x).dtype == jnp.bfloat16
  assert 0 < error(blocked.attend) < 1.25 * error(attention.plain)


def test_a_row_without_keys_is_finite_and_then_zero():
  q, k, v, valid = inputs(520, 30)
  x = q, k, v, valid.at[1].set(False)
  assert jnp.all(jnp.isfinite(blocked.attend(*x)))
  out = attention.local(*x)
  assert not jnp.any(out[1]) and jnp.all(jnp.any(out[0], -1))


def test_long_streams_take_it_and_no_room_for_all_logits():
  x = inputs(4096, 4096)
  room = lambda way: jax.jit(way).lower(*x).compile().memory_analysis().temp_size_in_bytes
  logits = 2 * 3 * 4096 * 4096 * 4
  assert room(attention.local) < logits / 8 < logits < room(attention.plain)
  learn = lambda way: jax.grad(lambda *x: jnp.sum(way(*x)), (0, 1, 2))
  local = functools.partial(attention.local, kept=False)
  keeps_all = jax.checkpoint(local, policy=jax.checkpoint_policies.everything_saveable)
  for way in local, keeps_all:
    assert room(learn(way)) < logits / 8


def test_on_a_mesh(relative):
  x = inputs(1024, 1024, n=4)

  def loss(*x):
    (out,) = attention.attend(*([part] for part in x))
    return jnp.sum(jnp.sin(out)), out

  run = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))
  gradients, one = run(*x)
  with jax.set_mesh(sharding.make_mesh(fsdp=2, seq=2, tensor=2)):
    place = lambda x, spec: jax.device_put(x, jax.NamedSharding(jax.sharding.get_mesh(), spec))
    placed = [place(part, sharding.LONG.heads) for part in x[:3]]
    found, two = run(*placed, place(x[3], sharding.ROWS))
    assert relative(two, one) < 1e-6
    for a, b in zip(found, gradients):
      assert relative(a, b) < 1e-6
