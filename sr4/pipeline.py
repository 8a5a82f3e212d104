"""Prompts in, clips out: the model, its codecs and its text encoder in one call."""

from collections.abc import Sequence
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from sr4.core import sharding
from sr4.core import tree
from sr4.core.av import AV
from sr4.core.batch import Size
from sr4.flow import conditioning
from sr4.flow import guidance
from sr4.flow import path
from sr4.flow import solver
from sr4.models import system as system_lib
from sr4.training import checkpoint


@dataclasses.dataclass(frozen=True)
class Config:
  """How to sample.  The names are the request's (docs of the product)."""

  num_inference_steps: int = 30
  video_guidance_scale: float = 4.0
  audio_guidance_scale: float = 4.0
  modality_scale: float = 1.0  # how much each modality follows the other
  shift: float = 1.0
  audio_shift: float = 1.0
  solver: str = 'euler'

  def __post_init__(self):
    if self.num_inference_steps < 1:
      raise ValueError(f'num_inference_steps={self.num_inference_steps} must be at least 1')
    if self.solver not in solver.SOLVERS:
      raise ValueError(f'solver={self.solver!r} is not among {sorted(solver.SOLVERS)}')
    if self.shift <= 0 or self.audio_shift <= 0:
      raise ValueError(f'shift={self.shift} and audio_shift={self.audio_shift} must be above 0')


@dataclasses.dataclass(frozen=True)
class Clip:
  """One generated clip."""

  prompt: str
  frames: np.ndarray  # uint8 [T H W 3]
  samples: np.ndarray  # float32 [n channels]
  latents: dict[str, np.ndarray]  # float32 'video' [t h w c], 'audio' [l c]


class Pipeline:
  """(prompts, seeds) -> clips, for one size and one way to sample."""

  def __init__(self, system: system_lib.System, model, size: Size, config: Config = Config()):
    self.system, self.model, self.size, self.config = system, model, size, config

  def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Clip]:
    """One clip per prompt; a clip depends on its prompt and seed, not on its neighbours."""
    prompts, seeds = list(prompts), list(seeds)
    if len(prompts) != len(seeds) or not prompts:
      raise ValueError(f'{len(prompts)} prompts and {len(seeds)} seeds; give one seed per prompt')
    extra = -len(prompts) % sharding.axis_size(*sharding.DP)
    text, valid = self.system.text(prompts + [''] * extra)
    seeds_array = np.array(seeds + [0] * extra, np.uint32)
    latents = generate(
      self.system, self.size, self.config, self.model, *sharding.rows((text, valid, seeds_array))
    )
    frames, samples = decode(self.system, self.size, latents)
    (video,), (audio,) = jax.device_get(latents)
    frames, samples = jax.device_get((frames, samples))
    return [
      Clip(prompt, frames[i], samples[i], {'video': video[i], 'audio': audio[i]})
      for i, prompt in enumerate(prompts)
    ]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def generate(system, size: Size, c: Config, model, text, text_valid, seeds) -> AV:
  """Latents, AV of 1-tuples: [b t h w c] and [b l c]."""
  rows = text.shape[0]
  present = AV(*(sharding.over_rows(True, rows) for _ in range(2)))
  cond = conditioning.condition(system.codecs, size, model.config.patch, text, text_valid, present)
  scales = guidance.Scales(
    text=AV(c.video_guidance_scale, c.audio_guidance_scale),
    modality=AV(c.modality_scale, c.modality_scale),
  )
  shapes = AV(
    system.codecs.video.latent_shape(size.frames, size.height, size.width),
    (system.codecs.audio.latent_length(size.samples), system.codecs.audio.channels),
  )

  def draw(seed):
    return path.noise_like(jax.random.key(seed), AV(*((jnp.zeros(shape),) for shape in shapes)))

  noise = jax.vmap(draw)(seeds)
  times = solver.times(c.num_inference_steps, AV(c.shift, c.audio_shift))
  return solver.SOLVERS[c.solver](guidance.guided(model, cond, scales), noise, times)


@functools.partial(jax.jit, static_argnums=(0, 1))
def decode(system, size: Size, latents: AV):
  """uint8 [b T H W 3] and float32 [b n channels]."""
  (video,), (audio,) = latents
  frames = sharding.on_rows(system.codecs.video.decode)(video)
  samples = sharding.on_rows(functools.partial(system.codecs.audio.decode, samples=size.samples))(
    audio
  )
  return conditioning.to_uint8(frames), samples


def load(directory: str, step: int | None = None, ema: bool = True):
  """(system, model, config as trained) from a folder of checkpoints.

  Raises:
    CheckpointError: there is no such checkpoint, or it is broken.
  """
  step, page = checkpoint.page(directory, step)
  system = system_lib.build(page['config'])
  like = tree.abstract(system.model, jax.random.key(0))
  model = checkpoint.restore(directory, step, like, 'ema.' if ema else 'model.')
  return system, model, page['config']


def size_of(system: system_lib.System, trained: dict, **changes) -> Size:
  """The size that the model was trained on most, with changes."""
  most = max(trained['data']['buckets'].values(), key=lambda b: b.get('weight', 1.0))
  fields = {name: most[name] for name in ('frames', 'height', 'width', 'fps')} | changes
  return system.size(**fields)
