"""Tokens spread over processes, and heads in their place while they attend (Ulysses).

  model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))

So diffusers asks for it; what it would do itself knows no joint attention of two lists of tokens.
"""

import dataclasses

import torch
from torch import distributed
from torch.nn import functional


@dataclasses.dataclass(frozen=True)
class Spread:
  """Of [b s ...], each process of a group has as many tokens, in their order; zeros fill the last.

  While it attends, it has all tokens of an equal part of the heads.
  """

  size: int = 1  # processes
  rank: int = 0
  group: distributed.ProcessGroup | None = None

  @classmethod
  def of(cls, model) -> 'Spread':
    """As enable_parallelism told the model.

    Raises:
      ValueError: it is told of a ring, or of processes that do not divide its heads.
    """
    told = getattr(model._parallel_config, 'context_parallel_config', None)
    if told is None:
      return cls()
    if told.ring_degree > 1:
      raise ValueError(
        f'ring_degree={told.ring_degree} must be 1: here tokens are exchanged for heads; use '
        'ulysses_degree'
      )
    if model.config.heads % told.ulysses_degree:
      raise ValueError(
        f'ulysses_degree={told.ulysses_degree} must divide the {model.config.heads} heads'
      )
    return cls(told.ulysses_degree, told._ulysses_local_rank, told._ulysses_mesh.get_group())

  def part(self, x):
    """[b s ...] -> [b s/p ...], this process's own."""
    return x if self.size == 1 else self.cut(x)[:, self.rank]

  def whole(self, x, length: int):
    """[b s/p ...] -> [b s ...], the same in all processes."""
    if self.size == 1:
      return x
    parts = [torch.empty_like(x) for _ in range(self.size)]
    distributed.all_gather(parts, x.contiguous(), self.group)
    return torch.cat(parts, 1)[:, :length]

  def heads(self, x, length: int):
    """[b s/p n k] -> [b s n/p k]"""
    if self.size == 1:
      return x
    parts = x.unflatten(2, (self.size, -1)).movedim(2, 0)  # [p b s/p n/p k], p: whose heads
    return self.exchange(parts).flatten(1, 2)[:, :length]

  def tokens(self, x):
    """[b s n/p k] -> [b s/p n k]"""
    if self.size == 1:
      return x
    parts = self.cut(x).movedim(1, 0)  # [p b s/p n/p k], p: whose tokens
    return self.exchange(parts).movedim(1, 2).flatten(2, 3)

  def cut(self, x):
    """[b s ...] -> [b p s/p ...]"""
    missing = -x.shape[1] % self.size
    return functional.pad(x, (0, 0) * (x.ndim - 2) + (0, missing)).unflatten(1, (self.size, -1))

  def exchange(self, x):
    """[p b ...], a part for each process -> [b p ...], a part of each."""
    found = torch.empty_like(x, memory_format=torch.contiguous_format)
    distributed.all_to_all_single(found, x.contiguous(), group=self.group)
    return found.movedim(0, 1)
