"""Guidance of a sampler in torch: sr4/flow/guidance.py and conditioning.py, number by number."""

from collections.abc import Callable
import dataclasses

import torch

from sr4.core.av import AV
from sr4.core.batch import Condition


def guided(model, cond: Condition, conditions, rescale: float = 0.0) -> Callable[[AV, AV], AV]:
  """(x, t) -> velocity, AV of tuples, as sr4/flow/guidance.py.

  Args:
    model: an MMDiT.
    conditions: pairs of an AV of scales and an AV of the conditions without what they scale.
  """
  made = [m for m in range(2) if cond.segments[m] is not None]
  apart = {id(cond): cond}  # What both modalities are without is run once.
  for scales, withouts in conditions:
    apart |= {id(withouts[m]): withouts[m] for m in made if scales[m] != 1}

  def velocity(x: AV, t: AV) -> AV:
    found = {}
    for i, (name, of) in enumerate(apart.items()):
      with model.cache_context(str(i)):  # What a cache of diffusers keeps is of one condition.
        found[name] = model(x, t, of)
    v_cond, v = found[id(cond)], list(found[id(cond)])
    for scales, withouts in conditions:
      for m in made:
        if scales[m] != 1:
          parts = zip(v[m], v_cond[m], found[id(withouts[m])][m])
          v[m] = tuple(v + (scales[m] - 1) * (c - w) for v, c, w in parts)
    for m in made:
      v[m] = tuple(rescaled(a, b, rescale) for a, b in zip(v[m], v_cond[m]))
    return AV(*v)

  return velocity


def rescaled(v, v_cond, share: float):
  """v [b ...] with a standard deviation that is, by this share, v_cond's, row by row."""
  if not share:
    return v
  std = lambda x: x.std(tuple(range(1, x.ndim)), correction=0, keepdim=True)
  return v * (1 + share * (std(v_cond) / std(v) - 1))


def kept(cond: Condition, x: AV) -> AV:
  """The latents that were made, but those that were wholly known."""
  told = [segment for segment in cond.segments.video or () if segment.generated]
  made = zip(told, x.video or ())
  return x._replace(video=tuple(torch.where(of.mask == 1, of.known, z) for of, z in made) or None)


def untold(cond: Condition) -> Condition:
  """Without a prompt."""
  return dataclasses.replace(cond, text_valid=torch.zeros_like(cond.text_valid))


def alone(cond: Condition) -> Condition:
  """Each branch alone."""
  return dataclasses.replace(cond, present=AV(*(torch.zeros_like(p) for p in cond.present)))


def bare(cond: Condition) -> Condition:
  """Without references."""
  one = lambda s: s if s.generated else dataclasses.replace(s, valid=torch.zeros_like(s.valid))
  of = lambda segments: segments and tuple(map(one, segments))
  return dataclasses.replace(cond, segments=AV(*map(of, cond.segments)))
