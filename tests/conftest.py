"""Tests run on 8 simulated devices of the CPU; each module inside a mesh of one of them."""

import atexit
import gc
import os
import shutil
import tempfile

# Before jax is imported, by anyone.  Programs here run a few times: compiling them is what costs.
FLAGS = {
  '--xla_force_host_platform_device_count': 8,
  '--xla_backend_optimization_level': 0,
  '--xla_cpu_use_fusion_emitters': 'false',
  '--xla_cpu_parallel_codegen_split_count': 1,
  '--xla_llvm_disable_expensive_passes': 'true',
}
given = os.environ.get('XLA_FLAGS', '')
added = [f'{flag}={value}' for flag, value in FLAGS.items() if flag not in given]
os.environ['XLA_FLAGS'] = ' '.join([given, *added])
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:  # Shared with the processes that tests start.
  os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp(prefix='sr4-test-')
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
  atexit.register(shutil.rmtree, os.environ['JAX_COMPILATION_CACHE_DIR'], ignore_errors=True)

import jax
import numpy as np
import pytest

from sr4.core import sharding

jax.devices()  # The flags are read now, and once.
gc.freeze()  # Tracing makes millions of objects, and to look for cycles among all again is slow.
gc.set_threshold(100_000, 50, 100)
# The TPU compiler, which tests load later, ends a process over a flag that it does not know.
os.environ['XLA_FLAGS'] = ' '.join(flag for flag in [given, *added] if 'emitters' not in flag)


@pytest.fixture(scope='module', autouse=True)
def mesh():
  """One device, with the axes of the house; a test of several sets its own inside."""
  one = sharding.make_mesh(fsdp=1)
  with jax.set_mesh(one):
    yield one
  # Compiled programs are memory maps, and of these a process may have 65,530.
  jax.clear_caches()


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
  """Arrays for a tree of arrays or of tree.abstract: normal about 0, norm scales about 1, so that
  no gate is closed and no bias is zero."""

  def redraw(tree, std=0.2, seed=0):
    random = np.random.default_rng(seed)

    def draw(path, x):
      name = jax.tree_util.keystr(path, simple=True, separator='.')
      about = 1.0 if name.removesuffix('.value').endswith('norm.scale') else 0.0
      value = random.standard_normal(x.shape, np.float32) * np.float32(std) + np.float32(about)
      return jax.device_put(value, x.sharding)

    return jax.tree_util.tree_map_with_path(draw, tree)

  return redraw
