"""sr4/training/optimizer.py: learning rates, and that they are data."""

import dataclasses
import math

import jax
import numpy as np
import optax
import pytest

from sr4.core import errors
from sr4.models import system as system_lib
from sr4.planning import compiling
from sr4.training import data
from sr4.training import loop
from sr4.training import optimizer
from tests import small_run

BASE = dict(learning_rate=2.0, warmup=10, steps=110)


@pytest.mark.parametrize(
  'fields, rates',
  [
    (dict(), {0: 0.2, 4: 1.0, 9: 2.0, 60: 2.0, 500: 2.0}),
    (dict(decay='linear'), {0: 0.2, 10: 2.0, 60: 1.0, 110: 0.0, 500: 0.0}),
    (dict(decay='linear', final=0.5), {60: 1.5, 110: 1.0}),
    (dict(decay='cosine', final=0.1), {35: 2 * (0.1 + 0.9 * 0.8535534), 60: 1.1, 110: 0.2}),
    (dict(warmup=0), {0: 2.0}),
  ],
  ids=str,
)
def test_rates(fields, rates):
  c = optimizer.Config(**BASE | fields)
  found = jax.vmap(optimizer.schedule(c.decay, optimizer.Pace.of(c)))(np.array(list(rates)))
  np.testing.assert_allclose(found, list(rates.values()), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('clip, largest', [(1.0, 0.6), (7.0, 4.2), (20.0, 6.0), (math.inf, 6.0)])
def test_the_gradient_is_clipped_by_its_norm(clip, largest):
  """Of a norm of 10: the first moment is a tenth of what Adam is given."""
  tx = optimizer.make(optimizer.Config(clip=clip, warmup=0))
  grads = {'a': np.float32([6.0, 0.0]), 'b': np.float32([8.0])}
  _, state = tx.update(grads, tx.init(grads), grads)
  (moments,) = [s for s in jax.tree.leaves(state, is_leaf=is_adam) if is_adam(s)]
  np.testing.assert_allclose(moments.mu['a'], [0.1 * largest, 0], rtol=1e-6)


def is_adam(x) -> bool:
  return isinstance(x, optax.ScaleByAdamState)


def test_frozen_parameters_are_there():
  frozen = optimizer.Config(frozen=(r'^dual\.', 'nose'))
  optimizer.check_frozen(dataclasses.replace(frozen, frozen=frozen.frozen[:1]), ['dual.up.kernel'])
  with pytest.raises(errors.UserError, match="optimizer.frozen='nose' is of no parameter"):
    optimizer.check_frozen(frozen, ['dual.up.kernel'])


def test_another_pace_is_no_other_program(tmp_path):
  """A run that learns faster, or for longer, compiles nothing that is kept on disk."""
  small_run.write_clips(tmp_path / 'clips', count=4, sound=False)

  def program(steps=12, **fields) -> str:
    config = small_run.config(tmp_path, sound=False, steps=steps)
    config.optimizer.update(decay='cosine', **fields)
    system, c = system_lib.build(config), loop.Sections.of(config)
    ((size, clips),) = data.shapes(config, system).values()
    step, *arguments = compiling.abstract_step(system, c, size, clips)
    return str(step.trace(*arguments).jaxpr)

  assert program() == program(steps=500, learning_rate=1e-5, warmup=20, final=0.1)
  assert program() != program(b2=0.9)
