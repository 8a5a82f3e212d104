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
  ],
)
def test_fsdp_takes_what_is_left(sizes, shape):
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
  ],
)
def test_mesh_errors_say_sizes_and_devices(sizes, words):
  with pytest.raises(ValueError) as error:
    sharding.make_mesh(**sizes)
  for word in words:
    assert word in str(error.value)


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


def test_gathered_collects_fsdp_and_nothing_else():
  with jax.set_mesh(sharding.make_mesh(fsdp=4, tensor=2)):
    weight = jax.device_put(np.arange(32.0).reshape(4, 8), P('fsdp', 'tensor'))
    whole = sharding.gathered(weight)
    assert jax.typeof(whole).sharding.spec == P(None, 'tensor')
    np.testing.assert_array_equal(whole, weight)


def test_default_mesh_keeps_the_one_that_is_set(mesh):
  with sharding.default_mesh():
    assert jax.sharding.get_mesh() == mesh
