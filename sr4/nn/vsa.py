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
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from sr4.core import sharding
from sr4.nn import attention
from sr4.nn.kernels import block_sparse
from sr4.nn.kernels import splash

SIZES = (64, 128, 256)  # tokens of a tile for which there are kernels
HIGHEST = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True)
class Config:
  """Off where the tile is ().  A tile that is not dense leaves out `sparsity` of the others."""

  tile: tuple[int, ...] = ()  # patches (t, h, w), such as (4, 4, 8)
  sparsity: float = 2 / 3  # the report's factor of three
  dense_layers: tuple[int, ...] = ()  # of all layers, from 0: these leave out nothing
  dense_until: float = 0.0  # nor does any at a flow time below this: the first steps of sampling

  def __post_init__(self):
    if self.tile and (len(self.tile) != 3 or self.size not in SIZES or self.uneven):
      raise ValueError(
        f'model.sparse.tile={self.tile}: it must be (t, h, w) in powers of two with {SIZES} tokens '
        'in all, such as (4, 4, 4), (4, 4, 8) or (4, 8, 8); () is dense attention'
      )
    for field in ('sparsity', 'dense_until'):
      if not 0 <= getattr(self, field) < 1:
        raise ValueError(f'model.sparse.{field}={getattr(self, field)} is not in [0, 1)')

  @property
  def size(self) -> int:
    return math.prod(self.tile)

  @property
  def uneven(self) -> bool:
    return any(side & (side - 1) for side in self.tile)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tiles:
  """Of a branch's long stream, which lies tile by tile (nn/order.py)."""

  sparsity: jax.Array  # float32 [b]
  choosing: tuple[bool, ...] = dataclasses.field(metadata={'static': True})  # each tile: or dense
  config: Config = dataclasses.field(metadata={'static': True})


def attend(queries, keys, values, gate, valid, tiles: Tiles) -> tuple[jax.Array, ...]:
  """Joint attention of a long stream and a short one, as attention.attend.

  Args:
    queries, keys, values: (long, short) of [b s n k] each; valid: bool [b s] each.
    gate: [b s n k] of the long stream.
  Returns:
    [b s n k] of each.
  """
  attention.check_heads(queries[0].shape[2])
  specs = tuple(map(sharding.of, queries))
  # The gate goes with its query to where its heads are.
  both = (queries[0], gate), (queries[1], jnp.zeros_like(queries[1]))
  queries = tuple(jnp.concatenate(pair, -1) for pair in both)
  one = functools.partial(local, tiles.config, np.array(tiles.choosing))

  def way(queries, keys, values, valid, sparsity):
    run = lambda *args: one(*args, sparsity)
    return attention.exchange((True, False), run, queries, keys, values, valid)

  args = queries, tuple(keys), tuple(values), tuple(valid), tiles.sparsity
  return jax.shard_map(way, out_specs=specs, check_vma=False)(*args)


def local(c: Config, choosing: np.ndarray, q, k, v, valid, sparsity):
  """The heads of one device; q [b s n 2k] with its gates, of all tokens or of a ring's part.

  The long stream lies before the short one, which is filled up to whole tiles here.
  """
  length, clip = q.shape[1], len(choosing) * c.size
  mine = clip - (k.shape[1] - length)  # tokens of the long stream whose queries are here
  start = 0
  if mine < clip:  # The ring's parts follow each other, each in the hands of seq / rings devices.
    rings = clip // mine
    start = jax.lax.axis_index('seq') // (sharding.axis_size('seq') // rings) * mine
  asked = jax.lax.dynamic_slice_in_dim(valid[:, :clip], start, mine, 1)
  asked = jnp.concatenate([asked, valid[:, clip:]], 1)
  chooses = jax.lax.dynamic_slice_in_dim(jnp.asarray(choosing), start // c.size, mine // c.size)
  q, k, v, valid, asked = (splash.padded(x, c.size) for x in (q, k, v, valid, asked))
  q, gate = jnp.split(q, 2, -1)

  more = lambda x, like: jnp.pad(x, (0, like.shape[1] // c.size - len(x)))
  chooses, chosen = more(chooses, q), more(jnp.asarray(choosing), k)
  pooled = [mean(x, seen, c.size) for x, seen in ((q, asked), (k, valid), (v, valid))]
  there = jnp.any(valid.reshape(len(valid), -1, c.size), -1)
  scores, coarse = coarsely(*pooled, there)
  mask = select(jax.lax.stop_gradient(scores), chooses, chosen, there, sparsity)
  reads = len(mask[0, 0, 0]) - c.sparsity * int(choosing.sum())
  out = block_sparse.attend(q, k, v, valid, mask, reads)
  gate = jnp.where(jnp.repeat(chooses, c.size)[:, None, None], gate, 0)
  coarse = jnp.repeat(coarse, c.size, 1)
  out = out.astype(jnp.float32) + gate.astype(jnp.float32) * coarse
  return out.astype(v.dtype)[:, :length]


def mean(x, valid, size: int) -> jax.Array:
  """fp32 [b tiles n k]: over the tokens of each tile that are there; zero where none is."""
  weights = valid.astype(jnp.float32).reshape(len(valid), -1, size, 1, 1)
  tiles = x.astype(jnp.float32).reshape(len(x), -1, size, *x.shape[2:])
  return jnp.sum(tiles * weights, 2) / jnp.maximum(jnp.sum(weights, 2), 1)


def coarsely(q, k, v, there):
  """(S [b n i j], O_c [b i n k]) of tiles; there: bool [b j]."""
  scores = jnp.einsum('bink,bjnk->bnij', q, k, precision=HIGHEST) * q.shape[-1] ** -0.5
  weights = jax.nn.softmax(jnp.where(there[:, None, None], scores, -jnp.inf), -1)
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
