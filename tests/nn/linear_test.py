"""sr4/nn/linear.py: an einsum, a bias on the axes that the kernel gives, in any layout."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sr4.core import sharding
from sr4.core.sharding import P
from sr4.nn import linear

CASES = [
  ('bsd,df->bsf', (6, 8), ('fsdp', 'tensor'), (4, 3, 6), (8,)),
  ('bsd,dxnk->xbsnk', (6, 3, 2, 4), ('fsdp', None, 'tensor', None), (4, 3, 6), (3, 2, 4)),
  ('bsnk,nkd->bsd', (2, 4, 6), ('tensor', None, 'fsdp'), (4, 3, 2, 4), (6,)),
  ('bd,dxe->xbe', (6, 9, 6), ('fsdp', None, None), (4, 6), (9, 6)),
]


def _linear(eqn, shape, spec, **kw):
  return linear.Linear(eqn, shape, spec, dtype='float32', rngs=nnx.Rngs(1), **kw)


@pytest.mark.parametrize('eqn, shape, spec, x_shape, bias_shape', CASES)
def test_is_the_einsum(eqn, shape, spec, x_shape, bias_shape, relative, randomized):
  layer = randomized(_linear(eqn, shape, spec))
  x = np.random.default_rng(0).standard_normal(x_shape, dtype=np.float32)
  kernel, bias = np.asarray(layer.kernel[...]), np.asarray(layer.bias[...])
  assert bias.shape == bias_shape
  kernel_axes, out_axes = eqn.split(',')[1].split('->')
  sizes = dict(zip(kernel_axes, shape))
  bias = bias.reshape([sizes.get(axis, 1) for axis in out_axes])  # The same over b and s.
  expected = np.einsum(eqn, x.astype(np.float64), kernel) + bias
  assert relative(layer(jnp.asarray(x)), expected) < 1e-6


def test_drawn_with_variance_one_over_fan_in():
  kernel = _linear('bsnk,nkd->bsd', (8, 32, 64), (None, None, None)).kernel[...]
  assert abs(float(jnp.std(kernel)) * np.sqrt(8 * 32) - 1) < 0.02
  layer = _linear('bsd,df->bsf', (6, 8), (None, None), zero=True)
  assert not np.any(layer.kernel[...]) and not np.any(layer.bias[...])


def test_parameters_are_fp32_and_the_product_is_not():
  layer = linear.Linear('bsd,df->bsf', (6, 8), (None, None), dtype='bfloat16', rngs=nnx.Rngs(1))
  assert layer.kernel[...].dtype == layer.bias[...].dtype == jnp.float32
  assert layer(jnp.ones((1, 2, 6))).dtype == jnp.bfloat16


@pytest.mark.parametrize('eqn, shape, spec, x_shape, bias_shape', CASES[:3])
def test_layouts(eqn, shape, spec, x_shape, bias_shape, relative):
  """fsdp splits a contracted axis and no bias; split or not, the answer is one."""
  x = np.random.default_rng(0).standard_normal(x_shape, dtype=np.float32)
  on_one = np.asarray(_linear(eqn, shape, spec)(jnp.asarray(x)))
  heads = P(('data', 'fsdp'), None, 'tensor', None)
  with jax.set_mesh(sharding.make_mesh(fsdp=2, tensor=2)):
    layer = _linear(eqn, shape, spec)
    assert jax.typeof(layer.kernel[...]).sharding.spec == P(*spec)
    assert 'fsdp' not in jax.typeof(layer.bias[...]).sharding.spec
    placed = jax.device_put(x, heads if eqn.startswith('bsnk') else P(('data', 'fsdp')))
    out = layer(placed, P(('data', 'fsdp'), None, None) if eqn.startswith('bsnk') else None)
    assert relative(out, on_one) < 1e-6


def test_the_layout_asked_for_is_that_of_the_output():
  """Of a product whose axes are turned."""
  x = np.random.default_rng(0).standard_normal((4, 3, 6), dtype=np.float32)
  wanted = P(None, ('data', 'fsdp'), None, 'tensor', None)
  with jax.set_mesh(sharding.make_mesh(fsdp=2, tensor=2)):
    layer = _linear(*CASES[1][:3])
    out = layer(jax.device_put(x, P(('data', 'fsdp'))), wanted)
    assert out.shape == (3, 4, 3, 2, 4) and jax.typeof(out).sharding.spec == wanted
