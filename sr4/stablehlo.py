"""The model as a StableHLO program for any runtime that reads it; `sr4 export --format stablehlo`.

  velocity(weights, x, t, told) -> v

  weights  {our name: fp32}
  x        noisy latents: video [b t h w c], audio [b l c] where the model has sound
  t        [b] of each; 1 is data
  told     known [b t h w c] and mask [b t h w 1] of Eq. 7, text [b m e], text_valid bool [b m],
           video_positions [b s 3] (core/batch.py `Segment`); with sound audio_positions [b l 1]
           and present bool [b 2]: may the other modality read video, and sound?
  v        as x

Rows, frames, sides, audio latents and text tokens are symbolic, so that one program serves all
sizes.  The tiles of sparse attention depend on the sides: such a model's program is of one size.
"""

import os

import jax
from jax import export
import jax.numpy as jnp
import numpy as np

from sr4.core import errors
from sr4.core import tree
from sr4.core.av import AV
from sr4.core.batch import Condition
from sr4.core.batch import Segment
from sr4.core.batch import Size
from sr4.core.prompt import Prompt
from sr4.flow import segments
from sr4.models.text import encoder

PLATFORMS = ('cpu', 'cuda', 'tpu')
RUNNER = os.path.join(os.path.dirname(__file__), 'stablehlo_runner.py')


def program(system, size: Size | None = None) -> bytes:
  """The velocity of a model, serialized by jax.export.  size: of a clip; None: of any."""
  like = jax.eval_shape(system.model, jax.random.key(0))
  bare = {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in tree.to_flat(like).items()}
  with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
    args = arguments(system, size)
    exported = export.export(jax.jit(velocity(like)), platforms=PLATFORMS)(bare, *args)
  return exported.serialize()


def velocity(like):
  """The function of the module's docstring.  like: the model, of shapes."""

  def run(weights: dict, x: dict, t: dict, told: dict) -> dict:
    model = tree.from_flat(like, weights)
    there = lambda places: jnp.ones(places.shape[:2], bool)
    clip, sound = told['video_positions'], told.get('audio_positions')
    video = Segment(told['known'], told['mask'], clip, there(clip))
    audio = None if sound is None else (Segment(None, None, sound, there(sound)),)
    rows = there(told['text_valid'])[:, :1]
    present = AV(*jnp.moveaxis(told.get('present', rows.repeat(2, 1)), 1, 0))
    cond = Condition(AV((video,), audio), told['text'], told['text_valid'], present)
    of = lambda values, one: AV(*(one(values[n]) if n in values else None for n in AV._fields))
    v = model(of(x, lambda z: (z,)), of(t, lambda t: t), cond)
    return {name: getattr(v, name)[0] for name in x}

  return run


def arguments(system, size: Size | None) -> tuple[dict, dict, dict]:
  """Shapes of x, t and told: of one row of a Size, or symbolic."""
  c, codecs = system.config, system.codecs
  if size:
    (t, h, w, _), b = codecs.video.latent_shape(size.frames, size.height, size.width), 1
    l = codecs.audio.latent_length(size.samples) if size.samples else 0
    m = system.text.shapes(1, size)[1].shape[1]
    grid = [side // step for side, step in zip((t, h, w), c.patch)]
  else:
    b, l, m, *grid = export.symbolic_shape('b, l, m, t, h, w')
    t, h, w = (side * step for side, step in zip(grid, c.patch))
  of = lambda *shape, dtype=jnp.float32: jax.ShapeDtypeStruct(shape, dtype)
  x = {'video': of(b, t, h, w, c.video_channels)}
  told = {
    'known': of(b, t, h, w, c.video_channels),
    'mask': of(b, t, h, w, 1),
    'text': of(b, m, c.text_width),
    'text_valid': of(b, m, dtype=bool),
    'video_positions': of(b, grid[0] * grid[1] * grid[2], 3),
  }
  if c.audio:
    x['audio'], told['audio_positions'] = of(b, l, c.audio_channels), of(b, l, 1)
    told['present'] = of(b, 2, dtype=bool)
  return x, dict.fromkeys(x, of(b)), told


def trained(system, config: dict) -> tuple[Size, str]:
  """The clip that the model was trained on most, without references, and a prompt for it."""
  buckets = config['data']['buckets'].values()
  told = max(buckets, key=lambda b: (b.get('frames', 0) > 1, b.get('weight', 1.0)))
  names = ('frames', 'height', 'width', 'fps', 'sound', 'seconds', 'low')
  size = system.size(**{name: told[name] for name in names if name in told})
  if not size.frames:
    raise errors.UserError(
      'the model makes sounds alone, and this program clips; export it with --format diffusers'
    )
  return size, next(iter(config.get('preview', {}).get('prompts', ())), '')


def inputs(system, size: Size, prompt: str) -> dict[str, np.ndarray]:
  """`told` for a clip of which nothing is known but its prompt; none, if that takes weights."""
  text = encoder.bare(system.text)
  read, valid = text.read([Prompt(prompt)], size)
  if not isinstance(read, np.ndarray):
    read, valid = np.zeros((*valid.shape, text.width), np.float32), np.zeros_like(valid)
  video = segments.video(system.codecs.video, size, system.config.patch, 1)
  found = dict(
    known=video.known, mask=video.mask, text=read, text_valid=valid, video_positions=video.positions
  )
  if system.config.audio:
    codec = system.codecs.audio
    length = codec.latent_length(size.samples)
    found['audio_positions'] = segments.audio_positions(length, codec.rate)[None]
    found['present'] = np.ones((1, 2), bool)
  return {name: np.asarray(x) for name, x in found.items()}
