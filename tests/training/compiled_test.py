"""sr4/training/compiled.py: what fits, what a program takes, and where it is kept."""

import dataclasses
import os
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sr4.core import errors
from sr4.core import sharding
from sr4.core.av import AV
from sr4.core.batch import Clips
from sr4.planning import topology
from sr4.training import compiled


def clips(rows: int = 4, width: int = 8) -> Clips:
  there = np.ones(rows, bool)
  return Clips(
    np.ones((rows, 2, 4, width, 3), np.uint8), None, None,
    np.ones((rows, 3, 5), np.float32), np.ones((rows, 3), bool), AV(there, there),
  )  # fmt: skip


def brightness(clips) -> jax.Array:
  return jax.reshard(clips.frames, sharding.REPLICATED).mean(dtype=jnp.float32)


def step(state, key, clips):
  loss = brightness(clips)
  return state + loss, {'loss': loss + jax.random.uniform(key)}


def compile_step(**changes):
  arguments = dict(name='clips', step=jax.jit(step, donate_argnums=0), clips=clips()) | changes
  return compiled.compile_step(**arguments, state=jnp.zeros(()), given=jax.random.key(0))


def test_a_program_is_the_step():
  told = []
  program = compile_step(tell=told.append)
  state, measured = program(jnp.ones(()), jax.random.key(0), sharding.rows(clips()))
  assert float(state) == 2 and measured.keys() == {'loss'}
  assert told[0].startswith('clips: compiled in ') and told[0].endswith(' GiB of a device')


def test_what_is_taken_is_arguments_results_and_temporaries():
  big = jax.ShapeDtypeStruct((1 << 24,), jnp.float32)  # 64 MiB
  kept = jax.jit(lambda x: x + 1).lower(big).compile()
  given = jax.jit(lambda x: x + 1, donate_argnums=0).lower(big).compile()
  assert compiled.taken_gib(kept) == pytest.approx(1 / 8, rel=0.01)
  assert compiled.taken_gib(given) == pytest.approx(1 / 16, rel=0.01)


@pytest.mark.parametrize(
  'other, told',
  [
    (clips(width=16), r'frames is uint8\[4, 2, 4, 16, 3\], and was to be uint8\[4, 2, 4, 8, 3\]'),
    (clips(rows=8), r'frames is uint8\[8, 2, 4, 8, 3\], and was to be'),
    (
      dataclasses.replace(clips(), frames=clips().frames.astype(np.float32)),
      r'frames is float32\[4, 2, 4, 8, 3\], and was to be uint8',
    ),
    (
      dataclasses.replace(clips(), samples=np.ones((4, 7, 1), np.float32)),
      r'samples is float32\[4, 7, 1\], and was to be missing',
    ),
  ],
)
def test_another_batch_than_it_was_compiled_for_is_an_error(other, told):
  program = compile_step()
  with pytest.raises(errors.UserError, match=f"bucket 'clips' .*{told}"):
    program(jnp.zeros(()), jax.random.key(0), sharding.rows(other))


def test_more_than_the_device_has_is_refused():
  taken = compiled.taken_gib(compile_step().executable)
  compile_step(limit=taken)
  with pytest.raises(compiled.DoesNotFit) as error:
    compile_step(limit=0.99 * taken)
  assert str(error.value).startswith("bucket 'clips' does not fit: its step needs 0.00 GiB of each")
  assert 'config.data.buckets.clips.rows' in str(error.value)


def test_the_compilers_own_refusal_becomes_ours():
  """The TPU compiler is asked for more than a v5e has: 15.75 GiB."""
  pytest.importorskip('libtpu')
  mesh = sharding.make_mesh(topology.devices(topology.parse('v5e:1x1')), fsdp=1)
  scalar = jax.NamedSharding(mesh, sharding.REPLICATED)

  def large(state, key, clips):
    x = brightness(clips) + jnp.arange(1 << 16)
    return state, {'loss': jnp.sum(jnp.sort(x[:, None] * x[None, :], axis=0))}

  state = jax.ShapeDtypeStruct((), jnp.float32, sharding=scalar)
  key = jax.eval_shape(lambda: jax.random.key(0))
  with jax.set_mesh(mesh), pytest.raises(compiled.DoesNotFit) as error:
    compiled.compile_step('clips', jax.jit(large), state, key, clips())
  assert 'needs 32.00 GiB of each device, which has 15.75 GiB' in str(error.value)


@pytest.mark.parametrize(
  'told, need, there',
  [
    ('memory required for HLO temporaries (32.00G) exceeds available HBM (15.75G)', 32, 15.75),
    ('Ran out of memory in memory space hbm. Used 1.20T of 512.0M hbm.', 1228.8, 0.5),
    ('of another kind', None, None),
  ],
)
def test_complaints_of_compilers(told, need, there):
  assert compiled.complaint(f'RESOURCE_EXHAUSTED: {told}') == (need, there)


def test_other_errors_of_the_compiler_are_not_about_memory():
  def fails(*_):
    raise jax.errors.JaxRuntimeError('INTERNAL: something else')

  stub = types.SimpleNamespace(lower=fails)
  with pytest.raises(jax.errors.JaxRuntimeError, match='something else'):
    compile_step(step=stub)


@pytest.fixture
def cache(monkeypatch):
  """Nothing is set; what the test sets is undone."""
  names = (
    'jax_compilation_cache_dir',
    'jax_enable_compilation_cache',
    'jax_persistent_cache_min_compile_time_secs',
  )
  before = {name: getattr(jax.config, name) for name in names}
  jax.config.update('jax_compilation_cache_dir', None)
  yield jax.config
  for name, value in before.items():
    jax.config.update(name, value)
  compiled.forget_cache()


def test_programs_are_kept_in_a_folder_of_the_users_own(cache, monkeypatch, tmp_path):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  folder = compiled.use_cache('')
  assert folder == str(tmp_path / 'sr4' / 'xla') == cache.jax_compilation_cache_dir
  assert os.stat(folder).st_mode & 0o777 == 0o700
  cache.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  hits = []
  jax.clear_caches()  # Of other tests.
  listen = lambda event, **_: hits.append(event) if event.endswith('/cache_hits') else None
  jax.monitoring.register_event_listener(listen)
  try:
    compile_step()
    kept = {name for name in os.listdir(folder) if not name.endswith('-atime')}
    assert any(name.startswith('jit_step-') for name in kept) and not hits
    jax.clear_caches()  # As a new process.
    compile_step()
    # All was there, and so nothing is new.
    assert hits and kept == {name for name in os.listdir(folder) if not name.endswith('-atime')}
  finally:
    jax.monitoring.unregister_event_listener(listen)


def test_a_folder_that_is_given_is_taken(cache, tmp_path):
  assert compiled.use_cache(str(tmp_path / 'a')) == str(tmp_path / 'a')
  cache.update('jax_compilation_cache_dir', str(tmp_path / 'b'))  # JAX_COMPILATION_CACHE_DIR
  assert compiled.use_cache('') == str(tmp_path / 'b') == cache.jax_compilation_cache_dir
  assert compiled.use_cache('off') == '' and not cache.jax_enable_compilation_cache


@pytest.mark.parametrize('mode', [0o770, 0o702, 0o777])
def test_a_folder_that_others_can_write_to_is_refused(cache, tmp_path, mode):
  folder = tmp_path / 'shared'
  folder.mkdir()
  folder.chmod(mode)
  with pytest.raises(compiled.CacheError, match=f'{folder}: .* mode 0{mode:o}'):
    compiled.use_cache(str(folder))
  assert cache.jax_compilation_cache_dir is None
  folder.chmod(0o755)
  assert compiled.use_cache(str(folder)) == str(folder)


def test_anothers_folder_is_refused(cache, tmp_path, monkeypatch):
  monkeypatch.setattr(os, 'getuid', lambda: os.stat(tmp_path).st_uid + 1)
  with pytest.raises(compiled.CacheError, match='belongs to user'):
    compiled.use_cache(str(tmp_path))


def test_a_folder_that_cannot_be_made_is_told(cache, tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(compiled.CacheError, match=r"cannot be kept there .*'off'"):
    compiled.use_cache(str(tmp_path / 'file' / 'xla'))
