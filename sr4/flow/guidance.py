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

  def velocity(x: AV, t: AV) -> AV:
    """x: latents with rows; t: one scalar per modality."""
    t = AV(*(sharding.over_rows(time, cond.text.shape[0]) for time in t))
    v_cond = v = model(x, t, cond)
    for scales_of, withouts in conditions:
      away = {}  # Velocities without it; what both modalities are without is run once.
      for without, scale in zip(withouts, scales_of):
        if scale != 1 and id(without) not in away:
          away[id(without)] = model(x, t, without)
      v = AV(
        *(
          v[i] if scale == 1 else pushed(v[i], v_cond[i], away[id(without)][i], scale)
          for i, (without, scale) in enumerate(zip(withouts, scales_of))
        )
      )
    return jax.tree.map(lambda a, b: rescaled(a, b, scales.rescale), v, v_cond)

  return velocity


def pushed(v, v_cond, away, scale: float):
  """v + (scale - 1) (v_cond - away), for one modality."""
  return jax.tree.map(lambda v, c, w: v + (scale - 1) * (c - w), v, v_cond, away)


def rescaled(v, v_cond, share: float):
  """v [b ...] with a standard deviation that is, by this share, v_cond's, row by row."""
  if not share:
    return v
  std = lambda x: jnp.std(x, range(1, x.ndim), keepdims=True)
  return v * (1 + share * (std(v_cond) / std(v) - 1))
