"""One layer of the twin MMDiT: SPEC's order, Eq. 1-5.

  self-attention of a branch's tokens with its text     (Eq. 1-3)
  video tokens read the prompt                          (Eq. 4, video branch only)
  audio reads video, then video reads the new audio     (Eq. 5)
  MLP

A dual-stream layer gives modality and text tokens separate parameters.  A single-stream layer is
the same layer with one set of parameters for both, so there is one code path.
"""

import dataclasses

from flax import nnx
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from sr4.core import sharding
from sr4.core.av import AV
from sr4.nn import attention
from sr4.nn import linear
from sr4.nn import modulation
from sr4.nn import norm
from sr4.nn import rope
from sr4.nn import vsa

SAVED = 'mlp'  # The name under which the MLP's result may be kept: the gate's gradient asks for it.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tokens:
  """What a branch carries from layer to layer."""

  x: jax.Array  # [b s d] modality tokens
  text: jax.Array  # [b m d] its own text stream


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
  """What every layer of a branch is told, the same in all."""

  mod: jax.Array  # [9 b d] shift, scale, gate: self-attention, MLP, audio-video attention
  text_mod: jax.Array  # [6 b d] the same for a dual-stream layer's text
  angle: jax.Array  # [b s k/2] rotary angles of self-attention
  time_angle: jax.Array  # [b s k/2] rotary angles of audio-video attention: time alone
  valid: jax.Array  # bool [b s]
  readable: jax.Array  # bool [b s]: tokens that the other branch may read
  prompt: jax.Array  # [b m d] the prompt as first projected
  text_valid: jax.Array  # bool [b m]
  tiles: vsa.Tiles | None = None  # of a branch whose self-attention is sparse


class Stream(nnx.Module):
  """Self-attention projections, MLP and modulation table of one token stream.

  One that is sparse has a gate, too: zero at first, so that a dense model's weights fit it.
  """

  def __init__(self, c, layout: sharding.Layout, *, sparse: bool = False, rngs: nnx.Rngs):
    d, n, k, f = c.width, c.heads, c.head_dim, c.mlp_ratio * c.width
    fsdp, split = layout.fsdp, layout.split
    make = lambda *args, **kw: linear.Linear(*args, dtype=c.dtype, rngs=rngs, **kw)
    self.table = modulation.table(6, d)
    self.qkv = make('bsd,dxnk->xbsnk', (d, 3, n, k), (fsdp, None, split, None))
    self.q_norm, self.k_norm = norm.RMSNorm(k), norm.RMSNorm(k)
    self.out = make('bsnk,nkd->bsd', (n, k, d), (split, None, fsdp))
    self.up = make('bsd,df->bsf', (d, f), (fsdp, split))
    self.down = make('bsf,fd->bsd', (f, d), (split, fsdp))
    gate = 'bsd,dnk->bsnk', (d, n, k), (fsdp, split, None)
    self.gate = make(*gate, zero=True) if sparse else None

  def mod(self, shared: jax.Array):
    return shared[:6] + self.table[...][:, None]

  def project(self, x, mod, angle=None):
    """Normed and rotated queries and keys, values, and the gate or None; [b s n k] each."""
    y = modulation.modulate(x, mod[0], mod[1])
    q, k, v = self.qkv(y)
    q, k = self.q_norm(q), self.k_norm(k)
    if angle is not None:
      q, k = rope.rotate(q, angle), rope.rotate(k, angle)
    return q, k, v, self.gate and self.gate(y)

  def merge(self, x, attended, mod):
    return modulation.gate(x, self.out(attended, sharding.of(x)), mod[2])

  def mlp(self, x, mod):
    y = jax.nn.gelu(self.up(modulation.modulate(x, mod[3], mod[4])), approximate=True)
    return modulation.gate(x, checkpoint_name(self.down(y, sharding.of(x)), SAVED), mod[5])


class CrossAttention(nnx.Module):
  """Queries of one token list, keys and values of another; per-head qk RMSNorm."""

  def __init__(self, c, layout: sharding.Layout, source: sharding.Layout, *, rngs: nnx.Rngs):
    d, n, k = c.width, c.heads, c.head_dim
    make = lambda *args: linear.Linear(*args, dtype=c.dtype, rngs=rngs)
    self.blocks = c.blocks
    self.q = make('bsd,dnk->bsnk', (d, n, k), (layout.fsdp, layout.split, None))
    self.kv = make('bsd,dxnk->xbsnk', (d, 2, n, k), (source.fsdp, None, source.split, None))
    self.q_norm, self.k_norm = norm.RMSNorm(k), norm.RMSNorm(k)
    self.out = make('bsnk,nkd->bsd', (n, k, d), (layout.split, None, layout.fsdp))

  def __call__(self, x, source, valid, angles=None):
    """[b s d] read from source [b r d] where valid [b r]; angles: of queries and of keys."""
    q, (k, v) = self.q(x), self.kv(source)
    q, k = self.q_norm(q), self.k_norm(k)
    if angles is not None:
      q, k = rope.rotate(q, angles[0]), rope.rotate(k, angles[1])
    (o,) = attention.attend((q,), (k,), (v,), (valid,), self.blocks, kept=False)
    out = self.out(o, sharding.of(x))
    # The output bias too is silent where there is nothing to read.
    return jnp.where(jnp.any(valid, -1)[:, None, None], out, 0)


class Branch(nnx.Module):
  """One modality's half of a layer; `other` is how the tokens of the other modality lie."""

  def __init__(
    self,
    c,
    layout: sharding.Layout,
    other: sharding.Layout,
    *,
    dual: bool,
    reads_text: bool,
    rngs: nnx.Rngs,
  ):
    short, self.blocks = sharding.short(c.heads), c.blocks
    sparse = bool(c.sparse.tile) and layout is sharding.LONG
    self.tokens = Stream(c, layout, sparse=sparse, rngs=rngs)
    self.text = Stream(c, short, rngs=rngs) if dual else None
    self.text_norm = norm.LayerNorm(c.width) if reads_text else None
    self.text_cross = CrossAttention(c, layout, short, rngs=rngs) if reads_text else None
    self.cross = CrossAttention(c, layout, other, rngs=rngs) if c.audio else None
    self.cross_table = modulation.table(3, c.width) if c.audio else None

  def streams(self, ctx: Context):
    """(stream, its modulation) of the modality and of the text."""
    text, text_mod = (self.text, ctx.text_mod) if self.text else (self.tokens, ctx.mod)
    return (self.tokens, self.tokens.mod(ctx.mod)), (text, text.mod(text_mod))

  def self_attend(self, y: Tokens, ctx: Context) -> Tokens:
    (tokens, mod), (text, text_mod) = self.streams(ctx)
    own, read = tokens.project(y.x, mod, ctx.angle), text.project(y.text, text_mod)
    q, k, v, (gate, _) = zip(own, read)
    valid = ctx.valid, ctx.text_valid
    if ctx.tiles is None:
      o, o_text = attention.attend(q, k, v, valid, self.blocks)
    else:
      o, o_text = vsa.attend(q, k, v, gate, valid, ctx.tiles)
    return Tokens(tokens.merge(y.x, o, mod), text.merge(y.text, o_text, text_mod))

  def read_text(self, y: Tokens, ctx: Context) -> Tokens:
    if self.text_cross is None:
      return y
    read = self.text_cross(self.text_norm(y.x), ctx.prompt, ctx.text_valid)
    return dataclasses.replace(y, x=y.x + read)

  def read_other(self, y: Tokens, other: Tokens, ctx: Context, theirs: Context) -> Tokens:
    shift, scale, amount = ctx.mod[6:] + self.cross_table[...][:, None]
    source = modulation.norm.layer_norm(other.x).astype(y.x.dtype)
    read = self.cross(
      modulation.modulate(y.x, shift, scale),
      source,
      theirs.readable,
      (ctx.time_angle, theirs.time_angle),
    )
    return dataclasses.replace(y, x=modulation.gate(y.x, read, amount))

  def mlp(self, y: Tokens, ctx: Context) -> Tokens:
    (tokens, mod), (text, text_mod) = self.streams(ctx)
    return Tokens(tokens.mlp(y.x, mod), text.mlp(y.text, text_mod))


class Layer(nnx.Module):
  """Both branches, or video alone; dual-stream or single-stream."""

  def __init__(self, c, *, dual: bool, rngs: nnx.Rngs):
    long, short = sharding.LONG, sharding.short(c.heads)
    self.video = Branch(c, long, short, dual=dual, reads_text=True, rngs=rngs)
    alone = not c.audio
    self.audio = None if alone else Branch(c, short, long, dual=dual, reads_text=False, rngs=rngs)

  def __call__(self, y: AV, ctx: AV) -> AV:
    """AV of Tokens -> AV of Tokens; a modality that is None is not computed at all."""
    video, audio = y
    if video is not None:
      video = self.video.read_text(self.video.self_attend(video, ctx.video), ctx.video)
    if audio is not None:
      audio = self.audio.read_text(self.audio.self_attend(audio, ctx.audio), ctx.audio)
    if video is not None and audio is not None:
      audio = self.audio.read_other(audio, video, ctx.audio, ctx.video)
      video = self.video.read_other(video, audio, ctx.video, ctx.audio)
    return AV(
      video and self.video.mlp(video, ctx.video), audio and self.audio.mlp(audio, ctx.audio)
    )
