"""How a run begins: new, from the weights of other runs, or where it left off."""

import dataclasses
import os
import re

import jax
import jax.numpy as jnp

from sr4.core import tree
from sr4.training import checkpoint
from sr4.training import state as state_lib


@dataclasses.dataclass(frozen=True)
class InitConfig:
  """Weights to start from: those of another run whose names match."""

  checkpoints: str  # WORKDIR/checkpoints of that run; relative to the workdir of this one
  names: str = ''  # regular expression; '' is all of them
  step: int | None = None  # the latest by default


@dataclasses.dataclass(frozen=True)
class Source:
  """A part of another run's moving average."""

  directory: str
  step: int
  names: str
  like: dict  # {name: shape, dtype and sharding} of what is read


def sources(like: dict, workdir: str, init: dict[str, InitConfig]) -> list[Source]:
  """What is to be read, and is there: asked before anything is compiled.

  Args:
    like: {name: shape, dtype and sharding} of the new model.
  Raises:
    CheckpointError: there is no such checkpoint, or it has other names, shapes or dtypes.
  """
  found = []
  for name, c in init.items():
    directory = os.path.normpath(os.path.join(workdir, c.checkpoints))
    step, _ = checkpoint.page(directory, c.step)
    chosen = {key: x for key, x in like.items() if re.search(c.names, key)}
    if not chosen:
      raise checkpoint.CheckpointError(
        f'config.init.{name}.names={c.names!r} names no parameter; they look like '
        f'{next(iter(like))!r}'
      )
    checkpoint.check_named(directory, step, chosen, 'ema.', c.names)
    found.append(Source(directory, step, c.names, chosen))
  return found


def start(make_state, key, sources: list[Source]) -> state_lib.State:
  """A new state, with what the sources have in place of what is random."""
  state, found = jax.jit(make_state)(key), {}
  for of in sources:
    found |= checkpoint.restore_named(of.directory, of.step, of.like, 'ema.', of.names)
  if not found:
    return state
  model = tree.from_flat(state.model, tree.to_flat(state.model) | found)
  return dataclasses.replace(state, model=model, ema=jax.tree.map(jnp.copy, model))


def data_phase(told: dict, schedule: str, phase: int, step: int) -> dict:
  """Where the data of a resumed run begins: {'schedule', 'phase', 'start'}.

  A checkpoint's step is a position in the data that its schedule orders, and in no other.  Other
  data begins a new phase, at its own step 0, when config.data.phase is raised.

  Args:
    told: what the checkpoint's page says.
  Raises:
    CheckpointError: another schedule in the same phase.
  """
  if phase > told['phase']:
    return {'schedule': schedule, 'phase': phase, 'start': step}
  if told['schedule'] != schedule or told['phase'] != phase:
    raise checkpoint.CheckpointError(
      f'step {step} was reached on other data or buckets (schedule {told["schedule"]} in phase '
      f'{told["phase"]}, here {schedule} in phase {phase}), so its position means nothing here; '
      'restore the data section and the seed, start another workdir, or set '
      f'config.data.phase={told["phase"] + 1} to go on with this data from its beginning'
    )
  return told
