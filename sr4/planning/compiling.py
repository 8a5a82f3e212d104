"""A training step compiled ahead of time, from shapes alone, and what it takes of a device."""

import dataclasses
import functools
import math
import re
import time

import jax

from sr4.core import sharding
from sr4.core import tree
from sr4.planning import flops
from sr4.training import loop
from sr4.training import optimizer
from sr4.training import state as state_lib

GIB = 1 << 30
UNITS = {'K': 1 / (1 << 20), 'M': 1 / (1 << 10), 'G': 1, 'T': 1 << 10}  # in GiB


@dataclasses.dataclass(frozen=True)
class Memory:
  """GiB of one device."""

  parameters: float  # weights and their moving average
  optimizer: float
  batch: float
  temporaries: float  # activations, gradients, and what kernels and collectives need
  total: float
  capacity: float


def plan(system, c: loop.Sections, size, clips, capacity: float) -> dict:
  """What one bucket's step takes, on the mesh that is set.

  Args:
    clips: Clips of shapes and dtypes, as training/data.py `shapes` gives them.
    capacity: GiB of a device.
  Returns:
    JSON: rows, tokens, fits, hbm_gib (a Memory), flops, compile_seconds.  The parts of the memory
    are those of the arrays' layouts, the temporaries and whether it fits are the compiler's.
  """
  step, state, key, clips = abstract_step(system, c, size, clips)
  began = time.monotonic()
  parameters, moments, batch = map(held, ((state.model, state.ema), state.opt, clips))
  try:
    stats = step.lower(state, key, clips).compile().memory_analysis()
    temporaries, fits = stats.temp_size_in_bytes / GIB, True
  except jax.errors.JaxRuntimeError as error:
    temporaries, fits = too_much(error, parameters + moments + batch), False
  total = parameters + moments + batch + temporaries
  memory = Memory(parameters, moments, batch, temporaries, total, capacity)
  tokens, rows = system.tokens(size), len(clips.text)
  model = 3 * rows * flops.forward(system.config, tokens, clips.text.shape[1])
  return dict(
    rows=rows,
    tokens=tokens._asdict(),
    fits=fits and total <= capacity,
    hbm_gib=dataclasses.asdict(memory),
    flops={'model': model},
    compile_seconds=time.monotonic() - began,
  )


def abstract_step(system, c: loop.Sections, size, clips):
  """(jitted step, State, key, Clips), all but the first as shapes with layouts."""
  tx, mesh = optimizer.make(c.optimizer), jax.sharding.get_mesh()
  key = jax.eval_shape(lambda: jax.random.key(0))
  state = tree.abstract(functools.partial(state_lib.init, system.model, tx), key)
  rows = jax.NamedSharding(mesh, sharding.ROWS)
  clips = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), clips)
  step = functools.partial(loop.update, tx, system, size, c.flow, c.step)
  return jax.jit(step, donate_argnums=0), state, key, clips


def too_much(error: Exception, arrays: float) -> float:
  """GiB of temporaries that the program would have had, from the compiler's complaint.

  It names them, or all that it would have used, `arrays` GiB of arguments included.
  """
  told = re.search(r'(HLO temporaries \(|Used )([\d.]+)([KMGT])', str(error))
  if 'Hbm' not in str(error) or not told:
    raise error
  gib = float(told[2]) * UNITS[told[3]]
  return gib if told[1].startswith('HLO') else gib - arrays


def held(arrays) -> float:
  """GiB that one device holds of these shapes."""
  local = lambda x: math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
  return sum(map(local, jax.tree.leaves(arrays))) / GIB
