"""sr4/planning/compiling.py: what the compiler's complaints mean, and that it works alone."""

import threading
import time

import jax
import jax.numpy as jnp
import pytest

from sr4.core import sharding
from sr4.planning import asking
from sr4.planning import collectives
from sr4.planning import compiling
from sr4.planning import operations
from sr4.planning import topology as topology_lib
from tests.planning import tpu_program


@pytest.mark.parametrize(
  'told, gib',
  [
    ('CompileTimeHbmOom: required for HLO temporaries (106.77G) exceeds', 106.77),
    ('CompileTimeHbmOom: Used 512.00M of 15.75G hbm.', 0.5),
    ('CompileTimeHbmOom: Used 1.5T of 15.75G hbm.', 1536),
  ],
)
def test_too_much(told, gib):
  assert compiling.too_much(told) == pytest.approx(gib)


def test_what_does_not_fit_needs_as_much_as_what_does():
  """So many times larger, arguments and temporaries: the complaint counts both."""
  pytest.importorskip('libtpu')
  mesh = sharding.make_mesh(topology_lib.devices(topology_lib.parse('v5e:1x1')))
  row = jax.NamedSharding(mesh, sharding.REPLICATED)

  def of(gib):
    x = jax.ShapeDtypeStruct((gib << 10, 1 << 18), jnp.float32, sharding=row)
    kept = jax.jit(lambda x: jax.lax.optimization_barrier(jnp.tanh(x)).sum() + x[0, 0])
    return compiling.compiled(kept.lower(x), {})

  with jax.set_mesh(mesh):
    fits, too_large = of(2), of(40)
  assert fits.fits and not too_large.fits
  assert too_large.total == pytest.approx(20 * fits.total, rel=5e-3) and fits.total > 4


def test_another_complaint():
  with pytest.raises(compiling.DoesNotCompile, match='17.09M.*xla_tpu_scoped_vmem_limit_kib'):
    compiling.too_much('E1001: CompileTimeScopedVmemOom:\nallocation with size 17.09M')
  with pytest.raises(compiling.DoesNotCompile, match='RET_CHECK.*another remat'):
    compiling.too_much('INTERNAL: RET_CHECK failure')


def test_what_is_laid_out_is_what_is_compiled():
  """The program and its memory do not wait for machine code, and are the compiler's own."""
  whole, mesh, _ = tpu_program.compiled('v5p:2x2x2')
  early = asking.elsewhere(tpu_program.laid_out, 'v5p:2x2x2')
  assert early.fits and early.total == whole.total and early.code is None and whole.code > 0
  assert collectives.find(early.module, mesh) == collectives.find(whole.module, mesh)
  assert operations.program(early.module) == operations.program(whole.module)
  assert 'estimated_cycles' in whole.text and 'estimated_cycles' not in early.text
  stats = tpu_program.lower('v5p:2x2x2')[0].compile().memory_analysis()
  held = stats.argument_size_in_bytes + stats.output_size_in_bytes + stats.temp_size_in_bytes
  assert whole.total == pytest.approx(held / compiling.GIB, rel=1e-3)
  assert whole.code == stats.generated_code_size_in_bytes / compiling.GIB


@pytest.mark.parametrize('places, most', [(None, 1), ('2', 2)])
def test_one_at_a_time(places, most, monkeypatch, tmp_path):
  monkeypatch.setattr(compiling.tempfile, 'tempdir', str(tmp_path))
  monkeypatch.delenv('SR4_COMPILATIONS', raising=False)
  if places:
    monkeypatch.setenv('SR4_COMPILATIONS', places)
  inside, seen = [], []

  def work():
    with compiling.exclusive():
      inside.append(1)
      seen.append(len(inside))
      time.sleep(0.5)  # Longer than a wait for a place.
      inside.pop()

  threads = [threading.Thread(target=work) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert max(seen) == most and len(seen) == 4
