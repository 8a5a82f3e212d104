"""Everything that a training run is, apart from its data and its config."""

import dataclasses

import jax
import jax.numpy as jnp
import optax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Guard:
  """Watches the gradient norm; see step.py."""

  norm: jax.Array  # running mean of accepted norms
  skipped: jax.Array  # int32, steps skipped so far
  in_a_row: jax.Array  # int32, steps skipped since the last accepted one


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
  step: jax.Array  # int32, batches seen: the position in the data and in the random numbers
  model: object  # fp32 master weights
  ema: object  # fp32
  opt: optax.OptState
  guard: Guard


def init(make_model, tx: optax.GradientTransformation, key: jax.Array) -> State:
  """A new run.  make_model: key -> model."""
  model = make_model(key)
  zero = lambda dtype: jnp.zeros((), dtype)
  guard = Guard(zero(jnp.float32), zero(jnp.int32), zero(jnp.int32))
  return State(zero(jnp.int32), model, jax.tree.map(jnp.copy, model), tx.init(model), guard)
