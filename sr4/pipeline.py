"""Prompts in, clips out: the model, its codecs and its text encoder in one call."""

from collections.abc import Sequence
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from sr4.convert import weights
from sr4.core import captions
from sr4.core import sharding
from sr4.core import tree
from sr4.core.av import AV
from sr4.core.batch import Size
from sr4.core.prompt import Prompt
from sr4.flow import conditioning
from sr4.flow import guidance
from sr4.flow import path
from sr4.flow import segments
from sr4.flow import solver
from sr4.models import system as system_lib
from sr4.models.text import encoder
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
  frames: np.ndarray | None  # uint8 [T H W 3]; None: the size has no frames
  samples: np.ndarray | None  # float32 [n channels]; None: the size has no sound
  keyframes: np.ndarray | None  # uint8 [k H*scale W*scale 3]; None: the size has no keyframes
  latents: dict[str, np.ndarray]  # float32 'video' [t h w c], 'keyframes', 'audio' [l c]


class Pipeline:
  """(prompts, seeds) -> clips, for one size and one way to sample."""

  def __init__(self, system: system_lib.System, model, size: Size, config: Config = Config()):
    self.system, self.model, self.size, self.config = system, model, size, config

  def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Clip]:
    """One clip per prompt; a clip depends on its prompt and seed, not on its neighbours.

    In a pod all hosts call it together, and each gets the clips of its own prompts.
    """
    prompts, seeds = list(prompts), list(seeds)
    if len(prompts) != len(seeds) or not prompts:
      raise ValueError(f'{len(prompts)} prompts and {len(seeds)} seeds; give one seed per prompt')
    extra = -len(prompts) % sharding.axis_size(*sharding.DP)
    read = [Prompt(prompt) for prompt in prompts + [''] * extra]
    for prompt in prompts:
      captions.check_references(prompt, ())
    text, valid = self.system.text.read(read, self.size)
    seeds_array = np.array(seeds + [0] * extra, np.uint32)
    latents = generate(
      self.system, self.size, self.config, self.model, *sharding.rows((text, valid, seeds_array))
    )
    media = own_rows(decode(self.system, self.size, latents))
    latents = own_rows(named(self.size, latents))
    return [
      Clip(
        prompt,
        **{name: None if x is None else x[i] for name, x in media.items()},
        latents={name: x[i] for name, x in latents.items()},
      )
      for i, prompt in enumerate(prompts)
    ]


@functools.partial(jax.jit, static_argnums=(1, 2))
def generate(system, size: Size, c: Config, model, text, text_valid, seeds) -> AV:
  """Latents, AV of tuples of [b t h w c] and [b l c], one for each generated segment."""
  rows = text_valid.shape[0]
  present = AV(*(sharding.over_rows(True, rows) for _ in range(2)))
  at = segments.keyframes_at(size, system.codecs.video.time_factor)
  cond = conditioning.condition(
    system.codecs,
    size,
    model.config.patch,
    encoder.embedded(system.text, text),
    text_valid,
    present,
    at=sharding.over_rows(jnp.array(at, jnp.int32), rows),
  )
  scales = guidance.Scales(
    text=AV(c.video_guidance_scale, c.audio_guidance_scale),
    modality=AV(c.modality_scale, c.modality_scale),
  )
  shapes = segments.latent_shapes(system.codecs, size)

  def draw(seed):
    like = AV(*(tuple(map(jnp.zeros, of)) or None for of in shapes))
    return path.noise_like(jax.random.key(seed), like)

  noise = jax.vmap(draw)(seeds)
  times = solver.times(c.num_inference_steps, AV(c.shift, c.audio_shift))
  return solver.SOLVERS[c.solver](guidance.guided(model, cond, scales), noise, times)


@functools.partial(jax.jit, static_argnums=1)
def decode(system, size: Size, latents: AV) -> dict:
  """The media fields of a Clip, with rows."""
  of, video, audio = named(size, latents), system.codecs.video, system.codecs.audio
  media = dict(frames=None, samples=None, keyframes=None)
  if size.frames:
    media['frames'] = segments.to_uint8(segments.decoded(video, of['video']))
  if size.keyframes:
    media['keyframes'] = segments.to_uint8(segments.decoded(video, of['keyframes'], each=True))
  if size.samples:
    heard = lambda audio, z: audio.decode(z, samples=size.samples)
    media['samples'] = sharding.on_rows(heard)(audio, of['audio'])
  return media


def named(size: Size, latents: AV) -> dict:
  """The latents of each generated segment, by name."""
  names = [n for n, has in (('video', size.frames), ('keyframes', size.keyframes)) if has]
  return dict(zip(names, latents.video or ())) | dict(zip(('audio',), latents.audio or ()))


def own_rows(tree):
  """What this host's rows have become (see sharding.rows), on the host."""

  def fetch(x):
    x = jax.reshard(x, sharding.ROWS)
    parts = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([parts[at] for at in sorted(parts)])

  return jax.tree.map(fetch, tree)


def load(directory: str, step: int | None = None, ema: bool = True):
  """(system, model, config as trained) from a folder of checkpoints.

  Raises:
    CheckpointError: there is no such checkpoint, or it is broken.
  """
  step, page = checkpoint.page(directory, step)
  system = system_lib.build(page['config'])
  # A cache has what was trained on; a prompt is new.
  system = weights.load(dataclasses.replace(system, text=encoder.bare(system.text)))
  like = tree.abstract(system.model, jax.random.key(0))
  model = checkpoint.restore(directory, step, like, 'ema.' if ema else 'model.')
  return system, model, page['config']


def size_of(system: system_lib.System, trained: dict, **changes) -> Size:
  """The size of clips that the model was trained on most, with changes and without references."""
  buckets = trained['data']['buckets'].values()
  most = max(buckets, key=lambda b: (b.get('frames', 0) > 1, b.get('weight', 1.0)))
  kept = ('frames', 'height', 'width', 'fps', 'sound', 'seconds', 'keyframes', 'keyframe_scale')
  return system.size(**{name: most[name] for name in kept if name in most} | changes)
