"""Classifier-free guidance with one scale per modality and per condition.

  v = v_cond + sum over conditions of (scale - 1) (v_cond - v_without)

Scale 1 is the conditional model; a condition whose scales are all 1 costs nothing.  Rescaled
(arXiv 2305.08891, section 3.4), v has the standard deviation of v_cond, or a part of the way.
"""

from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp

from sr4.core import sharding
from sr4.core.av import AV
from sr4.core.batch import Condition
from sr4.flow import conditioning


@dataclasses.dataclass(frozen=True)
class Scales:
  text: AV = AV(4.0, 4.0)  # how much each modality follows the prompt
  modality: AV = AV(1.0, 1.0)  # how much it follows the other modality
  references: AV = AV(1.0, 1.0)  # how much it follows them
  rescale: float = 0.0  # 1: all of the way


def guided(
  model: Callable, cond: Condition, scales: Scales, negative: AV = AV(None, None)
) -> Callable[[AV, AV], AV]:
  """(x_t, t) -> velocity.

  Args:
    negative: AV of (embeddings [b m e], bool [b m]) of what each modality is guided away from, in
      place of no prompt; where there is none for sound, it is what there is for video.
  """
  told = lambda of: dataclasses.replace(cond, text=of[0], text_valid=of[1])
  prompt = told(negative.video) if negative.video else conditioning.without_text(cond)
  alone, bare = conditioning.without_modality(cond), conditioning.without_references(cond)
  conditions = (
    (scales.text, AV(prompt, told(negative.audio) if negative.audio else prompt)),
    (scales.modality, AV(alone, alone)),
    (scales.references, AV(bare, bare)),
  )

  # What both modalities are without is run once.
  apart = {id(cond): cond}
  for scales_of, withouts in conditions:
    apart |= {id(of): of for of, scale in zip(withouts, scales_of) if scale != 1}

  def velocity(x: AV, t: AV) -> AV:
    """x: latents with rows; t: one scalar per modality."""
    t = AV(*(sharding.over_rows(time, cond.text.shape[0]) for time in t))
    found = dict(zip(apart, of_each(model, x, t, list(apart.values()))))
    v_cond = v = found[id(cond)]
    for scales_of, withouts in conditions:
      v = AV(
        *(
          v[i] if scale == 1 else pushed(v[i], v_cond[i], found[id(without)][i], scale)
          for i, (without, scale) in enumerate(zip(withouts, scales_of))
        )
      )
    return jax.tree.map(lambda a, b: rescaled(a, b, scales.rescale), v, v_cond)

  return velocity


def of_each(model: Callable, x: AV, t: AV, conditions: list[Condition]) -> list[AV]:
  """The model's velocities of the same latents under each condition.

  On a mesh they are rows of one batch, so that weights are collected once; on one device, where
  there is nothing to collect, one follows the other in the memory of one.
  """
  count = len(conditions)
  if count == 1 or sharding.axis_size(*sharding.AXES) == 1:
    return [model(x, t, condition) for condition in conditions]
  # Copies of a row lie side by side, so that none changes its device.
  beside = sharding.on_rows(lambda *xs: jnp.stack(xs, 1).reshape(-1, *xs[0].shape[1:]))
  v = model(*jax.tree.map(beside, *[(x, t, condition) for condition in conditions]))
  split = lambda a, i: a.reshape(-1, count, *a.shape[1:])[:, i]
  part = lambda i: sharding.on_rows(lambda a: split(a, i))
  return [jax.tree.map(part(i), v) for i in range(count)]


def pushed(v, v_cond, away, scale: float):
  """v + (scale - 1) (v_cond - away), for one modality."""
  return jax.tree.map(lambda v, c, w: v + (scale - 1) * (c - w), v, v_cond, away)


def rescaled(v, v_cond, share: float):
  """v [b ...] with a standard deviation that is, by this share, v_cond's, row by row."""
  if not share:
    return v
  std = lambda x: jnp.std(x, range(1, x.ndim), keepdims=True)
  return v * (1 + share * (std(v_cond) / std(v) - 1))
