"""Every bucket's step compiled before step 0, kept on disk for the next start.

Compiling tells how much of a device a step takes: what does not fit is refused here, before a
weight is made.
"""

import os
import re
import stat
import time

import jax

from sr4.core import errors
from sr4.core import sharding
from sr4.core import tree
from sr4.training import accounting

UNITS = {'B': 2**-30, 'K': 2**-20, 'M': 2**-10, 'G': 1, 'T': 2**10}  # in GiB


class DoesNotFit(errors.UserError):
  """A step that takes more memory than a device has."""


class CacheError(errors.UserError):
  """A folder that compiled programs cannot be trusted to."""


class Program:
  """One bucket's compiled step: state, given, clips -> state, metrics.  It never compiles again."""

  def __init__(self, name: str, executable, clips):
    self.name, self.executable = name, executable
    self.clips, self.types = clips, _types(clips)

  def __call__(self, state, given, clips):
    if _types(clips) != self.types:
      raise errors.UserError(
        f'a batch of bucket {self.name!r} is not what its step was compiled for: '
        f'{_difference(clips, self.clips)}; training/data.py `shapes` and the loader must agree'
      )
    return self.executable(state, given, clips)


def _types(clips):
  return jax.tree.map(lambda x: (x.shape, x.dtype), clips)


def _difference(given, like) -> str:
  """The first field that differs, in words."""
  given, like = (
    {name: f'{x.dtype}{list(x.shape)}' for name, x in tree.to_flat(clips).items()}
    for clips in (given, like)
  )
  name = next(name for name in given | like if given.get(name) != like.get(name))
  return f'{name} is {given.get(name, "missing")}, and was to be {like.get(name, "missing")}'


def compile_step(
  name: str,
  step,
  state,
  given,
  clips,
  limit: float | None = None,
  options: dict[str, str] | None = None,
  tell=lambda text: None,
) -> Program:
  """A bucket's step, compiled for the mesh that is set.

  Args:
    step: jax.jit of (state, given, clips) -> (state, metrics).
    state: arrays, or shapes with layouts.
    given: the same, of what each step is given beside it.
    clips: Clips of shapes and dtypes, the global batch, as training/data.py `shapes` gives them.
    limit: GiB of a device, where it tells.
    options: of the compiler.
    tell: called with a line about it.
  Raises:
    DoesNotFit: the compiler, or the device's own limit, says so.
  """
  began, mesh = time.monotonic(), jax.sharding.get_mesh()
  rows = jax.NamedSharding(mesh, sharding.ROWS)
  like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), clips)
  try:
    executable = step.lower(state, given, like).compile(compiler_options=options or None)
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    need, there = complaint(str(error))
    raise DoesNotFit(refusal(name, need, there or limit)) from error
  need = taken_gib(executable)
  if None not in (need, limit) and need > limit:
    raise DoesNotFit(refusal(name, need, limit))
  told = '' if need is None else f', {need:.2f} GiB of a device'
  tell(f'{name}: compiled in {time.monotonic() - began:.1f} s{told}')
  return Program(name, executable, clips)


def complaint(error: str) -> tuple[float | None, float | None]:
  """GiB that a program needs, arguments too, and GiB that there are, as a compiler that refused it
  tells."""
  size = lambda before: re.search(before + r'([\d.]+)([BKMGT])', error)
  gib = lambda told: float(told[1]) * UNITS[told[2]] if told else None
  need = gib(size(r'(?:Used |HLO temporaries \()'))
  return need, gib(size(r'available HBM \(') or size('Used .* of '))


def taken_gib(executable) -> float | None:
  """GiB of a device while it runs: arguments, what is new of the results, temporaries, code."""
  stats = executable.memory_analysis()
  if stats is None:  # Not every backend tells.
    return None
  new = stats.output_size_in_bytes - stats.alias_size_in_bytes
  held = stats.argument_size_in_bytes + new + stats.temp_size_in_bytes
  return (held + stats.generated_code_size_in_bytes) / accounting.GIB


def refusal(name: str, need: float | None, there: float | None) -> str:
  gib = lambda x: 'more' if x is None else f'{x:.2f} GiB'
  return (
    f'bucket {name!r} does not fit: its step needs {gib(need)} of each device, which has '
    f'{"less" if there is None else gib(there)}; take fewer rows (config.data.buckets.{name}.rows) '
    'or more microbatches (config.step.accumulate), recompute more (config.model.remat=full), or '
    'spread it further (config.mesh.fsdp, seq, tensor); sr4 plan tells what would fit'
  )


def use_cache(setting: str) -> str:
  """Keeps compiled programs on disk from here on; gives the folder, '' where there is none.

  Args:
    setting: config.train.compile_cache: '' is JAX_COMPILATION_CACHE_DIR or, without it, sr4/xla in
      the user's cache folder; 'off'; or a folder.
  Raises:
    CacheError: there can be no such folder, or others can write there: a cached program is code
      that this process will run.
  """
  if setting == 'off':
    jax.config.update('jax_enable_compilation_cache', False)
    return ''
  given = jax.config.jax_compilation_cache_dir
  folder = setting or given or default_folder()
  if '://' not in folder:  # A bucket's own rules say who may write to it.
    folder = os.path.abspath(os.path.expanduser(folder))
    try:
      os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError as error:
      raise CacheError(
        f'{folder}: compiled programs cannot be kept there ({error.strerror}); set '
        "config.train.compile_cache to a folder of your own, or to 'off'"
      ) from error
    check_private(folder)
  # What takes less to compile takes as long to read.
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)
  if folder != given:
    jax.config.update('jax_compilation_cache_dir', folder)
    forget_cache()
  return folder


def forget_cache():
  """JAX remembers where its cache was when it was first asked."""
  from jax.experimental.compilation_cache import compilation_cache

  compilation_cache.reset_cache()


def default_folder() -> str:
  base = os.environ.get('XDG_CACHE_HOME') or os.path.join(os.path.expanduser('~'), '.cache')
  return os.path.join(base, 'sr4', 'xla')


def check_private(folder: str):
  found = os.stat(folder)
  writable = stat.S_IMODE(found.st_mode) & (stat.S_IWGRP | stat.S_IWOTH)
  if found.st_uid != os.getuid() or writable:
    raise CacheError(
      f'{folder}: compiled programs are run as they are read, so only you may write there, and it '
      f'belongs to user {found.st_uid} with mode {stat.S_IMODE(found.st_mode):04o} (you are '
      f'{os.getuid()}); chmod 700 it, or set config.train.compile_cache to a folder of your own, '
      "or to 'off'"
    )
