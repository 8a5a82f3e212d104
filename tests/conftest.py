"""Tests run on 8 simulated devices of the CPU; each module inside a mesh of one of them."""
import os

FLAG = '--xla_force_host_platform_device_count'
if FLAG not in os.environ.get('XLA_FLAGS', ''):  # Before jax is imported, by anyone.
  os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {FLAG}=8'.strip()
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from sr4.core import sharding  # noqa: E402


@pytest.fixture(scope='module', autouse=True)
def mesh():
  """One device, with the axes of the house; a test of several sets its own inside."""
  one = sharding.make_mesh(fsdp=1)
  with jax.set_mesh(one):
    yield one


@pytest.fixture(scope='module')
def quick_compile():
  """Programs that run once: half the time to compile, for more to run."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


@pytest.fixture(scope='session')
def relative():
  """Relative L2 distance of two arrays, in fp64."""
  def distance(x, reference) -> float:
    x, reference = (np.asarray(a, np.float64) for a in (x, reference))
    assert x.shape == reference.shape, (x.shape, reference.shape)
    return float(np.linalg.norm(x - reference) / np.linalg.norm(reference))
  return distance


@pytest.fixture(scope='session')
def randomized():
  """Arrays for a tree of arrays or of tree.abstract: normal about 0, the scales of norms about 1, so
  that no gate is closed and no bias is zero."""
  def redraw(tree, std=0.2, seed=0):
    random = np.random.default_rng(seed)

    def draw(path, x):
      name = jax.tree_util.keystr(path, simple=True, separator='.')
      about = 1.0 if name.removesuffix('.value').endswith('norm.scale') else 0.0
      value = np.float32(about + std * random.standard_normal(x.shape))
      return jax.device_put(value, x.sharding)
    return jax.tree_util.tree_map_with_path(draw, tree)
  return redraw
