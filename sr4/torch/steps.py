"""Latents from noise, step by step, in torch: sr4/steps.py with the schedulers of diffusers.

Latents are AV of tuples, one for each segment that is made: the clip, its keyframes; the sound.
"""

import dataclasses

import numpy as np
import torch

from sr4.core.av import AV
from sr4.core.batch import Condition


def placed(x, device):
  """A tree of dataclasses, tuples and tensors, on a device."""
  if isinstance(x, torch.Tensor):
    return x.to(device)
  if isinstance(x, AV):
    return AV(*(placed(part, device) for part in x))
  if isinstance(x, tuple):
    return tuple(placed(part, device) for part in x)
  if dataclasses.is_dataclass(x):
    fields = {f.name: placed(getattr(x, f.name), device) for f in dataclasses.fields(x)}
    return dataclasses.replace(x, **fields)
  return x


def shapes(cond: Condition, sound: tuple[int, int]) -> AV:
  """Of what is made, without rows; `sound`: (l, c)."""
  video, audio = cond.segments
  return AV(
    video and tuple(tuple(s.known.shape[1:]) for s in video if s.generated),
    audio and (sound,),
  )


def noise(rows: int, of: AV, generator: torch.Generator | None, given: AV | None) -> AV:
  """fp32 of these shapes, the generator's where none is given.

  Raises:
    ValueError: what is given has other shapes; or several generators.
  """
  if not isinstance(generator, torch.Generator | None):
    kind = type(generator).__name__
    raise ValueError(f'generator is a {kind}; give one torch.Generator, which draws for all rows')
  device = generator.device if generator else 'cpu'
  draw = lambda shape: torch.randn(rows, *shape, generator=generator, device=device)
  given = AV(None, None) if given is None else given
  if isinstance(given, AV):
    own = lambda like, mine: tuple(map(draw, like)) if mine is None else mine
    given = AV(*(like and own(like, mine) for like, mine in zip(of, given)))
  return checked(given, AV(*(like and tuple((rows, *shape) for shape in like) for like in of)))


def checked(latents, shapes: AV) -> AV:
  """Latents in fp32, ValueError where they are no AV of tuples of these shapes."""
  lists = isinstance(latents, AV) and all(isinstance(z, tuple | list | None) for z in latents)
  found = lists and AV(*(z and tuple(tuple(np.shape(part)) for part in z) for z in latents))
  if found != shapes:
    raise ValueError(
      f'latents are {found or type(latents).__name__}; here they must be {shapes}, AV of tuples'
    )
  return AV(*(z and tuple(torch.as_tensor(part).float() for part in z) for z in latents))


def begin(schedulers: AV, steps: int, strength: float, device):
  """The schedulers at their first step, from noise of this strength."""
  if steps < 1:
    raise ValueError(f'num_inference_steps={steps} must be at least 1')
  if not 0 < strength <= 1:
    raise ValueError(f'strength={strength} must be above 0 and at most 1')
  for scheduler in schedulers:
    scheduler.set_timesteps(sigmas=np.linspace(1, 0, steps + 1)[:-1], device=device)
    scheduler.sigmas = scheduler.sigmas * strength
    scheduler.timesteps = scheduler.timesteps * strength


def advance(velocity, schedulers: AV, i: int, x: AV, clean: AV) -> AV:
  """Step i.  A scheduler's sigma is 1 - t, and the output it takes is minus our velocity.

  Args:
    clean: AV of bool: this modality stays as it is, at t = 1.
  """
  made = [m for m in range(2) if x[m] and not clean[m]]
  like = next(z for z in x if z)[0]
  t = torch.ones(2, len(like), device=like.device)
  for m in made:
    t[m] = 1 - schedulers[m].sigmas[i]
  v, later = velocity(x, AV(*t)), list(x)
  for m in made:
    later[m] = stepped(schedulers[m], i, v[m], x[m])
  return AV(*later)


def stepped(scheduler, i: int, v: tuple, x: tuple) -> tuple:
  """All segments of a modality in one step: a scheduler counts its steps."""
  flat = lambda parts: torch.cat([part.flatten(1) for part in parts], 1)
  (y,) = scheduler.step(-flat(v), scheduler.timesteps[i], flat(x), return_dict=False)
  parts = y.split([part[0].numel() for part in x], 1)
  return tuple(part.reshape(like.shape) for part, like in zip(parts, x))
