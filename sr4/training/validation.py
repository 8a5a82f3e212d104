"""Held-out losses: the same clips, times and noise each time, nothing dropped."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from sr4.core import prng
from sr4.core import sharding
from sr4.flow import conditioning
from sr4.flow import loss as flow_loss


@dataclasses.dataclass(frozen=True)
class Config:
  """When and on what; every = 0: never."""

  every: int = 0  # steps
  batches: int = 4  # of each bucket
  root: str = ''  # where data.root's folders have their held-out counterparts

  def __post_init__(self):
    if self.every < 0 or self.batches < 1:
      raise ValueError(
        f'validate.every={self.every} must be 0 (never) or more, and validate.batches='
        f'{self.batches} 1 or more'
      )


class HeldOut:
  """model -> {'held_out/video/BUCKET': loss, ..., 'held_out/video': their mean}.

  Args:
    load: a Loader; its cycle is what is looked at.
  """

  def __init__(self, system, flow: flow_loss.Config, load, key: jax.Array):
    none = conditioning.DropConfig(text=0.0, references=0.0, modality=0.0)
    flow = dataclasses.replace(flow, drop=none)
    self.system, self.load, self.key = system, load, prng.named(key, 'held_out')
    self.losses = [jax.jit(functools.partial(losses, b.size, flow)) for b in load.schedule.buckets]

  def __call__(self, model) -> dict[str, float]:
    sums = {}
    for step, bucket, clips in self.load(0, self.load.schedule.cycle):
      key = prng.named(self.key, 'step', step)
      told = self.losses[bucket](self.system, model, key, sharding.rows(clips))
      name = self.load.schedule.buckets[bucket].name
      for modality, (total, rows) in jax.device_get(told).items():
        for place in (f'held_out/{modality}/{name}', f'held_out/{modality}'):
          before = sums.get(place, (0.0, 0.0))
          sums[place] = before[0] + float(total), before[1] + float(rows)
    return {name: total / rows for name, (total, rows) in sums.items() if rows}


def losses(size, flow, system, model, key, clips) -> dict:
  """{modality: (sum of the rows' losses, rows that have it)}."""
  batch = conditioning.encode(system.codecs, size, system.config.patch, system.embedded(clips))
  per = flow_loss.per_example(model, batch, flow_loss.draw(key, batch, flow))
  weights = flow_loss.row_weights(batch.weights)
  return {
    name: (jnp.sum(loss), jnp.sum(w > 0))
    for name, loss, w in zip(per._fields, per, weights)
    if loss is not None
  }
