"""The symmetric twin MMDiT of SkyReels-V4 (arXiv 2602.21818, section 2 of the report).

Two branches of equal depth and width, video and audio, each with its own text stream.  The model is
a callable: (noisy latents, times, Condition) -> velocities.
"""

from collections.abc import Callable
import dataclasses
import functools
import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from sr4.core import sharding
from sr4.core.av import AV
from sr4.core.batch import Condition
from sr4.core.sharding import FSDP
from sr4.models import block
from sr4.nn import embed
from sr4.nn import linear
from sr4.nn import modulation
from sr4.nn import order
from sr4.nn import rope
from sr4.nn import vsa
from sr4.nn.kernels import splash

AUDIO_ROPE_SCALES = ('seconds', 'per_clip', 'paper')
POLICIES = jax.checkpoint_policies
REMAT = {  # What a layer keeps for its backward pass; the rest is computed again.
  'none': POLICIES.everything_saveable,
  'dots': POLICIES.dots_with_no_batch_dims_saveable,
  'results': POLICIES.save_only_these_names(splash.SAVED, block.SAVED),
  'attention': POLICIES.save_only_these_names(splash.SAVED),
  'offload': POLICIES.save_and_offload_only_these_names(
    names_which_can_be_saved=[],
    names_which_can_be_offloaded=[splash.SAVED],
    offload_src='device',
    offload_dst='pinned_host',
  ),
  'full': POLICIES.nothing_saveable,
}

# Tokens of a TPU's tile; whole ones on each device need no padding by the compiler.
LANES, SUBLANES = 128, 8

LAYOUTS = AV(sharding.LONG.tokens, sharding.WHOLE)


DTYPES = ('float32', 'bfloat16', 'float16')  # that layers compute in


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes of the model.  Defaults are the codecs' and the text encoder's of the full system."""

  width: int = 256
  heads: int = 4
  dual_layers: int = 2  # M
  single_layers: int = 4  # N
  mlp_ratio: int = 4
  video_channels: int = 16
  audio_channels: int = 40
  text_width: int = 3584
  patch: tuple[int, int, int] = (1, 2, 2)
  audio_rope_scale: str = 'seconds'  # or per_clip, or paper: 21/218 a latent
  video_rate: float = 4.0  # latent frames a second: one unit of rotary time
  audio_rate: float = 44100 / 1024  # audio latents a second
  dtype: str = 'bfloat16'
  remat: str = 'full'  # or a name of REMAT
  blocks: splash.Blocks = splash.Blocks()  # of the attention kernel
  sparse: vsa.Config = vsa.Config()  # self-attention of the video branch
  audio: bool = True  # False: the video branch alone, as a Refiner is

  def __post_init__(self):
    if self.width % self.heads or self.head_dim % 2:
      raise ValueError(f'width {self.width} / heads {self.heads} must be a whole, even head dim')
    for field, value, known in (
      ('audio_rope_scale', self.audio_rope_scale, AUDIO_ROPE_SCALES),
      ('remat', self.remat, tuple(REMAT)),
      ('dtype', self.dtype, DTYPES),
    ):
      if value not in known:
        raise ValueError(f'model.{field}={value!r} is not among {known}')
    for field in ('dual_layers', 'single_layers'):
      if getattr(self, field) < 1:
        raise ValueError(f'model.{field}={getattr(self, field)} must be 1 or more')
    if off := [i for i in self.sparse.dense_layers if not 0 <= i < self.layers]:
      raise ValueError(
        f'model.sparse.dense_layers: {off} are not among the {self.layers} layers, from 0'
      )

  @property
  def layers(self) -> int:
    return self.dual_layers + self.single_layers

  @property
  def head_dim(self) -> int:
    return self.width // self.heads


SIZES = {
  'debug': dict(width=64, heads=2, dual_layers=1, single_layers=2),
  'tiny': dict(width=256, heads=4, dual_layers=2, single_layers=4),
  'small': dict(width=1536, heads=12, dual_layers=8, single_layers=16),
  'base': dict(width=3072, heads=24, dual_layers=8, single_layers=16),
  'large': dict(width=4096, heads=32, dual_layers=12, single_layers=24),
}
SIZES |= {
  f'{name}-hd256': size | dict(heads=size['heads'] // 2)
  for name, size in SIZES.items()
  if name in ('small', 'base', 'large')
}


class Trunk(nnx.Module):
  """What one branch has outside its layers: embeddings of latents, text and time, and the head."""

  def __init__(self, c: Config, channels_in: int, channels_out: int, *, rngs: nnx.Rngs):
    d, make = c.width, lambda *args, **kw: linear.Linear(*args, rngs=rngs, **kw)
    self.embed = make('bsc,cd->bsd', (channels_in, d), (None, FSDP), dtype=c.dtype)
    self.text_in = make('bme,ed->bmd', (c.text_width, d), (None, FSDP), dtype=c.dtype)
    self.text_out = make('bmd,de->bme', (d, d), (FSDP, None), dtype=c.dtype)
    self.time = modulation.TimeEmbedding(d, rngs=rngs)
    self.mod = modulation.projection(9, d, rngs=rngs)
    self.text_mod = modulation.projection(6, d, rngs=rngs)
    self.head_table = modulation.table(2, d)
    self.head_mod = modulation.projection(2, d, rngs=rngs)
    self.head = make('bsd,dc->bsc', (d, channels_out), (FSDP, None), dtype='float32', zero=True)

  def read_prompt(self, text):
    return self.text_out(jax.nn.gelu(self.text_in(text), approximate=True))

  def predict(self, x, time):
    """[b s d] -> fp32 [b s patch*channels]."""
    shift, scale = self.head_mod(time) + self.head_table[...][:, None]
    return self.head(modulation.modulate(x, shift, scale))


class MMDiT(nnx.Module):
  """v(x_t, t, condition), Eq. 6."""

  def __init__(self, c: Config, *, rngs: nnx.Rngs):
    patch = c.patch[0] * c.patch[1] * c.patch[2]
    self.config = c
    # Z = Concat(V, I, M) before patching (Eq. 7); audio has neither I nor M.
    self.video = Trunk(c, patch * (2 * c.video_channels + 1), patch * c.video_channels, rngs=rngs)
    self.audio = Trunk(c, c.audio_channels, c.audio_channels, rngs=rngs) if c.audio else None
    stack = lambda depth, dual: jax.vmap(lambda key: block.Layer(c, dual=dual, rngs=nnx.Rngs(key)))(
      jax.random.split(rngs.params(), depth)
    )
    self.dual = stack(c.dual_layers, True)
    self.single = stack(c.single_layers, False)

  @property
  def patches(self) -> AV:
    return AV(self.config.patch, (1,))

  def __call__(self, x: AV, t: AV, cond: Condition, around: Callable | None = None) -> AV:
    """Velocities for the generated segments.

    Args:
      x: tuple of noisy latents per modality, one for each generated segment, [b t h w c] / [b l c].
      t: [b] per modality in [0, 1]; 1 is data.
      cond: what to follow.  A modality whose segments are None is left out altogether.
      around: (layers, tokens, contexts) -> tokens, in place of layers(tokens, contexts): reuse.py.
    Returns:
      AV of tuples, fp32, shaped as x.
    """
    trunks = AV(self.video, self.audio)
    whole = lambda x: pad(x, LAYOUTS.video)
    cond = dataclasses.replace(cond, text=whole(cond.text), text_valid=whole(cond.text_valid))
    active = AV(*(segments is not None for segments in cond.segments))
    each = lambda f: AV(*(f(i) if active[i] else None for i in range(2)))
    times = each(lambda i: trunks[i].time(t[i]))
    tokens = each(lambda i: self.tokens(i, trunks[i], x, cond))
    contexts = each(lambda i: self.context(i, trunks[i], times[i], t[i], x, tokens[i], cond))

    y = around(self.layers, tokens, contexts) if around else self.layers(tokens, contexts)
    out = each(lambda i: trunks[i].predict(y[i].x, times[i]))
    return each(lambda i: self.velocities(i, out[i], x, cond))

  def layers(self, tokens: AV, contexts: AV) -> AV:
    """AV of block.Tokens through all layers; a modality that is None is not computed."""
    c = self.config

    def layer(y, xs):
      parameters, dense = jax.tree.map(sharding.near, xs)
      video = contexts.video and without(contexts.video, dense)
      return parameters(y, AV(video, contexts.audio)), None

    layer = jax.checkpoint(layer, policy=REMAT[c.remat])
    dense = np.isin(np.arange(c.layers), c.sparse.dense_layers)
    y, _ = jax.lax.scan(layer, tokens, (self.dual, dense[: c.dual_layers]))
    # From here on text passes through the weights of its modality, and lies where they are used.
    laid = lambda y, layout: y and block.Tokens(y.x, sharding.laid(y.text, layout))
    y, _ = jax.lax.scan(layer, AV(*map(laid, y, LAYOUTS)), (self.single, dense[c.dual_layers :]))
    return y

  def tokens(self, modality, trunk: Trunk, x, cond) -> block.Tokens:
    """All segments as one list of tokens, padded once to the mesh, and the branch's text stream."""
    noisy, grids = iter(x[modality]), []
    for segment, places in zip(cond.segments[modality], self.places(modality, x, cond)):
      parts = [next(noisy) if segment.generated else segment.known]
      if segment.mask is not None:
        parts += [segment.known, segment.mask]
      z = jnp.concatenate([part.astype(jnp.float32) for part in parts], -1)
      cut = functools.partial(cut_in, patch=self.patches[modality], places=places)
      grids.append(sharding.on_rows(cut)(z))
    tokens = trunk.embed(sharding.laid(self.joined(modality, grids), LAYOUTS[modality]))
    return block.Tokens(tokens, trunk.read_prompt(cond.text))

  def context(self, modality, trunk, time, t, x, tokens, cond) -> block.Context:
    c, segments, layout = self.config, cond.segments[modality], LAYOUTS[modality]
    places = self.places(modality, x, cond)
    arrange = lambda xs: [sharding.on_rows(order.arranged)(*pair) for pair in zip(xs, places)]
    positions = self.joined(modality, arrange([s.positions for s in segments]))
    valid = self.joined(modality, arrange([s.valid for s in segments]))
    clock = rotary_time(c, modality, positions[..., :1], x)
    if modality == 0:
      space = jnp.concatenate([clock, positions[..., 1:]], -1)
      angle = rope.angles(space, rope.split_3d(c.head_dim))
    else:
      angle = rope.angles(clock, (c.head_dim,))
    return block.Context(
      mod=trunk.mod(time),
      text_mod=trunk.text_mod(time),
      angle=sharding.laid(angle, layout),
      time_angle=sharding.laid(rope.angles(clock, (c.head_dim,)), layout),
      valid=valid,
      readable=valid & cond.present[modality][:, None],
      prompt=tokens.text,
      text_valid=cond.text_valid,
      tiles=self.tiles(t, valid.shape[1], segments, places, cond.sparsity),
    )

  def tiles(self, t, tokens: int, segments, places, most) -> vsa.Tiles | None:
    """Which tiles are chosen among, and how many of them; None where attention is dense."""
    c = self.config.sparse
    if places[0] is None:
      return None
    choosing = [s.generated for s, at in zip(segments, places) for _ in range(len(at) // c.size)]
    choosing += [False] * (tokens // c.size - len(choosing))
    sparsity = jnp.full_like(t, c.sparsity) if most is None else jnp.minimum(most, c.sparsity)
    sparsity = jnp.where(t < c.dense_until, 0, sparsity)
    return vsa.Tiles(sparsity, tuple(choosing), c, c.left(self.config.layers))

  def places(self, modality, x, cond) -> list:
    """The order of each segment's tokens; None: as they are cut."""
    sparse, noisy, found = self.config.sparse, iter(x[modality]), []
    for segment in cond.segments[modality]:
      if modality or not sparse.tile:
        found.append(None)
      elif segment.generated:
        sides = zip(next(noisy).shape[1:-1], self.patches[modality])
        found.append(order.tiles(tuple(side // step for side, step in sides), sparse.tile))
      else:
        found.append(order.rows(segment.positions.shape[1], sparse.size))
    return found

  def joined(self, modality, parts) -> jax.Array:
    """Segments [b s ...] as one, padded once to the mesh and to the tiles of sparse attention."""
    size = 0 if modality or not self.config.sparse.tile else self.config.sparse.size
    return pad(jnp.concatenate(parts, 1), LAYOUTS[modality], size)

  def velocities(self, modality, out, x, cond) -> tuple[jax.Array, ...]:
    """The tokens of the generated segments, as latents again."""
    noisy, start, found = iter(x[modality]), 0, []
    whole = sharding.laid(out, sharding.WHOLE)
    for segment, places in zip(cond.segments[modality], self.places(modality, x, cond)):
      length = segment.positions.shape[1] if places is None else len(places)
      if segment.generated:
        patch, grid = self.patches[modality], next(noisy).shape[1:-1]
        latent = functools.partial(put_together, patch=patch, places=places, grid=grid)
        found.append(sharding.on_rows(latent)(whole[:, start : start + length]))
      start += length
    return tuple(found)


def rotary_time(c, modality: int, seconds, x: AV):
  """In latent frames of video; the report scales audio by 21/218 (section 2).

  Args:
    c: Config, or another with its fields of time.
    seconds: of jax, numpy or torch; x: the noisy latents.
  """
  if modality == 0 or c.audio_rope_scale == 'seconds':
    return seconds * c.video_rate
  if c.audio_rope_scale == 'paper':
    return seconds * c.audio_rate * (21 / 218)
  if x.video is None:
    return seconds * c.video_rate
  return seconds * c.audio_rate * (x.video[0].shape[1] / x.audio[0].shape[1])


def without(ctx: block.Context, dense: jax.Array) -> block.Context:
  """A layer's context: where it is dense, nothing is left out."""
  if ctx.tiles is None:
    return ctx
  sparsity = jnp.where(dense, 0, ctx.tiles.sparsity)
  return dataclasses.replace(ctx, tiles=dataclasses.replace(ctx.tiles, sparsity=sparsity))


def cut_in(z, patch, places) -> jax.Array:
  """Latents to tokens, in the order of places."""
  return order.arranged(embed.patchify(z, patch), places)


def put_together(tokens, patch, places, grid) -> jax.Array:
  """The inverse, for latents of this grid."""
  count = math.prod(side // step for side, step in zip(grid, patch))
  return embed.unpatchify(order.restored(tokens, places, count), grid, patch)


def pad(x: jax.Array, layout: sharding.P, size: int = 0) -> jax.Array:
  """[b s ...] rounded up to whole tiles on each device; padding is zero, and so not valid.

  Args:
    size: of the tiles of sparse attention, where it is.
  """
  ways = sharding.axis_size(*filter(None, layout[1:2]))
  if sharding.meshless():  # Anywhere, and of sizes that are not known yet: sr4 export.
    tile = max(size, 1)
  else:
    tile = max(size, LANES if x.shape[1] >= 8 * LANES * ways else SUBLANES)
  extra = -x.shape[1] % (tile * ways)
  return jnp.pad(x, [(0, 0), (0, extra)] + [(0, 0)] * (x.ndim - 2)) if extra else x
