"""Video Sparse Attention in torch: sr4/nn/vsa.py, number by number.

The fine part is flex_attention under a mask of tiles, compiled where there is a GPU: tiles of 128
tokens that are not chosen are never read.
"""

import dataclasses
import functools

import torch
from torch.nn import functional
from torch.nn.attention import flex_attention


@dataclasses.dataclass(frozen=True)
class Tiles:
  """Of a branch's tokens, which lie tile by tile."""

  sparsity: torch.Tensor  # fp32 [b]
  choosing: torch.Tensor  # bool [the clip's tiles]: each chooses, or is dense
  size: int  # tokens of a tile


def attend(q, k, v, gate, valid, tiles: Tiles):
  """Joint attention of the clip's tokens and, behind them, the text's.

  Args:
    q, k, v: [b s n k]; gate: [b the clip's n k]; valid: bool [b s].
  Returns:
    [b s n k]
  """
  length, size = q.shape[1], tiles.size
  filled = lambda x, extra: functional.pad(x, (0, 0, 0, 0, 0, extra))
  extra = -length % size
  q, k, v = (filled(x, extra) for x in (q, k, v))
  gate, valid = filled(gate, q.shape[1] - gate.shape[1]), functional.pad(valid, (0, extra))
  choosing = functional.pad(tiles.choosing, (0, q.shape[1] // size - len(tiles.choosing)))
  there = valid.unflatten(1, (-1, size)).any(-1)
  scores, coarse = coarsely(*(mean(x, valid, size) for x in (q, k, v)), there)
  mask = select(scores, choosing, there, tiles.sparsity)
  fine = finely(q, k, v, valid, mask, size).float()
  gate = torch.where(choosing.repeat_interleave(size)[:, None, None], gate, 0).float()
  out = fine + gate * coarse.repeat_interleave(size, 1)
  return out.to(v.dtype)[:, :length]


def mean(x, valid, size: int):
  """fp32 [b tiles n k]: over the tokens of each tile that are there; zero where none is."""
  weights = valid.float().unflatten(1, (-1, size))[..., None, None]
  total = (x.float().unflatten(1, (-1, size)) * weights).sum(2)
  return total / weights.sum(2).clamp(min=1)


def coarsely(q, k, v, there):
  """(S [b n i j], O_c [b i n k]) of tiles; there: bool [b j]."""
  scores = torch.einsum('bink,bjnk->bnij', q, k) * q.shape[-1] ** -0.5
  least = torch.finfo(scores.dtype).min  # No -inf, of which a softmax makes NaN where all are.
  weights = scores.masked_fill(~there[:, None, None], least).softmax(-1)
  return scores, torch.einsum('bnij,bjnk->bink', weights, v)


def select(scores, choosing, there, sparsity):
  """bool [b n i j]: the K = ceil((1 - sparsity) n) best of the n tiles that may be chosen."""
  free = there & choosing
  count = torch.ceil((1 - sparsity) * free.sum(-1) - 1e-3).long()[:, None, None, None]
  scores = scores.masked_fill(~free[:, None, None], -torch.inf)
  order = scores.sort(-1, descending=True).values
  least = order.gather(-1, (count - 1).clamp(min=0).expand(*order.shape[:-1], 1))
  above, equal = scores > least, scores == least
  left = count - above.sum(-1, keepdim=True)
  best = above | (equal & (equal.cumsum(-1) <= left))
  return (best | ~choosing | ~choosing[:, None]) & there[:, None, None]


def finely(q, k, v, valid, mask, size: int):
  """softmax over the valid tokens of the chosen tiles; zero where a query has none."""
  blocks = mask.sum(-1, dtype=torch.int32)
  chosen = torch.argsort(mask.int(), dim=-1, descending=True, stable=True).int()

  def seen(b, n, i, j):
    return mask[b, n, i // size, j // size] & valid[b, j]

  told = flex_attention.BlockMask.from_kv_blocks(blocks, chosen, BLOCK_SIZE=size, mask_mod=seen)
  run = compiled() if q.is_cuda else flex_attention.flex_attention
  out = run(*(x.transpose(1, 2) for x in (q, k, v)), block_mask=told).transpose(1, 2)
  some = valid.unflatten(1, (-1, size)).any(-1)[:, None, None]
  some = (mask & some).any(-1).transpose(1, 2).repeat_interleave(size, 1)
  return torch.where(some[..., None], out, 0)


@functools.cache
def compiled():
  return torch.compile(flex_attention.flex_attention)
