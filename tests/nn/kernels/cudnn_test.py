"""sr4/nn/kernels/cudnn.py: its arithmetic on any machine, that its program is cuDNN's, and itself
where there is a GPU."""

import functools

import jax
from jax._src.cudnn import fused_attention_stablehlo as fused
import jax.numpy as jnp
import numpy as np
import pytest

from sr4.nn import attention
from sr4.nn.kernels import cudnn


@pytest.fixture(scope='module', autouse=True)
def mesh():
  """None: a kernel runs inside shard_map, where there is none to see."""


def _inputs(s, r, n=2, k=64, b=3, dtype=jnp.float32):
  random = np.random.default_rng(s)
  draw = lambda *shape: jnp.asarray(random.standard_normal(shape), dtype)
  valid = random.random((b, r)) < 0.7
  valid[0] = True
  return draw(b, s, n, k), draw(b, r, n, k), draw(b, r, n, k), jnp.asarray(valid)


def _gradients(attend, x):
  return jax.grad(lambda *x: jnp.sum(jnp.sin(attend(*x).astype(jnp.float32))), (0, 1, 2))(*x)


@pytest.mark.parametrize('sizes', [(128, 128), (100, 70), (30, 200)])
def test_keys_that_are_there_go_first(sizes, relative):
  x, run = _inputs(*sizes), functools.partial(cudnn.attend, implementation='xla')
  assert relative(run(*x), attention.plain(*x)) < 1e-5
  for gradient, expected in zip(_gradients(run, x), _gradients(attention.plain, x)):
    assert relative(gradient, expected) < 1e-5


def test_a_row_without_keys_is_finite():
  q, k, v, valid = _inputs(16, 16)
  run = functools.partial(cudnn.attend, implementation='xla')
  x = q, k, v, valid.at[1].set(False)
  assert jnp.all(jnp.isfinite(run(*x)))
  assert all(jnp.all(jnp.isfinite(gradient)) for gradient in _gradients(run, x))


def test_a_gpu_gets_the_kernel_of_cudnn(monkeypatch):
  """The program that is lowered for CUDA, forward and backward; this machine needs none."""
  monkeypatch.setattr(cudnn, 'widest', lambda: 128)
  monkeypatch.setattr(fused, 'check_cudnn_version', lambda: 91000)
  x = _inputs(128, 600, k=128, dtype=jnp.bfloat16)
  run = jax.jit(lambda *x: _gradients(attention.local, x))
  text = run.trace(*x).lower(lowering_platforms=('cuda',)).as_text()
  assert '__cudnn$fmhaSoftmax"' in text or '__cudnn$fmhaSoftmax(' in text
  assert '__cudnn$fmhaSoftmaxBackward' in text


@pytest.mark.parametrize(
  'widest, size, dtype, fits',
  [
    (128, 128, jnp.bfloat16, True),
    (128, 128, jnp.float32, False),
    (128, 256, jnp.bfloat16, False),
    (256, 256, jnp.bfloat16, True),
    (128, 60, jnp.bfloat16, False),
    (0, 64, jnp.bfloat16, False),
  ],
)
def test_when_there_is_a_kernel(widest, size, dtype, fits, monkeypatch):
  monkeypatch.setattr(cudnn, 'widest', lambda: widest)
  assert cudnn.fits(jax.ShapeDtypeStruct((1, 8, 2, size), dtype)) == fits


@pytest.mark.skipif(not cudnn.widest(), reason='needs an NVIDIA GPU')
def test_on_a_gpu(relative):
  x = _inputs(600, 1300, k=128, dtype=jnp.bfloat16)
  exact = [x.astype(jnp.float32) for x in x[:3]] + [x[3]]
  mine, plain = cudnn.attend(*x), attention.plain(*x)
  wanted = attention.plain(*exact)
  assert relative(mine, wanted) < 1.25 * relative(plain, wanted)
  for a, b, c in zip(
    *(
      _gradients(f, y)
      for f, y in ((cudnn.attend, x), (attention.plain, x), (attention.plain, exact))
    )
  ):
    assert relative(a, c) < 1.5 * relative(b, c)
