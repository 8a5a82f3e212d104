"""One layer of the twin in torch: sr4/models/block.py and what it is made of, number by number.

Matmuls run in the dtype of their weights; norms, softmax, rotary angles and time in fp32.
"""

import dataclasses

from diffusers.models import attention_dispatch
import torch
from torch import nn
from torch.nn import functional

from sr4.core.av import AV
from sr4.nn import rope
from sr4.torch import parallel
from sr4.torch import vsa

EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class Keys:
  """Which keys are read.  Attention is given these alone, and no mask: most kernels take none."""

  valid: torch.Tensor  # bool [b r]
  at: tuple[torch.Tensor, ...]  # int64, those of each row; of one, where they are the same in all

  @classmethod
  def of(cls, valid) -> 'Keys':
    rows = valid[:1] if bool((valid == valid[:1]).all()) else valid
    return cls(valid, tuple(row.nonzero().flatten() for row in rows))


@dataclasses.dataclass(frozen=True)
class Context:
  """What every layer of a branch is told; as in sr4/models/block.py.

  Of tokens [b s], angles and prompt are the process's own part.
  """

  spread: parallel.Spread
  lengths: tuple[int, int]  # of all its tokens, and of the text's
  mod: torch.Tensor  # [9 b d]
  text_mod: torch.Tensor  # [6 b d]
  angle: torch.Tensor  # [b s k/2]
  time_angle: torch.Tensor  # [b s k/2]
  keys: Keys  # of its self-attention: its tokens, and behind them the text's
  readable: Keys  # of its tokens, for the other branch
  prompt: torch.Tensor  # [b m d]
  words: Keys  # of the prompt
  tiles: vsa.Tiles | None  # of a branch whose self-attention is sparse

  def joined(self, x, text):
    """[b s n k] of tokens and text -> of both, with all tokens of the process's heads."""
    return torch.cat([self.spread.heads(*pair) for pair in zip((x, text), self.lengths)], 1)

  def parted(self, x):
    """The inverse of `joined`."""
    return map(self.spread.tokens, x.split(self.lengths, 1))


class Linear(nn.Linear):
  """In the dtype of its weight, whatever it is given."""

  def forward(self, x):
    return super().forward(x.to(self.weight.dtype))


class RMSNorm(nn.Module):
  def __init__(self, size: int):
    super().__init__()
    self.weight = nn.Parameter(torch.ones(size))

  def forward(self, x):
    y = x.float()
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + EPS)
    return (y * self.weight).to(x.dtype)


class LayerNorm(nn.Module):
  def __init__(self, size: int):
    super().__init__()
    self.weight, self.bias = nn.Parameter(torch.ones(size)), nn.Parameter(torch.zeros(size))

  def forward(self, x):
    return (layer_norm(x) * self.weight + self.bias).to(x.dtype)


def layer_norm(x):
  """fp32, whatever x is."""
  return functional.layer_norm(x.float(), x.shape[-1:], eps=EPS)


def modulate(x, shift, scale):
  """LN(x) (1 + scale) + shift for x [b s d] and shift, scale [b d]."""
  return (layer_norm(x) * (1 + scale[:, None]) + shift[:, None]).to(x.dtype)


def gate(x, update, amount):
  return (x.float() + amount[:, None] * update.float()).to(x.dtype)


def angles(coordinates, dims):
  """fp32 [... sum(dims) / 2] of coordinates [... p]; as in sr4/nn/rope.py."""
  parts = []
  for axis, dim in enumerate(dims):
    parts.append(coordinates[..., axis, None].float() * frequencies(dim // 2, coordinates))
  return torch.cat(parts, -1)


def frequencies(count: int, like):
  return torch.from_numpy(rope.frequencies(count)).to(like.device)


def rotate(x, angle):
  """x [b s n k], channels (2i, 2i + 1) turned by angle [b s k/2]."""
  cos, sin = angle.cos()[:, :, None], angle.sin()[:, :, None]
  a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
  return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2).to(x.dtype)


def attend(q, k, v, keys: Keys):
  """softmax(q k^T / sqrt(k)) v over the keys that are read, zero where a row has none.

  diffusers chooses the kernel: set_attention_backend and attention_backend take effect here.

  Args:
    q: [b s n k]; k, v: [b r n k].
  """
  rows = zip(keys.at, *(x.chunk(len(keys.at)) for x in (q, k, v)))
  return torch.cat([attend_to(*row) for row in rows])


def attend_to(at, q, k, v):
  if not len(at):
    return torch.zeros_like(q)
  if len(at) < k.shape[1]:
    k, v = k[:, at], v[:, at]
  return attention_dispatch.dispatch_attention_fn(q, k, v)


class Stream(nn.Module):
  """Self-attention projections, MLP and modulation table of one token stream."""

  def __init__(self, width: int, heads: int, ratio: int, sparse: bool = False):
    super().__init__()
    d, self.heads = width, heads
    self.table = nn.Parameter(torch.zeros(6, d))
    self.qkv = Linear(d, 3 * d)
    self.q_norm, self.k_norm = RMSNorm(d // heads), RMSNorm(d // heads)
    self.out = Linear(d, d)
    self.up, self.down = Linear(d, ratio * d), Linear(ratio * d, d)
    self.gate = Linear(d, d) if sparse else None

  def forward(self, shared):
    """Its modulation [6 b d].  A call, for only then hooks that offload bring the table."""
    return shared[:6] + self.table[:, None]

  def project(self, x, mod, angle=None):
    """Normed and rotated queries and keys, values, and the gate or None; [b s n k] each."""
    y = modulate(x, mod[0], mod[1])
    q, k, v = self.qkv(y).unflatten(-1, (3, self.heads, -1)).unbind(2)
    q, k = self.q_norm(q), self.k_norm(k)
    if angle is not None:
      q, k = rotate(q, angle), rotate(k, angle)
    return q, k, v, self.gate and self.gate(y).unflatten(-1, (self.heads, -1))

  def merge(self, x, attended, mod):
    return gate(x, self.out(attended.flatten(2)), mod[2])

  def mlp(self, x, mod):
    y = functional.gelu(self.up(modulate(x, mod[3], mod[4])), approximate='tanh')
    return gate(x, self.down(y), mod[5])


class CrossAttention(nn.Module):
  """Queries of one token list, keys and values of another."""

  def __init__(self, width: int, heads: int):
    super().__init__()
    d, self.heads = width, heads
    self.q, self.kv, self.out = Linear(d, d), Linear(d, 2 * d), Linear(d, d)
    self.q_norm, self.k_norm = RMSNorm(d // heads), RMSNorm(d // heads)

  def forward(self, x, source, keys: Keys, ctx: Context, length: int, angles=None):
    """[b s d] read from source [b r d], of whose `length` tokens keys are some.

    Args:
      ctx: of x.
      angles: of queries and of keys.
    """
    q = self.q_norm(self.q(x).unflatten(-1, (self.heads, -1)))
    k, v = self.kv(source).unflatten(-1, (2, self.heads, -1)).unbind(2)
    k = self.k_norm(k)
    if angles is not None:
      q, k = rotate(q, angles[0]), rotate(k, angles[1])
    q = ctx.spread.heads(q, ctx.lengths[0])
    k, v = (ctx.spread.heads(z, length) for z in (k, v))
    out = self.out(ctx.spread.tokens(attend(q, k, v, keys)).flatten(2))
    return torch.where(keys.valid.any(-1)[:, None, None], out, 0)


class Branch(nn.Module):
  """One modality's half of a layer."""

  def __init__(
    self, width, heads, ratio, *, dual: bool, reads_text: bool, sparse: bool, both: bool
  ):
    super().__init__()
    self.tokens = Stream(width, heads, ratio, sparse)
    self.text = Stream(width, heads, ratio) if dual else None
    self.text_norm = LayerNorm(width) if reads_text else None
    self.text_cross = CrossAttention(width, heads) if reads_text else None
    self.cross = CrossAttention(width, heads) if both else None
    self.cross_table = nn.Parameter(torch.zeros(3, width)) if both else None

  def forward(self, shared):
    """The modulation of its cross-attention [3 b d], as that of a Stream."""
    return shared[6:] + self.cross_table[:, None]

  def streams(self, ctx: Context):
    """(stream, its modulation) of the modality and of the text."""
    text, text_mod = (self.text, ctx.text_mod) if self.text else (self.tokens, ctx.mod)
    return (self.tokens, self.tokens(ctx.mod)), (text, text(text_mod))

  def self_attend(self, x, text, ctx: Context):
    (tokens, mod), (reader, text_mod) = self.streams(ctx)
    own, read = tokens.project(x, mod, ctx.angle), reader.project(text, text_mod)
    q, k, v = (ctx.joined(*pair) for pair in zip(own[:3], read[:3]))
    if ctx.tiles is None:
      out = attend(q, k, v, ctx.keys)
    else:
      gate = ctx.spread.heads(own[3], ctx.lengths[0])
      out = vsa.attend(q, k, v, gate, ctx.keys.valid, ctx.tiles)
    out, out_text = ctx.parted(out)
    return tokens.merge(x, out, mod), reader.merge(text, out_text, text_mod)

  def read_text(self, x, ctx: Context):
    if self.text_cross is None:
      return x
    return x + self.text_cross(self.text_norm(x), ctx.prompt, ctx.words, ctx, ctx.lengths[1])

  def read_other(self, x, other, ctx: Context, theirs: Context):
    shift, scale, amount = self(ctx.mod)
    source = layer_norm(other).to(x.dtype)
    times = ctx.time_angle, theirs.time_angle
    reads = source, theirs.readable, ctx, theirs.lengths[0], times
    return gate(x, self.cross(modulate(x, shift, scale), *reads), amount)

  def mlp(self, x, text, ctx: Context):
    (tokens, mod), (reader, text_mod) = self.streams(ctx)
    return tokens.mlp(x, mod), reader.mlp(text, text_mod)


class Layer(nn.Module):
  """Both branches, or video alone; dual-stream or single-stream."""

  def __init__(self, width, heads, ratio, *, dual: bool, sparse: bool, audio: bool):
    super().__init__()
    make = lambda **how: Branch(width, heads, ratio, dual=dual, both=audio, **how)
    self.video = make(reads_text=True, sparse=sparse)
    self.audio = make(reads_text=False, sparse=False) if audio else None

  def forward(self, *tokens, ctx):
    """Tokens [b s d] and text [b m d] of each branch that there is, by an AV of Contexts or None;
    results are alike.  They are tensors, not pairs, so that hooks of diffusers can keep them."""
    video, audio = paired(tokens, ctx)
    if video is not None:
      x, text = self.video.self_attend(*video, ctx.video)
      video = self.video.read_text(x, ctx.video), text
    if audio is not None:
      x, text = self.audio.self_attend(*audio, ctx.audio)
      audio = self.audio.read_text(x, ctx.audio), text
    if video is not None and audio is not None:
      audio = self.audio.read_other(audio[0], video[0], ctx.audio, ctx.video), audio[1]
      video = self.video.read_other(video[0], audio[0], ctx.video, ctx.audio), video[1]
    return (
      *(self.video.mlp(*video, ctx.video) if video else ()),
      *(self.audio.mlp(*audio, ctx.audio) if audio else ()),
    )


def paired(tokens, there: AV) -> AV:
  """(tokens, text) of each branch that is there; None of one that is not."""
  rest = iter(tokens)
  return AV(*(None if one is None else (next(rest), next(rest)) for one in there))


class TimeEmbedding(nn.Module):
  """t [b] in [0, 1] -> silu(MLP(sinusoid of 1000 (1 - t))) [b d], fp32."""

  def __init__(self, width: int, size: int = 256):
    super().__init__()
    self.size = size
    self.up, self.out = Linear(size, width), Linear(width, width)

  def forward(self, t):
    angle = 1000 * (1 - t.float())[:, None] * frequencies(self.size // 2, t)
    sinusoid = torch.cat([angle.cos(), angle.sin()], -1)
    return functional.silu(self.out(functional.silu(self.up(sinusoid))))
