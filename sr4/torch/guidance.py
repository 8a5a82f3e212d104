"""Guidance of a sampler in torch: sr4/flow/guidance.py and conditioning.py, number by number."""

from collections.abc import Callable
import dataclasses

import torch

from sr4.core.av import AV
from sr4.core.batch import Condition


def guided(model, cond: Condition, conditions) -> Callable[[AV, AV], AV]:
  """(x, t) -> velocity, as sr4/flow/guidance.py.

  Args:
    conditions: pairs of an AV of scales and the condition without what they scale.
  """

  def run(x: AV, t: AV, cond) -> AV:
    told = AV(*(None if z is None else (z,) for z in x))
    return AV(*(v and v[0] for v in model(told, t, cond)))

  def velocity(x: AV, t: AV) -> AV:
    v_cond = v = run(x, t, cond)
    for scales, without in conditions:
      if all(scale == 1 for scale, z in zip(scales, x) if z is not None):
        continue
      away = run(x, t, without)
      push = lambda v, c, w, scale: None if v is None else v + (scale - 1) * (c - w)
      v = AV(*map(push, v, v_cond, away, scales))
    return v

  return velocity


def kept(cond: Condition, x: AV) -> AV:
  """The latents that were made, but those that were wholly known."""
  clip = cond.segments.video[-1]
  return x._replace(video=torch.where(clip.mask == 1, clip.known, x.video))


def alone(cond: Condition) -> Condition:
  """Each branch alone."""
  return dataclasses.replace(cond, present=AV(*(torch.zeros_like(p) for p in cond.present)))


def bare(cond: Condition) -> Condition:
  """Without references."""
  one = lambda s: s if s.generated else dataclasses.replace(s, valid=torch.zeros_like(s.valid))
  of = lambda segments: segments and tuple(map(one, segments))
  return dataclasses.replace(cond, segments=AV(*map(of, cond.segments)))
