"""A training step compiled ahead of time, from shapes alone, and what it takes of a device."""

from concurrent import futures
import contextlib
import dataclasses
import fcntl
import functools
import glob
import math
import os
import re
import tempfile
import threading
import time

import jax

from sr4.core import errors
from sr4.core import sharding
from sr4.core import tree
from sr4.planning import collectives
from sr4.planning import flops
from sr4.planning import hlo
from sr4.planning import memory as memory_lib
from sr4.planning import operations
from sr4.planning import roofline
from sr4.planning import topology as topology_lib
from sr4.training import loop
from sr4.training import optimizer
from sr4.training import state as state_lib

GIB = 1 << 30
UNITS = {'K': 1 / (1 << 20), 'M': 1 / (1 << 10), 'G': 1, 'T': 1 << 10}  # in GiB


class DoesNotCompile(errors.UserError):
  """The compiler refuses the step for another reason than its memory."""


@dataclasses.dataclass(frozen=True)
class Memory:
  """GiB of one device."""

  parameters: float  # weights and their moving average
  optimizer: float
  batch: float
  activations: float  # what the forward pass keeps for the backward pass
  temporaries: float  # all else at the fullest moment: gradients, kernels, collectives
  total: float
  capacity: float
  host: float  # activations that are kept in the host's memory; not of the total


@dataclasses.dataclass(frozen=True)
class Compiled:
  """A program, or why it is none."""

  text: str  # the compiler's own, of what does not fit, too
  total: float  # GiB of a device: arguments, what is new of the results, temporaries
  fits: bool  # as far as the compiler says
  seconds: float
  code: float | None = None  # GiB of machine code, where it was made
  arrays: tuple[float, ...] = ()  # GiB of parameters, optimizer and batch, of the total

  @functools.cached_property
  def module(self) -> hlo.Module:
    return hlo.parse(self.text)


def bucket(
  system, c: loop.Sections, size, clips, topology, options: dict[str, str], folder: str, whole: bool
) -> Compiled:
  """One bucket's step on the config's mesh over a topology, compiled as `compiled` does.

  Args:
    clips: Clips of shapes and dtypes, as training/data.py `shapes` gives them.
  """
  mesh = sharding.make_mesh(topology_lib.devices(topology), **dataclasses.asdict(c.mesh))
  with jax.set_mesh(mesh):
    step, state, given, clips = abstract_step(system, c, size, clips)
    arrays = tuple(held(part) for part in ((state.model, state.ema), state.opt, clips))
    with exclusive():
      lowered = step.lower(state, given, clips)
      found = compiled(lowered, options, folder, whole)
  return dataclasses.replace(found, arrays=arrays)


def row(
  found: Compiled,
  system,
  c: loop.Sections,
  size,
  clips,
  topology: topology_lib.Topology,
  assumed: roofline.Assumptions = roofline.Assumptions(),
) -> dict:
  """What a bucket's step takes.

  Returns:
    JSON: rows, tokens, fits, hbm_gib (a Memory), flops, collectives, step_seconds and so on, as
    docs/pods.md tells; page.py FACTS and MODEL say which is what.  Where the step does not fit,
    there are no times.
  """
  mesh = sharding.make_mesh(topology_lib.devices(topology), **dataclasses.asdict(c.mesh))
  stacks = memory_lib.stacked(found.module)
  saved, host = (stacks[space] / GIB for space in (hlo.HBM, hlo.HOST))
  total, capacity = found.total + (found.code or 0), topology.spec.hbm_gib
  rest = total - sum(found.arrays) - saved
  fits = found.fits and total <= capacity
  (rows, text), tokens = clips.text_valid.shape, system.tokens(size)
  told = dict(
    rows=rows,
    tokens=tokens._asdict(),
    fits=fits,
    hbm_gib=dataclasses.asdict(Memory(*found.arrays, saved, rest, total, capacity, host)),
    code_gib=found.code,
    flops={'model': 3 * rows * flops.forward(system.config, tokens, text, system.shown(size))},
  )
  told |= speeds(found, fits, told, mesh, topology, assumed)
  return told | {'compile_seconds': found.seconds}


def speeds(found: Compiled, fits: bool, row: dict, mesh, topology, assumed) -> dict:
  """Operations and collectives of the program, and the times that the model makes of them."""
  module, useful = found.module, row['flops']['model']
  work = operations.program(module)
  done = work.flops * topology.devices
  told = dict(
    flops={'model': useful, 'compiled': done},
    recompute=done / useful,
    rematerialised=(done - work.again * topology.devices) / useful,
    unknown_kernels=list(work.unknown),
    collectives=collectives.find(module, mesh),
  )
  none = ('step_seconds', 'step_range', 'mfu', 'exposed', 'seconds', 'chip_seconds_per_sample')
  if not fits:
    return told | dict.fromkeys(none)
  times = roofline.model(module, mesh, topology, assumed)
  whole = 1.0 if found.code else assumed.laid_out
  seconds = lambda achieved: times.total / achieved / whole
  step, peak = seconds(assumed.achieved), topology.spec.tflops * 1e12 * topology.devices
  return told | dict(
    step_seconds=step,
    step_range=[seconds(assumed.best), seconds(assumed.worst)],
    mfu=useful / (step * peak),
    exposed=times.communication / times.total,
    seconds={
      name: seconds(assumed.achieved) * x / times.total for name, x in times.named().items()
    },
    chip_seconds_per_sample=step * topology.chips / row['rows'],
  )


def compiled(
  lowered, options: dict[str, str], folder: str | None = None, whole: bool = True
) -> Compiled:
  """A jitted step that is lowered for shapes, and the compiler's own text of it.

  Args:
    folder: where the compiler writes; a temporary one by default.
    whole: to machine code, which has the compiler's estimates of cycles, and takes minutes for a
      large model.  Else until the program and its buffers are laid out, in a tenth of that; the
      compiler works on in its thread, so the process must be ended.
  """
  with contextlib.ExitStack() as stack:
    folder = folder or stack.enter_context(tempfile.TemporaryDirectory(prefix='sr4-hlo-'))
    began = time.monotonic()
    name = lowered.compiler_ir().operation.attributes['sym_name'].value
    # The text of what is compiled for tpu7x can be had in no other way, nor of what does not fit.
    dump, answer = options | {'xla_dump_to': folder}, futures.Future()
    work = threading.Thread(target=answers, args=(answer, lowered, dump), daemon=True)
    work.start()
    while work.is_alive() and (whole or not laid_out(folder, name)):
      work.join(0.2)
    seconds, fits, code = time.monotonic() - began, True, None
    if not work.is_alive():
      try:
        stats = answer.result()
        code = stats.generated_code_size_in_bytes / GIB
      except jax.errors.JaxRuntimeError as error:
        total, fits = too_much(str(error)), False
    if fits:
      total = buffers(read(folder, name, '-buffer-assignment')) / GIB
    return Compiled(program(folder, name), total, fits, seconds, code)


def answers(answer: futures.Future, lowered, options):
  try:
    answer.set_result(lowered.compile(compiler_options=options).memory_analysis())
  except BaseException as error:
    answer.set_exception(error)


def laid_out(folder: str, name: str) -> bool:
  """Has the compiler written the program and its buffers?  What it writes after them is there."""
  return bool(written(folder, name, '_after_buffer_assignment'))


def written(folder: str, name: str, ending: str) -> str | None:
  """The file of a program that the compiler has written, if it has.

  Programs of parts of it (for the sparse cores) lie there too, and are smaller.
  """
  found = glob.glob(os.path.join(glob.escape(folder), f'*.{name}.*after_optimizations{ending}.txt'))
  return max(found, key=os.path.getsize, default=None)


def read(folder: str, name: str, ending: str) -> str:
  path = written(folder, name, ending)
  if path is None:
    raise hlo.HloError(f'the compiler wrote no {name}..after_optimizations{ending}.txt')
  with open(path) as f:
    return f.read()


def program(folder: str, name: str) -> str:
  """The step's text: after code generation it has the compiler's estimate of cycles."""
  if files := glob.glob(os.path.join(glob.escape(folder), f'*.{name}.*after_codegen.txt')):
    with open(max(files, key=os.path.getsize)) as f:
      return f.read()
  return read(folder, name, '')


def buffers(text: str) -> float:
  """Bytes of a device's memory, from the compiler's account of its buffers.

  Buffers of color 0, which is not written, lie there; what is of one thread lies in VMEM.
  """
  sizes = re.findall(r'^allocation \d+: size (\d+), (?!color|.*thread-local)', text, re.MULTILINE)
  if not sizes:
    raise hlo.HloError('the compiler told no buffers')
  return float(sum(map(int, sizes)))


@contextlib.contextmanager
def exclusive():
  """One compilation at a time on a machine: each takes all cores and some GiB.

  SR4_COMPILATIONS allows more of them.
  """
  places = int(os.environ.get('SR4_COMPILATIONS', '1'))
  where = os.path.join(tempfile.gettempdir(), f'sr4-compiling-{os.getuid()}')
  with contextlib.ExitStack() as stack:
    locks = [stack.enter_context(open(f'{where}-{i}.lock', 'w')) for i in range(places)]
    while not any(map(locked, locks)):
      time.sleep(0.2)
    yield


def locked(file) -> bool:
  """Takes the lock on a file, if it is free."""
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  return True


def abstract_step(system, c: loop.Sections, size, clips):
  """(jitted step, State, (System, key, Pace), Clips), all but the first as shapes with layouts."""
  tx, mesh = optimizer.make(c.optimizer), jax.sharding.get_mesh()
  key = jax.eval_shape(lambda: jax.random.key(0))
  state = tree.abstract(functools.partial(state_lib.init, system.model, tx), key)
  rows = jax.NamedSharding(mesh, sharding.ROWS)
  clips = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), clips)
  step = functools.partial(loop.update, c, size)
  given = system.placed([size]), key, optimizer.Pace.of(c.optimizer)
  return jax.jit(step, donate_argnums=0), state, given, clips


def too_much(error: str) -> float:
  """GiB that the program would have taken, its arguments too, from the compiler's complaint.

  It says that of its "temporaries" as well.

  Raises:
    DoesNotCompile: it complains of something else.
  """
  told = re.search(r'(HLO temporaries \(|Used )([\d.]+)([KMGT])', error)
  if 'Hbm' not in error or not told:
    fix = 'try another remat, mesh or flags'
    if 'ScopedVmem' in error:
      fix = 'give its kernels more with the flag xla_tpu_scoped_vmem_limit_kib, or smaller blocks'
    raise DoesNotCompile(
      f'the TPU compiler refuses the step ({" ".join(error.split())[:300]}); {fix}'
    )
  return float(told[2]) * UNITS[told[3]]


def held(arrays) -> float:
  """GiB that one device holds of these shapes."""
  local = lambda x: math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
  return sum(map(local, jax.tree.leaves(arrays))) / GIB
