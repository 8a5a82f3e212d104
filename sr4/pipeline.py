"""Prompts in, clips out: the model, its codecs and its text encoder in one call."""

from collections.abc import Sequence
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from sr4.convert import weights
from sr4.core import captions
from sr4.core import config as config_lib
from sr4.core import sharding
from sr4.core import tree
from sr4.core.av import AV
from sr4.core.batch import Latents
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
  strength: float = 1.0  # of the noise a Refiner begins with; below 1 the enlarged clip is in it

  def __post_init__(self):
    if self.num_inference_steps < 1:
      raise ValueError(f'num_inference_steps={self.num_inference_steps} must be at least 1')
    if self.solver not in solver.SOLVERS:
      raise ValueError(f'solver={self.solver!r} is not among {sorted(solver.SOLVERS)}')
    if self.shift <= 0 or self.audio_shift <= 0:
      raise ValueError(f'shift={self.shift} and audio_shift={self.audio_shift} must be above 0')
    if not 0 < self.strength <= 1:
      raise ValueError(f'strength={self.strength} must be above 0 and at most 1')


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

  def __call__(
    self, prompts: Sequence[str], seeds: Sequence[int], low: Sequence[Clip] = ()
  ) -> list[Clip]:
    """One clip per prompt; a clip depends on its prompt and seed, not on its neighbours.

    In a pod all hosts call it together, and each gets the clips of its own prompts.

    Args:
      low: where the model is a Refiner, the clips of a base model that it makes larger.  Their
        sound goes with them.
    """
    prompts, seeds = list(prompts), list(seeds)
    if len(prompts) != len(seeds) or not prompts:
      raise ValueError(f'{len(prompts)} prompts and {len(seeds)} seeds; give one seed per prompt')
    if len(low) != (len(prompts) if self.size.low else 0):
      raise ValueError(f'{len(low)} low clips for {len(prompts)} prompts; a Refiner takes one each')
    extra = -len(prompts) % sharding.axis_size(*sharding.DP)
    read = [Prompt(prompt) for prompt in prompts + [''] * extra]
    for prompt in prompts:
      captions.check_references(prompt, ())
    text, valid = self.system.text.read(read, self.size)
    seeds_array = np.array(seeds + [0] * extra, np.uint32)
    given = stacked(low, extra) if low else Latents()
    latents = generate(
      self.system,
      self.size,
      self.config,
      self.model,
      *sharding.rows((text, valid, seeds_array, given)),
    )
    media = own_rows(decode(self.system, self.size, latents))
    latents = own_rows(named(self.size, latents))
    return [
      Clip(
        prompt,
        **{name: None if x is None else x[i] for name, x in media.items()}
        | (dict(samples=low[i].samples) if low else {}),
        latents={name: x[i] for name, x in latents.items()},
      )
      for i, prompt in enumerate(prompts)
    ]


def stacked(clips: Sequence[Clip], extra: int) -> Latents:
  """What a Refiner starts from, of clips and of as many more, which nobody asked for."""
  rows = lambda name: np.stack([clip.latents[name] for clip in (*clips, *clips[:1] * extra)])
  has = 'keyframes' in clips[0].latents
  return Latents(low=rows('video'), keyframes=rows('keyframes') if has else None)


@functools.partial(jax.jit, static_argnums=(1, 2))
def generate(
  system, size: Size, c: Config, model, text, text_valid, seeds, given: Latents = Latents()
) -> AV:
  """Latents, AV of tuples of [b t h w c] and [b l c], one for each generated segment.

  Args:
    given: `low` and `keyframes` of a Refiner.
  """
  rows = text_valid.shape[0]
  present = AV(*(sharding.over_rows(True, rows) for _ in range(2)))
  keyed = size
  if size.low:  # The base model's, whose keyframes they are.
    keyed = dataclasses.replace(size, frames=size.low.frames, keyframes=size.low.keyframes)
  at = segments.keyframes_at(keyed, system.codecs.video.time_factor)
  cond = conditioning.condition(
    system.codecs,
    size,
    model.config.patch,
    encoder.embedded(system.text, text),
    text_valid,
    present,
    at=sharding.over_rows(jnp.array(at, jnp.int32), rows) if at else None,
    latents=given,
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
  if size.low and c.strength < 1:  # From where noise of this strength has the enlarged clip in it.
    start = AV(*(jnp.float32(1 - c.strength) for _ in range(2)))
    times = AV(*(1 - c.strength * (1 - t) for t in times))
    noise = path.interpolate(start, AV((cond.segments.video[-1].known,), None), noise)
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
  if most.get('low'):
    raise config_lib.ConfigError(
      'this checkpoint is of a Refiner, which makes clips of a base model larger: give it to '
      '--refine, and that model to --checkpoint'
    )
  kept = ('frames', 'height', 'width', 'fps', 'sound', 'seconds', 'keyframes', 'keyframe_scale')
  return system.size(**{name: most[name] for name in kept if name in most} | changes)


def refined_size(system: system_lib.System, trained: dict, base: system_lib.System, size: Size):
  """The size of what a Refiner makes of a base model's clips.

  Raises:
    ConfigError: it is no Refiner, or not one for such clips.
  """
  known = [b for b in trained['data']['buckets'].values() if b.get('low') and b['frames'] > 1]
  if not known:
    raise config_lib.ConfigError('the checkpoint to refine with was not trained on low clips')
  ours, theirs = system.made(), base.made()
  if ours['video codec'] != theirs['video codec']:
    raise config_lib.ConfigError(
      f'the Refiner reads latents of {ours["video codec"]}, and the base model makes those of '
      f'{theirs["video codec"]}; both must have the same video codec'
    )
  b = known[0]
  ratio = lambda side: b[side] / b['low'][side]
  stride = (b['frames'] - 1) // (b['low']['frames'] - 1)
  height, width = round(size.height * ratio('height')), round(size.width * ratio('width'))
  sides = segments.keyframe_sides(size)
  if size.keyframes and sides != (height, width):
    raise config_lib.ConfigError(
      f'keyframes of {sides[0]} x {sides[1]}, and the Refiner makes clips of {height} x {width}'
    )
  low = dict(frames=size.frames, height=size.height, width=size.width, keyframes=size.keyframes)
  return system.size(
    1 + stride * (size.frames - 1), height, width, stride * size.fps, sound=False, low=low
  )
