"""Prompts and media in, clips out: the model, its codecs and its text encoder in one call."""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines import collate
from data_pipelines.tasks import Row
from sr4 import extension
from sr4 import steps
from sr4.convert import weights
from sr4.core import captions
from sr4.core import config as config_lib
from sr4.core import sharding
from sr4.core import tree
from sr4.core.av import AV
from sr4.core.batch import Clips
from sr4.core.batch import Latents
from sr4.core.batch import Size
from sr4.core.prompt import Prompt
from sr4.flow import segments
from sr4.models import storage
from sr4.models import system as system_lib
from sr4.models import tiles
from sr4.models.text import encoder
from sr4.steps import Config
from sr4.training import checkpoint


@dataclasses.dataclass(frozen=True)
class Clip:
  """One generated clip."""

  prompt: str
  frames: np.ndarray | None  # uint8 [T H W 3]; None: the size has no frames
  samples: np.ndarray | None  # float32 [n channels]; None: the size has no sound
  keyframes: np.ndarray | None  # uint8 [k H*scale W*scale 3]; None: the size has no keyframes
  latents: dict[str, np.ndarray]  # float32 'video' [t h w c], 'keyframes', 'audio' [l c]


class Pipeline:
  """(what is asked, seeds) -> clips, for one size and one way to sample."""

  def __init__(self, system: system_lib.System, model, size: Size, config: Config = Config()):
    self.system, self.model, self.size, self.config = system, model, size, config
    if config.decode_tile % (factor := system.codecs.video.space_factor):
      raise config_lib.ConfigError(
        f'decode_tile={config.decode_tile} must be a multiple of {factor}, the pixels of a latent'
      )

  def __call__(
    self,
    asked: Sequence[Row | str],
    seeds: Sequence[int],
    negative: Sequence[AV] = (),
    callback_on_step_end: Callable | None = None,
  ) -> list[Clip]:
    """A clip for each row, of its own prompt, media and seed, whatever its neighbours are.

    What is known of a clip comes back as it was given, and so does a modality that is clean.
    In a pod all hosts call it together, each with rows of its own (hosts that share parts of a
    batch, with the same) that give the same kinds of media, and each gets the clips of these.

    Args:
      asked: prompts, or rows as a task makes them.  A Refiner's have a low clip (`to_refine`), and
        their sound goes with them.
      negative: of each, prompts that its video and its sound are guided away from; '': from none.
      callback_on_step_end: (pipeline, step, t, told) -> None or changes of told, after each step.
        t: AV of times in [0, 1].  told: 'latents', AV as `segments.latent_shapes`, which go on as
        they are returned, and from which a solver of several steps begins anew; 'data', where the
        last velocity leads: what may be looked at (`decode`).
        It may set `pipeline.interrupt`: then what has been made so far is the result.
    """
    rows, seeds = [self._row(one) for one in asked], list(seeds)
    if len(rows) != len(seeds) or not rows:
      raise ValueError(f'{len(rows)} prompts and {len(seeds)} seeds; give one seed per prompt')
    if len({row.clean for row in rows}) > 1:
      raise ValueError('rows in which other modalities are clean; sample these apart')
    extra = -len(rows) % sharding.axis_size(*sharding.DP)
    clips = self._clips(rows + rows[:1] * extra)
    away = self._negative([*negative, *negative[:1] * extra])
    seeds = np.array(seeds + [0] * extra, np.uint32)
    latents = self._generate(rows[0].clean, callback_on_step_end, clips, seeds, away)
    media = decode(self.system, self.size, latents, self.config.decode_tile)
    latents = own_rows(named(self.size, latents))
    return [
      self._clip(
        row,
        {name: None if x is None else x[i] for name, x in media.items()},
        {name: x[i] for name, x in latents.items()},
      )
      for i, row in enumerate(rows)
    ]

  def _generate(self, clean: AV, callback, clips: Clips, seeds, negative: AV) -> AV:
    """Latents, AV of tuples of [b t h w c] and [b l c], one for each generated segment."""
    c, asked = self.config, sharding.rows((clips, seeds, negative))
    carry, given, times, told = steps.begin(self.system, self.size, c, clean, *asked)
    given, times = jax.device_get((given, times))
    at = lambda of, i: jax.tree.map(lambda leaf: leaf[i], of)
    self.interrupt, states, since = False, (), 0
    for i in range(c.num_inference_steps):
      x = carry[0]
      carry, states = steps.advance(c, self.model, carry, at(given, i - since), told, states)
      if callback:
        start, end = at(times, i), at(times, i + 1)
        data = steps.ahead(x, carry[0], start, end)
        changes = callback(self, i, end, {'latents': carry[0], 'data': data}) or {}
        if (new := changes.get('latents', carry[0])) is not carry[0]:
          like = lambda new, old: jax.device_put(jnp.asarray(new, old.dtype), old.sharding)
          since = i + 1
          rest = AV(*(t[since:] for t in times))
          carry, given = steps.again(c, jax.tree.map(like, new, carry[0]), rest)
          given = jax.device_get(given)
      if self.interrupt:
        break
    return carry[0] if clean.video else steps.kept(told.cond, carry[0])

  def _row(self, asked: Row | str) -> Row:
    """What is asked, with the places of keyframes."""
    if isinstance(asked, str):
      captions.check_references(asked, ())
      asked = Row(caption=asked)
    if self.size.low and asked.low is None and asked.latents.low is None:
      raise ValueError('a row without a low clip; a Refiner takes one each')
    at = keyframes_at(self.system, self.size)
    return dataclasses.replace(asked, at=at) if at and asked.at is None else asked

  def _clips(self, rows: list[Row]) -> Clips:
    prompts = [Prompt(row.caption, row.images, row.clip, self.size.fps) for row in rows]
    text = self.system.text.read(prompts, self.size)
    channels = self.system.codecs.audio.audio_channels
    clips = collate.collate(rows, self.size, collate.fields_of(rows), *text, channels)
    there = np.ones(len(rows), bool)  # What is not given is made.
    return dataclasses.replace(clips, present=AV(there, there), clean=None)

  def _negative(self, negative: list[AV]) -> AV:
    """(what the text encoder reads, bool [b m]) for each modality, as guidance.guided takes it."""

    def of(prompts):
      read, valid = self.system.text.read([Prompt(prompt) for prompt in prompts], self.size)
      return read, valid & np.array([[bool(prompt)] for prompt in prompts])

    if not any(map(any, negative)):
      return AV(None, None)
    video, audio = zip(*negative)
    return AV(of(video), None if audio == video else of(audio))

  def _clip(self, row: Row, media: dict, latents: dict) -> Clip:
    """What was made, and over it what was given."""
    if row.clean.video:
      media['frames'] = row.frames
    elif row.known is not None:
      media['frames'] = np.where(row.known[..., None], row.frames, media['frames'])
    if row.heard is not None and self.size.samples:
      rate = self.system.codecs.audio.sample_rate
      media['samples'] = extension.faded(row.samples, media['samples'], row.heard, rate)
    if row.clean.audio or (self.size.low and row.samples is not None):
      media['samples'] = row.samples
    return Clip(row.caption, **media, latents=latents)


def keyframes_at(system, size: Size) -> tuple[int, ...]:
  """Which frames are keyframes when nobody chooses: of the clip, of a Refiner's low clip."""
  if size.low:
    size = dataclasses.replace(size, frames=size.low.frames, keyframes=size.low.keyframes)
  return segments.keyframes_at(size, system.codecs.video.time_factor)


def to_refine(clip: Clip, given: Row = Row()) -> Row:
  """What a Refiner starts from: a base model's clip, and what else is given of the large one."""
  made = Latents(low=clip.latents['video'], keyframes=clip.latents.get('keyframes'))
  return dataclasses.replace(
    given, caption=given.caption or clip.prompt, samples=clip.samples, latents=made
  )


def decode(system, size: Size, latents: AV, tile: int = 0) -> dict:
  """The media fields of a Clip, with this host's rows.

  Args:
    tile: pixels; larger frames, and keyframes, go to the host tile by tile; 0: whole.
  """
  of, codec = named(size, latents), system.codecs.video
  media = dict(frames=None, samples=None, keyframes=None)
  if size.frames:
    media['frames'] = shown(codec, of['video'], tile)
  if size.keyframes:
    media['keyframes'] = shown(codec, of['keyframes'], tile, each=True)
  if size.samples:
    media['samples'] = own_rows(sound(system.codecs.audio, of['audio'], size.samples))
  return media


def shown(codec, latents, tile: int, each: bool = False) -> np.ndarray:
  """uint8 [b T H W 3], arguments as of `decode`; each: every latent is a picture of its own."""
  factor = codec.space_factor
  if not tile or factor * max(latents.shape[2:4]) <= tile:
    return own_rows(pixels_uint8(codec, latents, each))
  see = lambda z: own_rows(pixels(codec, z, each))
  return tiles.on_host(see, latents, tile // factor, factor)


pixels = jax.jit(segments.decoded, static_argnames='each')


@functools.partial(jax.jit, static_argnames='each')
def pixels_uint8(codec, latents, each: bool = False):
  return segments.to_uint8(segments.decoded(codec, latents, each))


@functools.partial(jax.jit, static_argnums=2)
def sound(codec, latents, samples: int):
  return sharding.on_rows(lambda codec, z: codec.decode(z, samples=samples))(codec, latents)


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


def load(
  directory: str,
  step: int | None = None,
  ema: bool = True,
  stored: storage.Config = storage.Config(),
):
  """(system, model, config as trained) from a folder of checkpoints.

  Args:
    stored: how the model's weights are to lie.
  Raises:
    CheckpointError: there is no such checkpoint, or it is broken, or has not these weights.
  """
  step, page = checkpoint.page(directory, step)
  check_weights(directory, page, 'ema' if ema else 'model')
  system = system_lib.build(page['config'])
  # A cache has what was trained on; a prompt is new.
  system = weights.load(dataclasses.replace(system, text=encoder.bare(system.text)))
  like = tree.abstract(system.model, jax.random.key(0))
  restore = functools.partial(
    checkpoint.restore_named, directory, step, prefix='ema.' if ema else 'model.'
  )
  if stored == storage.Config():
    model = tree.from_flat(like, restore(tree.to_flat(like)))
  else:
    model = narrowed(restore, like, stored)
  return system, model, page['config']


def check_weights(directory: str, page: dict, which: str):
  """CheckpointError where a checkpoint has weights or their moving average alone, not `which`."""
  has = {name.partition('.')[0] for name in page['digests']} & {'ema', 'model'}
  if has and which not in has:
    kind, flag = ('weights', 'give') if which == 'ema' else ('a moving average', 'leave out')
    raise checkpoint.CheckpointError(f'{directory} has {kind} alone; {flag} --raw')


def narrowed(restore: Callable, like, stored: storage.Config):
  """The model as it is stored; one kernel after the other, for as trained all of them may be more
  than the device holds.

  Args:
    restore: checkpoint.restore_named of this checkpoint; like: the abstract model as trained.
  """
  trained, flat = tree.to_flat(like), {}
  layers = dict(storage.kernels(storage.laid_out(like, stored)))
  for name, layer in layers.items():
    found = restore({name: trained.pop(name)}, names=f'^{re.escape(name)}$')
    flat |= storage.stored(name, layer, found[name])
  kernel = '|'.join(map(re.escape, layers))
  flat |= restore(trained, names=f'^(?!({kernel})$)')  # All others.
  return tree.from_flat(like, flat)


def size_of(system: system_lib.System, trained: dict, **changes) -> Size:
  """The size of clips that the model was trained on most, with changes and without references."""
  buckets = trained['data']['buckets'].values()
  most = max(buckets, key=lambda b: (b.get('frames', 0) > 1, b.get('weight', 1.0)))
  if most.get('low'):
    raise config_lib.ConfigError(
      'this checkpoint is of a Refiner, which makes clips of a base model larger: '
      '`sr4 sample --checkpoint` takes that model, and its --refine this one'
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
  longer = lambda frames: frames and 1 + stride * (frames - 1)
  return system.size(
    longer(size.frames),
    height,
    width,
    stride * size.fps,
    sound=False,
    low=low,
    reference_images=size.reference_images,
    reference_frames=longer(size.reference_frames),
  )
