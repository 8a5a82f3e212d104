"""Qwen3-VL as an encoder: text, pictures and clips in, hidden states of a layer out.

The member of the family that a video team would take today: the newest dense one, from 2 B to 32 B
with one architecture, DeepStack, clips as timed pictures, and a reference class (`transformers`
Qwen3VL...) to be held against.
"""

import dataclasses
import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from sr4.core import sharding
from sr4.models.text import qwen_reading
from sr4.models.text import qwen_vision
from sr4.nn import norm
from sr4.nn.dense import attend
from sr4.nn.dense import Dense
from sr4.nn.dense import rotated


@dataclasses.dataclass(frozen=True)
class Config:
  """Of Qwen3-VL-8B; `SIZES` has the others."""

  weights: str = ''  # folder of the published files, or 'random'
  tokenizer: str = ''  # tokenizer.json; '': the one beside the weights
  layer: int = 34  # blocks run: hidden_states[layer] of transformers; with all, the norm follows
  template: str = qwen_reading.TEMPLATE  # around a prompt, which stands for {}
  tokens: int = 1280  # of a prompt; more are cut off
  picture_tokens: int = 256  # the most that a picture takes; a larger one is shrunk
  clip_fps: float = 2.0  # at which a clip is looked at
  d: int = 4096
  f: int = 12288
  depth: int = 36
  heads: int = 32
  groups: int = 8  # heads of keys and values
  head: int = 128
  vocabulary: int = 151936
  theta: float = 5_000_000.0
  sections: tuple[int, int, int] = (24, 20, 20)  # frequencies of time, rows, columns (M-RoPE)
  vision: qwen_vision.Config = qwen_vision.Config()
  dtype: str = 'bfloat16'

  def __post_init__(self):
    deep = len(self.vision.deep)
    if not deep < self.layer <= self.depth:
      raise ValueError(f'layer={self.layer} is a number of blocks from {deep + 1} to {self.depth}')
    if self.heads % self.groups:
      raise ValueError(f'heads={self.heads} must be a multiple of groups={self.groups}')
    if sum(self.sections) != self.head // 2:
      raise ValueError(f'sections={self.sections} must add up to head / 2 = {self.head // 2}')
    if self.template.count('{}') != 1:
      raise ValueError(f'template={self.template!r} must have one {{}}, where the prompt goes')

  @property
  def width(self) -> int:
    return self.d


SMALL_TOWER = dict(d=1024, f=4096, depth=24, deep=(5, 11, 17))
SIZES = {
  'qwen3-vl-2b': dict(d=2048, f=6144, depth=28, heads=16, layer=26, vision=SMALL_TOWER),
  'qwen3-vl-4b': dict(d=2560, f=9728, vision=SMALL_TOWER),
  'qwen3-vl-8b': {},
  'qwen3-vl-32b': dict(d=5120, f=25600, depth=64, heads=64, layer=62),
}


class Block(nnx.Module):
  def __init__(self, c: Config, *, rngs: nnx.Rngs):
    mk = lambda *args: Dense(*args, dtype=c.dtype, rngs=rngs)
    side, n, g, k = sharding.FSDP, c.heads, c.groups, c.head
    self.norm1, self.norm2 = norm.RMSNorm(c.d), norm.RMSNorm(c.d)
    self.q_norm, self.k_norm = norm.RMSNorm(k), norm.RMSNorm(k)
    self.q = mk('bmd,dnk->bmnk', (c.d, n, k), (side, 'tensor', None))
    self.k = mk('bmd,dnk->bmnk', (c.d, g, k), (side, 'tensor', None))
    self.v = mk('bmd,dnk->bmnk', (c.d, g, k), (side, 'tensor', None))
    self.proj = mk('bmnk,nkd->bmd', (n, k, c.d), ('tensor', None, side))
    self.gate = mk('bmd,df->bmf', (c.d, c.f), (side, 'tensor'))
    self.up = mk('bmd,df->bmf', (c.d, c.f), (side, 'tensor'))
    self.down = mk('bmf,fd->bmd', (c.f, c.d), ('tensor', side))

  def __call__(self, x: jax.Array, angle: jax.Array, seen: jax.Array) -> jax.Array:
    y = self.norm1(x)
    q = rotated(self.q_norm(self.q(y)), angle)
    k, v = rotated(self.k_norm(self.k(y)), angle), self.v(y)
    k, v = (sharding.constrained(z, sharding.KEYS) for z in (k, v))
    x = x + self.proj(attend(q, k, v, seen))
    y = self.norm2(x)
    x = x + self.down(jax.nn.silu(self.gate(y)) * self.up(y))
    return sharding.constrained(x, sharding.LONG.tokens)


class QwenVL(nnx.Module):
  """models/text/encoder.py `TextEncoder` with weights."""

  def __init__(self, c: Config, *, rngs: nnx.Rngs):
    table = sharding.at_rest(None, sharding.FSDP)
    draw = jax.random.normal(rngs.params(), (c.vocabulary, c.d), out_sharding=table)
    stack = lambda n: jax.vmap(lambda r: Block(c, rngs=r))(rngs.split(n))
    self.embedding = nnx.Param((draw * 0.02).astype(c.dtype))
    self.vision = qwen_vision.Tower(c.vision, c.d, c.dtype, rngs=rngs)
    self.first = stack(len(c.vision.deep))  # These add the features of the tower.
    self.rest = stack(c.layer - len(c.vision.deep))
    self.norm = norm.RMSNorm(c.d) if c.layer == c.depth else None
    self.config, self.width = c, c.width

  def read(self, prompts, size) -> tuple[qwen_reading.Read, np.ndarray]:
    return qwen_reading.read(self.config, prompts, size)

  def shapes(self, rows: int, size):
    return qwen_reading.shapes(self.config, rows, size)

  def encode(self, read: qwen_reading.Read) -> jax.Array:
    return sharding.on_rows(QwenVL.hidden)(self, read)

  def hidden(self, read: qwen_reading.Read) -> jax.Array:
    """Hidden states [b m d] in `dtype`; where `read.valid` is False they mean nothing."""
    c = self.config
    x = jnp.take(self.embedding[...], read.ids, axis=0)
    angle = angles(read.positions, c)
    there = jnp.arange(read.ids.shape[1])
    seen = (there[:, None] >= there) & read.valid[:, None, :]
    run = lambda x, block: block(x, angle, seen)
    if read.pictures is None:
      x, _ = jax.lax.scan(lambda x, block: (run(x, block), None), x, self.first)
    else:
      tokens, deep = self.vision(read.pictures.patches, read.pictures.grid)
      x = jnp.where(read.source[..., None] < 0, x, placed(tokens, read.source))
      deep = jnp.stack([placed(features, read.source) for features in deep])
      add = lambda x, with_: (run(x, with_[0]) + with_[1], None)
      x, _ = jax.lax.scan(add, x, (self.first, deep))
    x, _ = jax.lax.scan(lambda x, block: (run(x, block), None), x, self.rest)
    return x if self.norm is None else self.norm(x)


def placed(tokens: jax.Array, source: jax.Array) -> jax.Array:
  """Tokens of pictures [b q p d] where a prompt has them, [b m d]; zeros elsewhere (source < 0)."""
  flat = tokens.reshape(tokens.shape[0], -1, tokens.shape[-1])
  found = jnp.take_along_axis(flat, jnp.maximum(source, 0)[..., None], 1)
  return jnp.where(source[..., None] < 0, 0, found)


def angles(positions: jax.Array, c: Config) -> jax.Array:
  """M-RoPE, interleaved: of the frequencies every third is of rows, the next of columns.

  Args:
    positions: int32 [b 3 m]: time, row, column.
  Returns:
    fp32 [b m k/2]
  """
  half = c.head // 2
  frequency = c.theta ** -(jnp.arange(half, dtype=jnp.float32) / half)
  return jnp.moveaxis(positions.astype(jnp.float32)[:, axes(c.sections)], 1, 2) * frequency


@functools.cache
def axes(sections: tuple[int, int, int]) -> np.ndarray:
  """Which of time 0, row 1, column 2 each frequency turns by."""
  found = np.zeros(sum(sections), np.int32)
  for axis in (1, 2):
    found[axis : 3 * sections[axis] : 3] = axis
  return found
