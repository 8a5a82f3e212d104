"""sr4/models/storage.py: float8 is what its scales say, and where weights lie changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sr4 import pipeline
from sr4.core import config as config_lib
from sr4.core import sharding
from sr4.core import tree
from sr4.models import storage
from sr4.models import system as system_lib
from tests import small_run


@pytest.mark.parametrize('std', [1e-4, 0.02, 30.0])
@pytest.mark.parametrize('summed, shape', [((0,), (2, 16, 3, 2, 4)), ((0, 1), (2, 2, 4, 16))])
def test_float8_loses_a_sixteenth_of_a_weight(summed, shape, std):
  """Half a unit of 3 bits, down to 2^-15 of the largest of an output; none of it is infinite."""
  kernel = std * np.random.default_rng(0).standard_normal(shape, np.float32)
  kernel[1] *= np.linspace(0, 1, shape[-1])  # Outputs apart, and one that is zero.
  narrow, scale = storage.narrowed(jnp.asarray(kernel), summed)
  assert narrow.dtype == jnp.float8_e4m3fn and np.isfinite(np.float32(narrow)).all()
  mantissa, _ = np.frexp(np.asarray(scale))
  np.testing.assert_array_equal(mantissa, 0.5)
  summed = tuple(1 + axis for axis in summed)
  back = np.float32(narrow) * np.expand_dims(scale, summed)
  largest = np.abs(np.float32(narrow)).max(summed)
  assert np.all((largest == 0) | (largest >= 448 / 2)), 'half of the range lies idle'
  most = np.abs(kernel).max(summed, keepdims=True)
  assert np.all(np.abs(back - kernel) <= np.maximum(np.abs(kernel) / 16, most * 2**-16))


def _system():
  return system_lib.build(small_run.config('/nowhere'))


def _models(system, randomized, c):
  """The model of random weights as it is stored, and in fp32 the one that these are."""
  trained = randomized(tree.abstract(system.model, jax.random.key(0)))
  like = storage.laid_out(tree.abstract(system.model, jax.random.key(0)), c)
  flat, exact, again = tree.to_flat(trained), {}, {}
  for name, layer in storage.kernels(like):
    again |= storage.stored(name, layer, flat[name])
    kernel = flat[name]
    if c.weights == 'bfloat16':
      kernel = np.float32(np.asarray(kernel).astype(jnp.bfloat16))
    elif c.weights == 'float8':  # What it loses is tested above.
      axes = tuple(1 + axis for axis in layer.summed[1])
      narrow, scale = (jax.device_get(x) for x in storage.narrowed(kernel, layer.summed[1]))
      kernel = np.float32(narrow) * np.expand_dims(scale, axes)
    exact[name] = jax.device_put(kernel, flat[name].sharding)
  stored = tree.from_flat(like, flat | again)
  return stored, tree.from_flat(trained, flat | exact)


def _latents(system, model):
  size = system.size(5, 16, 16, 8.0)
  config = pipeline.Config(num_inference_steps=2)
  clips = pipeline.Pipeline(system, model, size, config)(['a red circle', 'a bell'], [1, 2])
  return [clip.latents for clip in clips]


@pytest.mark.parametrize('mesh', [dict(fsdp=1), dict(fsdp=2, seq=2)])
@pytest.mark.parametrize('weights', storage.WEIGHTS)
def test_a_stored_model_is_the_one_that_its_weights_come_to(randomized, relative, weights, mesh):
  """In the host's memory, which the arrays say, and whose layers are fetched."""
  devices = jax.devices()[: np.prod([*mesh.values()])]
  with jax.set_mesh(sharding.make_mesh(devices, **mesh)):
    system = _system()
    stored, exact = _models(system, randomized, storage.Config(weights, offload=True))
    flat = tree.to_flat(stored)
    for name, x in flat.items():
      inside = name.split('.')[0] in storage.LAYERS and name.endswith('.kernel')
      assert x.sharding.memory_kind == ('pinned_host' if inside else 'device')
      assert x.dtype == (storage.WEIGHTS[weights] if inside else jnp.float32)
    for one, other in zip(_latents(system, stored), _latents(system, exact)):
      for name in one:
        assert relative(one[name], other[name]) < 1e-6


def test_an_unknown_kind_of_weights():
  with pytest.raises(config_lib.ConfigError, match='weights=.int4. is not among float32, bfloat16'):
    config_lib.build(storage.Config, dict(weights='int4'), 'storage')
