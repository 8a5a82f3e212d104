"""Video Sparse Attention (arXiv 2505.13389): attention of tiles of a clip to those that matter.

  coarse   q, k, v are averaged over each tile; S = q_c k_c^T / sqrt(k), O_c = softmax(S) v_c
  select   each tile of queries takes the best (1 - sparsity) of the tiles of keys, by S
  fine     softmax attention over the tokens of these
  out      O_fine + gate * O_c, the gate a linear map that is zero at first

Tiles of a clip that is generated choose and are chosen.  All other tokens, of references and text,
are read by every tile and read all: their tiles are dense.  With nothing left out and the gate at
zero this is dense attention; with the gate at zero it is dense attention under the mask of tiles.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from sr4.core import sharding
from sr4.nn import attention
from sr4.nn.kernels import block_sparse
from sr4.nn.kernels import splash

SIZES = (64, 128, 256)  # tokens of a tile for which there are kernels
HIGHEST = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True)
class Config:
  """Off where the tile is ().  A tile that is not dense leaves out `sparsity` of the others."""

  # Tokens of a tile: a number, whose cuboids fit each grid, as (128,), or sides, as (4, 4, 4).
  tile: tuple[int, ...] = ()
  sparsity: float = 2 / 3  # the report's factor of three
  dense_layers: tuple[int, ...] = ()  # of all layers, from 0: these leave out nothing
  dense_until: float = 0.0  # nor does any at a flow time below this: the first steps of sampling

  def __post_init__(self):
    known = len(self.tile) in (1, 3) and min(self.tile) > 0 and self.size in SIZES
    if self.tile and not known:
      raise ValueError(
        f'model.sparse.tile={self.tile}: it must be a number of tokens among {SIZES}, as (128,), '
        'or the sides (t, h, w) of a tile with so many, as (4, 4, 4); () is dense attention'
      )
    for field in ('sparsity', 'dense_until'):
      if not 0 <= getattr(self, field) < 1:
        raise ValueError(f'model.sparse.{field}={getattr(self, field)} is not in [0, 1)')

  @property
  def size(self) -> int:
    return math.prod(self.tile)

  def left(self, layers: int) -> float:
    """The share of the tiles to choose from that is left out, in the mean of so many layers."""
    return self.sparsity * (1 - len(set(self.dense_layers)) / layers)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tiles:
  """Of a branch's long stream, which lies tile by tile (nn/order.py)."""

  sparsity: jax.Array  # float32 [b]
  choosing: tuple[bool, ...] = dataclasses.field(metadata={'static': True})  # each tile: or dense
  config: Config = dataclasses.field(metadata={'static': True})
  # Config.left, as the compiler is told: one program runs all layers.
  left: float = dataclasses.field(metadata={'static': True})


def attend(queries, keys, values, gate, valid, tiles: Tiles) -> tuple[jax.Array, ...]:
  """Joint attention of the clip's stream and the text's, in the layouts of attention.attend.

  Args:
    queries, keys, values: (clip, text) of [b s n k] each; valid: bool [b s] each.
    gate: [b s n k] of the clip.
  Returns:
    [b s n k] of each.
  """
  attention.check_heads(queries[0].shape[2])
  specs = tuple(map(sharding.of, queries))
  long = tuple(map(attention.is_long, queries))
  # A gate goes with its query to where its heads are.
  gates = gate, jnp.zeros_like(queries[1])
  queries = tuple(jnp.concatenate(pair, -1) for pair in zip(queries, gates))

  def way(queries, keys, values, valid, sparsity):
    # After the exchange a device has all keys for its heads, and the queries of one part of the
    # ring: a run of what is long, all of what is short.  Which queries are those?
    part, ways = attention.ring_part(queries[0].shape[2])
    cut = lambda x, axis, count: jax.lax.dynamic_slice_in_dim(x, part * count, count, axis)
    asked = [cut(x, 1, q.shape[1] * ways) if l else x for x, q, l in zip(valid, queries, long)]
    choosing = jnp.asarray(tiles.choosing)
    chooses = cut(choosing, 0, asked[0].shape[1] // tiles.config.size)
    asked = attention.joined(asked)

    def run(q, k, v, valid):
      q, gate = jnp.split(q, 2, -1)
      return local(tiles, q, k, v, gate, valid, asked, chooses, sparsity)

    return attention.exchange(long, run, queries, keys, values, valid)

  args = queries, tuple(keys), tuple(values), tuple(valid), tiles.sparsity
  return sharding.mapped(way, specs)(*args)


def local(tiles: Tiles, q, k, v, gate, valid, asked, chooses, sparsity) -> jax.Array:
  """What one device does, for its heads; the clip lies before the text.

  Args:
    q, gate: [b s n k]; asked: bool [b s], which queries there are; chooses: bool [the clip's tiles
      among them].
    k, v: [b r n k]; valid: bool [b r].
  """
  length, size = q.shape[1], tiles.config.size
  q, k, v, gate, valid, asked = (splash.padded(x, size) for x in (q, k, v, gate, valid, asked))
  filled = lambda x, like: jnp.pad(x, (0, like.shape[1] // size - len(x)))
  chooses, chosen = filled(chooses, q), filled(jnp.asarray(tiles.choosing), k)
  pooled = [mean(x, there, size) for x, there in ((q, asked), (k, valid), (v, valid))]
  there = jnp.any(valid.reshape(len(valid), -1, size), -1)
  scores, coarse = coarsely(*pooled, there)
  mask = select(jax.lax.stop_gradient(scores), chooses, chosen, there, sparsity)
  fine = block_sparse.attend(q, k, v, valid, mask, reads(tiles, len(chosen))).astype(jnp.float32)
  gate = jnp.where(jnp.repeat(chooses, size)[:, None, None], gate, 0).astype(jnp.float32)
  return (fine + gate * jnp.repeat(coarse, size, 1)).astype(v.dtype)[:, :length]


def reads(tiles: Tiles, count: int) -> float:
  """Tiles that one of `count` reads, in the mean: those that choose leave out a share of those
  that may be chosen."""
  choosing = sum(tiles.choosing)
  return count - tiles.left * choosing * choosing / count


def mean(x, valid, size: int) -> jax.Array:
  """fp32 [b tiles n k]: over the tokens of each tile that are there; zero where none is."""
  weights = valid.astype(jnp.float32).reshape(len(valid), -1, size, 1, 1)
  tiles = x.astype(jnp.float32).reshape(len(x), -1, size, *x.shape[2:])
  return jnp.sum(tiles * weights, 2) / jnp.maximum(jnp.sum(weights, 2), 1)


def coarsely(q, k, v, there):
  """(S [b n i j], O_c [b i n k]) of tiles; there: bool [b j]; O_c of a row without any is zero."""
  scores = jnp.einsum('bink,bjnk->bnij', q, k, precision=HIGHEST) * q.shape[-1] ** -0.5
  least = jnp.finfo(scores.dtype).min  # No -inf, of which a softmax makes NaN where all are.
  weights = jax.nn.softmax(jnp.where(there[:, None, None], scores, least), -1)
  return scores, jnp.einsum('bnij,bjnk->bink', weights, v, precision=HIGHEST)


def select(scores, chooses, chosen, there, sparsity) -> jax.Array:
  """bool [b n i j]: the K = ceil((1 - sparsity) n) best of the n tiles that may be chosen.

  Args:
    scores: [b n i j]; chooses: bool [i]; chosen: bool [j], which may be; there: bool [b j].
    sparsity: [b].
  """
  free = there & chosen
  count = jnp.sum(free, -1)
  # The share is no exact number: what is a thousandth of a tile too many is none.
  count = jnp.ceil((1 - sparsity) * count - 1e-3).astype(jnp.int32)[:, None, None, None]
  scores = jnp.where(free[:, None, None], scores, -jnp.inf)
  order = jnp.flip(jnp.sort(scores, -1), -1)
  least = jnp.take_along_axis(order, jnp.maximum(count - 1, 0), -1)
  above, equal = scores > least, scores == least
  left = count - jnp.sum(above, -1, keepdims=True, dtype=jnp.int32)
  best = above | (equal & (jnp.cumsum(equal, -1, dtype=jnp.int32) <= left))
  return (best | ~chosen | ~chooses[:, None]) & there[:, None, None]
