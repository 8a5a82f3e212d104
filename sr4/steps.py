"""Latents from noise, step by step.

  carry, steps, times, told = begin(system, size, config, clean, clips, seeds, negative)
  carry, states = advance(config, model, carry, given, told, states)    for the `given` of each step
  latents = kept(told.cond, carry[0])

Each is one program; the loop between them is the caller's, who may look, change and stop.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from sr4.core.av import AV
from sr4.core.batch import Clips
from sr4.core.batch import Condition
from sr4.core.batch import Size
from sr4.flow import conditioning
from sr4.flow import guidance
from sr4.flow import path
from sr4.flow import segments
from sr4.flow import solver
from sr4.models import reuse
from sr4.models.text import encoder

SENSITIVE = 10  # times as much as video sound suffers from layers that are not run


@dataclasses.dataclass(frozen=True)
class Config:
  """How to sample.  The names are the request's (docs of the product)."""

  num_inference_steps: int = 30
  video_guidance_scale: float = 4.0
  audio_guidance_scale: float = 4.0
  modality_scale: float = 1.0  # how much each modality follows the other
  reference_scale: float = 1.0  # how much both follow references
  guidance_rescale: float = 0.0  # 1: guided velocities are spread as those of the model
  shift: float = 1.0
  audio_shift: float = 1.0
  solver: str = 'euler'
  decode_tile: int = 0  # pixels of a side above which a clip is decoded tile by tile; 0: never
  # How far video's tokens may drift before layers run again (models/reuse.py); sound's a tenth.
  cache_threshold: float = 0.0
  strength: float = 1.0  # of the noise a Refiner begins with; below 1 the enlarged clip is in it

  def __post_init__(self):
    for name, value in vars(self).items():
      if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f'{name}={value} must be a finite number')
    if self.num_inference_steps < 1:
      raise ValueError(f'num_inference_steps={self.num_inference_steps} must be at least 1')
    if self.solver not in solver.SOLVERS:
      raise ValueError(f'solver={self.solver!r} is not among {sorted(solver.SOLVERS)}')
    if self.shift <= 0 or self.audio_shift <= 0:
      raise ValueError(f'shift={self.shift} and audio_shift={self.audio_shift} must be above 0')
    if self.decode_tile < 0:
      raise ValueError(f'decode_tile={self.decode_tile} must be a number of pixels, or 0')
    if self.cache_threshold < 0:
      raise ValueError(f'cache_threshold={self.cache_threshold} must be 0 or above')
    if self.cache_threshold and self.solver == 'heun':
      raise ValueError(
        "cache_threshold goes with solver='euler' or 'unipc': heun looks twice a step"
      )
    if not 0 < self.strength <= 1:
      raise ValueError(f'strength={self.strength} must be above 0 and at most 1')


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Told:
  """What velocities follow, the same in all steps."""

  cond: Condition
  negative: AV  # as `guidance.guided` takes it
  held: tuple | None  # of a sound that goes on: (bool [b l 1], where; the velocity there, [b l c])


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def begin(system, size: Size, c: Config, clean: AV, clips: Clips, seeds, negative: AV):
  """(what goes from step to step, noise first; what each is given; times, AV of [steps + 1]; Told).

  Args:
    clean: AV of bool: this modality is given, and stays as it is.
    clips: with what the text encoder makes embeddings of; negative: as `guidance.guided` takes it,
      but for that.
  """
  clips = system.embedded(clips)
  latents = conditioning.coded(system.codecs, size, clips)
  cond = conditioning.condition(system.codecs, size, system.config.patch, clips, latents)
  negative = AV(*(of and (encoder.embedded(system.text, of[0]), of[1]) for of in negative))
  shapes = segments.latent_shapes(system.codecs, size)

  def draw(seed):
    like = AV(*(tuple(map(jnp.zeros, of)) or None for of in shapes))
    return path.noise_like(jax.random.key(seed), like)

  x = noise = jax.vmap(draw)(seeds)
  times = solver.times(c.num_inference_steps, AV(c.shift, c.audio_shift))
  if size.low and c.strength < 1:  # From where noise of this strength has the enlarged clip in it.
    start = AV(*(jnp.float32(1 - c.strength) for _ in range(2)))
    times = AV(*(1 - c.strength * (1 - t) for t in times))
    x = path.interpolate(start, AV((cond.segments.video[-1].known,), None), x)
  # What is clean is data from the first step to the last.
  times = AV(*(jnp.ones_like(t) if whole else t for t, whole in zip(times, clean)))
  given = AV((latents.video,), (latents.audio,))
  x = AV(*(data if whole else z for data, z, whole in zip(given, x, clean)))
  held = None
  if clips.heard is not None:
    held = holding(system.codecs.audio, clips.heard, latents.audio, noise.audio[0])
  carry, steps = solver.SOLVERS[c.solver].begin(x, times)
  return carry, steps, times, Told(cond, negative, held)


@functools.partial(jax.jit, static_argnums=0)
def advance(c: Config, model, carry, given, told: Told, states: tuple[reuse.State, ...] = ()):
  """One step of what `begin` began: (carry, states)."""
  cache = None
  if c.cache_threshold:
    cache = reuse.Reuse(AV(c.cache_threshold, c.cache_threshold / SENSITIVE), states)
    model = functools.partial(model, around=cache)
  scales = guidance.Scales(
    text=AV(c.video_guidance_scale, c.audio_guidance_scale),
    modality=AV(c.modality_scale, c.modality_scale),
    references=AV(c.reference_scale, c.reference_scale),
    rescale=c.guidance_rescale,
  )
  guided = guidance.guided(model, told.cond, scales, told.negative)

  def velocity(x: AV, t: AV) -> AV:
    v = guided(x, t)
    if told.held is None:
      return v
    where, there = told.held
    return v._replace(audio=(jnp.where(where, there, v.audio[0]),))

  carry = solver.SOLVERS[c.solver].step(velocity, carry, given)
  return carry, cache.kept if cache else ()


@functools.partial(jax.jit, static_argnums=0)
def again(c: Config, x: AV, times: AV):
  """(carry, steps) as `begin` gives them, from latents that no step has made."""
  return solver.SOLVERS[c.solver].begin(x, times)


@jax.jit
def ahead(x: AV, later: AV, start: AV, end: AV) -> AV:
  """The data to which the line from x at start to later at end leads."""
  reach = AV(
    *(jnp.where(e > s, (1 - e) / jnp.where(e > s, e - s, 1), 0) for s, e in zip(start, end))
  )
  return path.each(lambda far, x, z: z + far * (z - x), reach, x, later)


def holding(codec, heard, data, noise):
  """(bool [b l 1], the velocity [b l c]) that lead a sound, where it is given, there from noise."""
  rate, length = codec.sample_rate / codec.rate, data.shape[1]
  begins = np.floor(np.arange(length) * rate).astype(int)
  ends = np.minimum(np.ceil(np.arange(1, length + 1) * rate).astype(int), heard.shape[1]) - 1
  return (heard[:, begins] & heard[:, ends])[..., None], data - noise


@jax.jit
def kept(cond: Condition, x: AV) -> AV:
  """The latents that were made, but those that were wholly known."""
  told = [segment for segment in cond.segments.video or () if segment.generated]
  made = zip(told, x.video or ())
  return x._replace(video=tuple(jnp.where(of.mask == 1, of.known, z) for of, z in made) or None)
