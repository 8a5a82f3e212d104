"""Classifier-free guidance with one scale per modality and per condition.

  v = v_cond + sum over conditions of (scale - 1) (v_cond - v_without)

Scale 1 is the conditional model; a condition whose scales are all 1 costs nothing.
"""

from collections.abc import Callable
import dataclasses

import jax

from sr4.core import sharding
from sr4.core.av import AV
from sr4.core.batch import Condition
from sr4.flow import conditioning


@dataclasses.dataclass(frozen=True)
class Scales:
  text: AV = AV(4.0, 4.0)  # how much each modality follows the prompt
  modality: AV = AV(1.0, 1.0)  # how much it follows the other modality


def guided(
  model: Callable, cond: Condition, scales: Scales, negative: Condition | None = None
) -> Callable[[AV, AV], AV]:
  """(x_t, t) -> velocity.  `negative` stands for the empty prompt, to be guided away from."""
  conditions = (
    (scales.text, negative or conditioning.without_text(cond)),
    (scales.modality, conditioning.without_modality(cond)),
  )

  def velocity(x: AV, t: AV) -> AV:
    """x: latents with rows; t: one scalar per modality."""
    t = AV(*(sharding.over_rows(time, cond.text.shape[0]) for time in t))
    v_cond = v = model(x, t, cond)
    for scale, without in conditions:
      if scale != AV(1.0, 1.0):
        away = model(x, t, without)
        v = AV(*map(pushed, v, v_cond, away, scale))
    return v

  return velocity


def pushed(v, v_cond, away, scale: float):
  """v + (scale - 1) (v_cond - away), for one modality."""
  return jax.tree.map(lambda v, c, w: v + (scale - 1) * (c - w), v, v_cond, away)
