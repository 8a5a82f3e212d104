"""One step: a pure function of the state, the root key and the batch."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from sr4.core import prng
from sr4.core import sharding
from sr4.core import tree
from sr4.core.sharding import DP
from sr4.core.sharding import P
from sr4.flow import loss as flow_loss
from sr4.training.state import Guard
from sr4.training.state import State


@dataclasses.dataclass(frozen=True)
class Config:
  ema: float = 0.999  # decay of the moving average of the weights
  accumulate: int = 1  # microbatches, at most one a row of a device: same update, less memory
  spike: float = 20.0  # a gradient norm this many times its running mean skips the step
  patience: int = 20  # skipped steps in a row after which the run stops
  sparsify: float = (
    0.0  # added to the sparsity of attention after each `sparsify_every` steps, from
  )
  sparsify_every: int = 40  # 0 until the model's own is reached; 0: it has that from the start

  def __post_init__(self):
    if self.accumulate < 1:
      raise ValueError(f'step.accumulate={self.accumulate} must be 1 or more')
    if not 0 <= self.ema < 1:
      raise ValueError(f'step.ema={self.ema} must be 0 or more and below 1')
    if self.spike <= 1 or self.patience < 1:
      raise ValueError(
        f'step.spike={self.spike} must be above 1, and step.patience={self.patience} 1 or more'
      )
    if self.sparsify < 0 or self.sparsify_every < 1:
      raise ValueError(
        f'step.sparsify={self.sparsify} must not be negative, and step.sparsify_every='
        f'{self.sparsify_every} must be 1 or more'
      )


def update(tx, flow: flow_loss.Config, c: Config, state: State, root_key, batch, frozen=()):
  """(state, metrics) after one batch.

  A step whose loss or gradient is not finite, or whose gradient is a spike, changes nothing but the
  counters, and so the data and the random numbers move on.
  Metrics are fp32 scalars: loss, video, audio, grad_norm, skipped, skipped_in_a_row.

  Args:
    frozen: patterns of names that do not train (optimizer.Config): their gradient is no norm's.
  """
  key = prng.named(root_key, 'step', state.step)
  batch = sparsified(c, state.step, batch)
  weights = flow_loss.row_weights(batch.weights)
  parts = min(c.accumulate, len(batch.cond.text) // sharding.axis_size(*DP))
  (total, per), grads = accumulated(state.model, key, batch, weights, flow, parts)
  still = tree.matching(grads, frozen)
  grads = jax.tree.map(lambda g, still: jnp.zeros_like(g) if still else g, grads, still)
  norm = optax.tree.norm(grads)
  usual = state.guard.norm
  good = jnp.isfinite(total) & jnp.isfinite(norm) & ((usual == 0) | (norm < c.spike * usual))

  updates, opt = tx.update(grads, state.opt, state.model)
  model = optax.apply_updates(state.model, updates)
  # While young, the average forgets faster, or it would remember the initialisation.
  decay = jnp.minimum(c.ema, (1 + state.step) / (10 + state.step))
  ema = jax.tree.map(lambda old, new: old + (1 - decay) * (new - old), state.ema, model)
  new = (model, ema, opt, jnp.where(usual == 0, norm, 0.98 * usual + 0.02 * norm))
  old = (state.model, state.ema, state.opt, usual)
  model, ema, opt, usual = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)

  bad = 1 - good.astype(jnp.int32)
  guard = Guard(usual, state.guard.skipped + bad, (state.guard.in_a_row + bad) * bad)
  metrics = {
    'loss': total,
    **per,
    'grad_norm': norm,
    'skipped': guard.skipped,
    'skipped_in_a_row': guard.in_a_row,
  }
  return State(state.step + 1, model, ema, opt, guard), metrics


def sparsified(c: Config, step, batch):
  """The batch with its limit of the sparsity of attention at this step."""
  if not c.sparsify:
    return batch
  limit = jnp.minimum(c.sparsify * (step // c.sparsify_every), 1.0)
  limit = sharding.over_rows(limit, len(batch.cond.text))
  return dataclasses.replace(batch, cond=dataclasses.replace(batch.cond, sparsity=limit))


def accumulated(model, key, batch, weights, flow, parts: int):
  """((loss, {modality: loss}), gradient), summed over `parts` microbatches.

  Rows weigh the same in any number of parts, and draw the same times, noise and drops: all that is
  random is drawn for the whole batch.
  """

  def weighted(model, batch, weights, drawn):
    per = flow_loss.per_example(model, batch, drawn)
    per = {
      name: jnp.sum(loss * w)
      for name, loss, w in zip(per._fields, per, weights)
      if loss is not None
    }
    return sum(per.values()), per

  grad = jax.value_and_grad(weighted, has_aux=True)
  rows = batch, weights, flow_loss.draw(key, batch, flow)
  if parts == 1:
    return grad(model, *rows)
  split = jax.tree.map(lambda x: microbatches(x, parts), rows)

  def add(total, part):
    return jax.tree.map(jnp.add, total, grad(model, *part)), None

  first = jax.tree.map(lambda x: x[0], split)
  like = jax.eval_shape(grad, model, *first)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype, out_sharding=x.sharding.spec), like)
  return jax.lax.scan(add, zeros, split)[0]


def microbatches(x: jax.Array, parts: int) -> jax.Array:
  """[b ...] -> [parts b/parts ...], each part spread over the whole mesh."""
  rows, rest = x.shape[0], x.shape[1:]
  if rows % parts:
    raise ValueError(f'accumulate={parts} does not divide the {rows} rows of a batch')
  spec = (None,) * len(rest)
  x = x.reshape(rows // parts, parts, *rest, out_sharding=P(DP, None, *spec))
  return jnp.moveaxis(x, 1, 0)
