"""sr4/core/sharding.py: meshes, and what the helpers say of layouts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sr4.core import sharding
from sr4.core.sharding import P


@pytest.mark.parametrize(
  'sizes, shape',
  [
    ({}, (1, 8, 1, 1)),
    ({'fsdp': -1}, (1, 8, 1, 1)),
    ({'tensor': 2}, (1, 4, 1, 2)),
    ({'data': 2, 'fsdp': -1, 'seq': 2, 'tensor': 2}, (2, 1, 2, 2)),
    ({'fsdp': 1}, (1, 1, 1, 1)),
    ({'fsdp': 2, 'seq': 2}, (1, 2, 2, 1)),
    ({'data': -1, 'fsdp': 2, 'seq': 2}, (2, 2, 2, 1)),
    ({'data': -1, 'fsdp': 8}, (1, 8, 1, 1)),
  ],
)
def test_one_axis_takes_what_is_left(sizes, shape):
  mesh = sharding.make_mesh(**sizes)
  assert tuple(mesh.shape.items()) == tuple(zip(sharding.AXES, shape))
  assert set(mesh.axis_types) == {jax.sharding.AxisType.Explicit}
  assert list(mesh.devices.flat) == jax.devices()[: mesh.size]


@pytest.mark.parametrize(
  'sizes, words',
  [
    ({'model': 2}, ('model', 'data', 'fsdp', 'seq', 'tensor')),
    ({'tensor': 3}, ("'tensor': 3", '3 devices', 'does not divide', '8')),
    ({'fsdp': 2, 'tensor': 3}, ('6 devices', 'does not divide', '8', 'fsdp')),
    ({'tensor': 16}, ('16 devices', '8')),
    ({'data': -1}, ('data', 'fsdp', 'both -1')),
  ],
)
def test_mesh_errors_say_sizes_and_devices(sizes, words):
  with pytest.raises(ValueError) as error:
    sharding.make_mesh(**sizes)
  for word in words:
    assert word in str(error.value)


def test_only_a_process_alone_leaves_devices_out():
  assert sharding.mesh_shape(8, spare=True, fsdp=2) == dict(data=1, fsdp=2, seq=1, tensor=1)
  with pytest.raises(ValueError, match='takes 2 of the 8 devices.*make an axis 4 times as long'):
    sharding.make_mesh(jax.devices(), fsdp=2)


def test_slices_lie_along_data():
  assert sharding.mesh_shape(512, 2, data=-1, fsdp=64)['data'] == 8
  with pytest.raises(ValueError, match='mesh.data=1 must be a multiple of the 2 slices'):
    sharding.mesh_shape(512, 2)


@pytest.mark.parametrize('sizes', [{'seq': 0}, {'tensor': -1}, {'fsdp': 0}])
def test_sizes_below_one_are_errors(sizes):
  with pytest.raises(ValueError, match=next(iter(sizes))):
    sharding.make_mesh(**sizes)


def test_axis_size():
  with jax.set_mesh(sharding.make_mesh(fsdp=2, seq=2, tensor=2)):
    assert sharding.axis_size('seq', 'tensor') == 4
    assert sharding.axis_size('data') == 1
    assert sharding.axis_size() == 1


def test_rows_go_over_data_and_fsdp():
  x = np.arange(12.0).reshape(4, 3)
  with jax.set_mesh(sharding.make_mesh(data=2, fsdp=2, tensor=2)):
    (placed,) = sharding.rows((x,))
    assert jax.typeof(placed).sharding.spec[0] == sharding.DP
    assert {s.data.shape for s in placed.addressable_shards} == {(1, 3)}
    np.testing.assert_array_equal(placed, x)
    spread = sharding.over_rows(jnp.arange(3.0), 4)
    assert jax.typeof(spread).sharding.spec[0] == sharding.DP
    np.testing.assert_array_equal(spread, np.tile(np.arange(3.0), (4, 1)))


WEIGHT = np.random.default_rng(0).standard_normal((32, 24), np.float32)
X = np.random.default_rng(1).standard_normal((8, 4, 32), np.float32)


@pytest.mark.parametrize(
  'at, tokens',
  [
    ((sharding.FSDP, 'tensor'), sharding.LONG.tokens),
    ((sharding.FSDP, 'tensor'), sharding.WHOLE),
    ((sharding.FSDP, 'tensor'), P()),
    (('fsdp', ('tensor', 'seq')), sharding.WHOLE),
    (('fsdp', 'tensor'), sharding.WHOLE),
    ((None, 'tensor'), sharding.LONG.tokens),
  ],
  ids=str,
)
@pytest.mark.parametrize(
  'mesh', [dict(fsdp=1), dict(data=2, fsdp=2, seq=2), dict(fsdp=2, seq=2, tensor=2)], ids=str
)
def test_a_gathered_weight_is_the_weight_and_its_gradient_is_the_sum(mesh, at, tokens, relative):
  def loss(w, x):
    return jnp.sum(jnp.sin(jnp.einsum('bsd,df->bsf', x, sharding.gathered(w, x))))

  with jax.set_mesh(sharding.make_mesh(**mesh)):
    w, x = jax.device_put(WEIGHT, P(*at)), jax.device_put(X, tokens)
    whole = sharding.gathered(w, x)
    assert not any(map(sharding.collected, sharding.of(whole).partitions))
    np.testing.assert_array_equal(whole, WEIGHT)
    gradient = jax.jit(jax.grad(loss))(w, x)
    assert sharding.of(gradient) == P(*at)
    assert relative(gradient, np.einsum('bsd,bsf->df', X, np.cos(X @ WEIGHT))) < 1e-6


def test_default_mesh_keeps_the_one_that_is_set(mesh):
  with sharding.default_mesh():
    assert jax.sharding.get_mesh() == mesh
