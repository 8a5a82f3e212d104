"""A text encoder without weights: words hashed from their bytes, for the quick start and the tests.

It knows nothing of language.  Each word becomes one token whose embedding is a fixed random sum
over its bytes and their places, so equal words are equal vectors, on every machine and for ever.
"""

import dataclasses
import functools
import re

import jax
import numpy as np

from sr4.core.batch import Size
from sr4.core.prompt import Prompt

LONGEST = 16  # bytes a piece; longer words, and scripts without spaces, are cut
PIECES = re.compile(rb'</?\w+>|\w+|[\x80-\xff]+|[^\w\s]')


@dataclasses.dataclass(frozen=True)
class Config:
  width: int = 128
  tokens: int = 32  # more are cut off


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class ByteEncoder:
  """models/text/encoder.py `TextEncoder` without weights.  It does not look at pictures."""

  config: Config

  @property
  def width(self) -> int:
    return self.config.width

  def shapes(self, rows: int, size: Size):
    c = self.config
    like = lambda *shape, dtype: jax.ShapeDtypeStruct((rows, c.tokens, *shape), dtype)
    return like(c.width, dtype=np.float32), like(dtype=bool)

  def read(self, prompts: list[Prompt], size: Size) -> tuple[np.ndarray, np.ndarray]:
    table, like = words(self.config.width), self.shapes(len(prompts), size)
    text, valid = (np.zeros(x.shape, x.dtype) for x in like)
    for row, prompt in enumerate(prompts):
      for i, piece in enumerate(pieces(prompt.text)[: self.config.tokens]):
        data = np.frombuffer(piece, np.uint8)
        text[row, i] = table[np.arange(len(data)), data].sum(0) / np.sqrt(len(data))
        valid[row, i] = True
    return text, valid


@functools.cache
def words(width: int) -> np.ndarray:
  """[place, byte, e] standard normal."""
  random = np.random.Generator(np.random.Philox(key=20260221))
  return random.standard_normal((LONGEST, 256, width), dtype=np.float32)


def pieces(prompt: str) -> list[bytes]:
  """Words, tags and signs of a prompt as UTF-8, lower case, none over LONGEST bytes."""
  found = PIECES.findall(prompt.lower().encode())
  return [word[i : i + LONGEST] for word in found for i in range(0, len(word), LONGEST)]
