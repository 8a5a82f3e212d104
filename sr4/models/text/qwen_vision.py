"""The vision tower of Qwen3-VL: pictures to tokens of the language model, and DeepStack's features.

A picture is two frames (a still twice) in patches, which lie in blocks of merge x merge: each block
becomes one token.  After some blocks of the tower their features are merged too; the first blocks
of the language model add them (DeepStack, arXiv 2406.04334).
"""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp

from sr4.core import sharding
from sr4.nn import norm
from sr4.nn.dense import attend
from sr4.nn.dense import Dense
from sr4.nn.dense import rotated


@dataclasses.dataclass(frozen=True)
class Config:
  """Its names in the published config.json are those of convert/qwen.py `VISION`."""

  d: int = 1152
  f: int = 4304
  depth: int = 27
  heads: int = 16
  patch: int = 16
  frames: int = 2
  merge: int = 2
  grid: int = 48  # learnt positions a side
  deep: tuple[int, ...] = (8, 16, 24)  # blocks whose features the language model adds
  theta: float = 10_000.0

  def __post_init__(self):
    if self.d % (4 * self.heads):
      raise ValueError(f'd={self.d} over heads={self.heads} must give heads of a multiple of 4')
    if (
      not self.deep
      or list(self.deep) != sorted({*self.deep})
      or not all(0 <= i < self.depth for i in self.deep)
    ):
      raise ValueError(
        f'deep={self.deep} are rising numbers of blocks, one or more, below depth={self.depth}'
      )


class Block(nnx.Module):
  def __init__(self, c: Config, dtype: str, *, rngs: nnx.Rngs):
    n, k = c.heads, c.d // c.heads
    mk = lambda *args: Dense(*args, dtype=dtype, rngs=rngs, bias=True)
    self.norm1, self.norm2 = norm.LayerNorm(c.d), norm.LayerNorm(c.d)
    self.qkv = mk('...d,dxnk->...xnk', (c.d, 3, n, k), (sharding.FSDP, None, 'tensor', None))
    self.proj = mk('...nk,nkd->...d', (n, k, c.d), ('tensor', None, sharding.FSDP))
    self.up = mk('...d,df->...f', (c.d, c.f), (sharding.FSDP, 'tensor'))
    self.down = mk('...f,fd->...d', (c.f, c.d), ('tensor', sharding.FSDP))

  def __call__(self, x: jax.Array, angle: jax.Array, seen: jax.Array) -> jax.Array:
    q, k, v = jnp.moveaxis(self.qkv(self.norm1(x)), -3, 0)
    x = x + self.proj(attend(rotated(q, angle), rotated(k, angle), v, seen))
    return x + self.down(jax.nn.gelu(self.up(self.norm2(x)), approximate=True))


class Merger(nnx.Module):
  """merge^2 patches to one token; the norm is over a patch, or over all of them (`joint`)."""

  def __init__(self, c: Config, out: int, joint: bool, dtype: str, *, rngs: nnx.Rngs):
    wide = c.d * c.merge**2
    mk = lambda *args: Dense(*args, dtype=dtype, rngs=rngs, bias=True)
    self.norm = norm.LayerNorm(wide if joint else c.d)
    self.up = mk('...d,df->...f', (wide, wide), (sharding.FSDP, 'tensor'))
    self.down = mk('...f,fd->...d', (wide, out), ('tensor', sharding.FSDP))
    self.wide, self.joint = wide, joint

  def __call__(self, x: jax.Array) -> jax.Array:
    """[... p d] -> [... p/merge^2 out]"""
    joined = lambda x: x.reshape(*x.shape[:-2], -1, self.wide)
    x = self.norm(joined(x)) if self.joint else joined(self.norm(x))
    return self.down(jax.nn.gelu(self.up(x), approximate=False))


class Tower(nnx.Module):
  """(patches, grids) -> (tokens, deep features)."""

  def __init__(self, c: Config, out: int, dtype: str, *, rngs: nnx.Rngs):
    inputs = c.frames * c.patch**2 * 3
    self.patches = Dense(
      '...c,cd->...d', (inputs, c.d), (None, sharding.FSDP), dtype=dtype, rngs=rngs, bias=True
    )
    draw = jax.random.normal(rngs.params(), (c.grid**2, c.d))
    self.positions = nnx.Param((draw * 0.02).astype(dtype))
    ends = [i + 1 for i in c.deep] + [c.depth]
    counts = [b - a for a, b in zip([0] + ends, ends)]
    stack = lambda n: jax.vmap(lambda r: Block(c, dtype, rngs=r))(rngs.split(n))
    self.stages = nnx.List([stack(n) for n in counts if n])
    self.mergers = nnx.List([Merger(c, out, True, dtype, rngs=rngs) for _ in c.deep])
    self.merger = Merger(c, out, False, dtype, rngs=rngs)
    self.config = c

  def __call__(self, patches: jax.Array, grid: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
    """Pictures that see nothing of each other.

    Args:
      patches: uint8 [b q p c], of q pictures in a row, each [3 frames patch patch] flat; those
        after the last of a picture are padding.
      grid: int32 [b q 2]: rows and columns of patches.
    Returns:
      [b q p/merge^2 e], and one such for each of `deep`.
    """
    c = self.config
    row, column = places(grid, patches.shape[2], c.merge)
    x = self.patches(patches.astype(jnp.float32) / 127.5 - 1)
    x = x + self.learnt(row, column, grid).astype(x.dtype)
    quarter = c.d // c.heads // 4
    frequency = c.theta ** -(jnp.arange(quarter, dtype=jnp.float32) / quarter)
    angle = jnp.concatenate([p[..., None] * frequency for p in (row, column)], -1)
    there = jnp.arange(patches.shape[2]) < jnp.prod(grid, -1, keepdims=True)
    seen = jnp.broadcast_to(there[..., None, :], (*there.shape, there.shape[-1]))
    deep = []
    for i, stage in enumerate(self.stages):
      x, _ = jax.lax.scan(lambda x, block: (block(x, angle, seen), None), x, stage)
      if i < len(c.deep):
        deep.append(self.mergers[i](x))
    return self.merger(x), deep

  def learnt(self, row, column, grid) -> jax.Array:
    """The learnt positions, interpolated to a picture's grid, corners on corners: [b q p d]."""
    side = self.config.grid
    taps = []
    for place, count in ((row, grid[..., :1]), (column, grid[..., 1:])):
      at = place * (side - 1) / jnp.maximum(count - 1, 1)
      low = jnp.clip(jnp.floor(at), 0, side - 1)
      high = jnp.minimum(low + 1, side - 1)
      taps.append(((low, 1 - (at - low)), (high, at - low)))
    table = self.positions[...].astype(jnp.float32)
    return sum(
      table[(y * side + x).astype(jnp.int32)] * (wy * wx)[..., None]
      for y, wy in taps[0]
      for x, wx in taps[1]
    )


def places(grid: jax.Array, patches: int, merge: int) -> tuple[jax.Array, jax.Array]:
  """fp32 [b q p] each: row and column of the patches, which lie block after block."""
  i, wide = jnp.arange(patches), jnp.maximum(grid[..., 1:] // merge, 1)
  block, row, column = i // merge**2, i // merge % merge, i % merge
  place = lambda block, inside: (block * merge + inside).astype(jnp.float32)
  return place(block // wide, row), place(block % wide, column)
