"""Flow-matching losses (Eq. 6): per example and per modality, unreduced, masked."""

import dataclasses

import jax
import jax.numpy as jnp

from sr4.core import prng
from sr4.core.av import AV
from sr4.core.batch import Batch
from sr4.core.batch import Condition
from sr4.flow import conditioning
from sr4.flow import path


@dataclasses.dataclass(frozen=True)
class Config:
  """Times and condition dropout of training."""

  video_time: path.TimeConfig = path.TimeConfig()
  audio_time: path.TimeConfig = path.TimeConfig()
  independent_times: float = 0.0  # share of rows with a time for audio of its own
  drop: conditioning.DropConfig = conditioning.DropConfig()


def squared_error(v: AV, target: AV, weights: AV) -> AV:
  """Weighted mean squared error of each row, fp32 [b]; exactly 0 where a row has no weight."""

  def one(v, target, weights):
    if v is None:
      return None
    total = sum(jnp.sum(w * (a - b) ** 2, range(1, a.ndim)) for a, b, w in zip(v, target, weights))
    size = sum(jnp.sum(jnp.broadcast_to(w, a.shape), range(1, a.ndim)) for a, w in zip(v, weights))
    return jnp.where(size > 0, total / jnp.maximum(size, 1e-9), 0)

  return AV(*map(one, v, target, weights))


def row_weights(weights: AV) -> AV:
  """Each row's share in the mean of its modality: 1 / rows that have it, 0 for those without."""

  def one(weights):
    if weights is None:
      return None
    has = sum(jnp.sum(w, range(1, w.ndim)) for w in weights) > 0
    return has / jnp.maximum(jnp.sum(has), 1)

  return AV(*map(one, weights))


def draw(key: jax.Array, batch: Batch, config: Config) -> tuple[AV, AV, Condition]:
  """All that is random in a row's loss: its times, its noise and what it is told."""
  t = path.sample_times(
    prng.named(key, 'time'),
    batch.cond.text.shape[0],
    AV(config.video_time, config.audio_time),
    config.independent_times,
  )
  if batch.clean is not None:  # What is given whole stands at its end: z_1 is the data.
    t = AV(*(jnp.where(clean, 1.0, time) for clean, time in zip(batch.clean, t)))
  noise = path.noise_like(prng.named(key, 'noise'), batch.latents)
  return t, noise, conditioning.drop(prng.named(key, 'drop'), batch.cond, config.drop)


def per_example(model, batch: Batch, drawn) -> AV:
  """AV of fp32 [b]: the loss of each row with what was drawn for it."""
  t, noise, cond = drawn
  v = model(path.interpolate(t, batch.latents, noise), t, cond)
  return squared_error(v, path.velocity(batch.latents, noise), batch.weights)
