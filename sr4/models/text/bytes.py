"""A text encoder without weights: words hashed from their bytes, for the quick start and the tests.

It knows nothing of language.  Each word becomes one token whose embedding is a fixed random sum
over its bytes and their places, so equal words are equal vectors, on every machine and for ever.
"""

import dataclasses
import functools
import re

import numpy as np

LONGEST = 16  # bytes a piece; longer words, and scripts without spaces, are cut
PIECES = re.compile(rb'</?\w+>|\w+|[\x80-\xff]+|[^\w\s]')


@dataclasses.dataclass(frozen=True)
class Config:
  width: int = 128
  tokens: int = 32  # more are cut off


class ByteEncoder:
  """(prompts, pictures) -> (float32 [b m e], bool [b m]).  It does not look at pictures."""

  def __init__(self, c: Config):
    self.config = c

  @functools.cached_property
  def table(self) -> np.ndarray:
    """[place, byte, e] standard normal."""
    random = np.random.Generator(np.random.Philox(key=20260221))
    return random.standard_normal((LONGEST, 256, self.config.width), dtype=np.float32)

  def __call__(self, prompts: list[str], pictures=()) -> tuple[np.ndarray, np.ndarray]:
    c = self.config
    text = np.zeros((len(prompts), c.tokens, c.width), np.float32)
    valid = np.zeros((len(prompts), c.tokens), bool)
    for row, prompt in enumerate(prompts):
      for i, piece in enumerate(pieces(prompt)[: c.tokens]):
        data = np.frombuffer(piece, np.uint8)
        text[row, i] = self.table[np.arange(len(data)), data].sum(0) / np.sqrt(len(data))
        valid[row, i] = True
    return text, valid


def pieces(prompt: str) -> list[bytes]:
  """Words, tags and signs of a prompt as UTF-8, lower case, none over LONGEST bytes."""
  words = PIECES.findall(prompt.lower().encode())
  return [word[i : i + LONGEST] for word in words for i in range(0, len(word), LONGEST)]
