"""Text encoders: prompts to embeddings; the interface, and which there are by name.

An encoder works in two halves.  `read` is the host's: in any thread, and a function of the prompts
alone.  `encode` is the mesh's, in the program of a step, with the encoder's weights as its leaves.
Where an encoder has no weights, `read` gives the embeddings and that is all.
"""

from collections.abc import Mapping
from typing import Any
from typing import Protocol

from flax import nnx
import jax
import numpy as np

from sr4.core import tree
from sr4.core.batch import Size
from sr4.core.prompt import Prompt
from sr4.models import kinds
from sr4.models.text import bytes as bytes_lib
from sr4.models.text import cache
from sr4.models.text import qwen_vl
from sr4.models.text import transformers_lm


class TextEncoder(Protocol):
  width: int  # e

  def shapes(self, rows: int, size: Size) -> tuple[Any, jax.ShapeDtypeStruct]:
    """What `read` gives of so many prompts, with the pictures of this size."""

  def read(self, prompts: list[Prompt], size: Size) -> tuple[Any, np.ndarray]:
    """(float32 [b m e], or a tree of [b ...] for `encode`; bool [b m], the tokens that there are).

    Raises:
      PromptError: of a prompt that it cannot read.
    """

  def encode(self, read) -> jax.Array:
    """[b m e] of what `read` gave, rows over the mesh."""


def qwen(config: qwen_vl.Config) -> qwen_vl.QwenVL:
  return qwen_vl.QwenVL(config, rngs=nnx.Rngs(0))


TEXT = {
  'bytes': kinds.Kind(bytes_lib.Config, bytes_lib.ByteEncoder),
  'transformers': kinds.Kind(transformers_lm.Config, transformers_lm.Transformers),
  **{name: kinds.Kind(qwen_vl.Config, qwen, fields) for name, fields in qwen_vl.SIZES.items()},
}


def build_text(cfg: Mapping) -> TextEncoder:
  """The encoder of a config node: `name`, one of TEXT, fields of its Config, and `cache`, a folder.

  Weights are shapes: sr4/convert/weights.py reads them.

  Raises:
    ConfigError: no such name, or fields that its Config does not have or take.
  """
  fields = dict(cfg)
  folder = fields.pop('cache', '')
  encoder = kinds.build(TEXT, fields, 'config.text')
  return cache.Cached(folder, encoder) if folder else encoder


def placed(encoder: TextEncoder) -> TextEncoder:
  """Its shapes with their layouts on the mesh that is set."""
  if isinstance(encoder, qwen_vl.QwenVL):
    return tree.abstract(lambda: qwen(encoder.config))
  return encoder


def bare(encoder: TextEncoder) -> TextEncoder:
  """The encoder that a cache keeps the embeddings of, or itself."""
  return encoder.encoder if isinstance(encoder, cache.Cached) else encoder


def embedded(encoder: TextEncoder, read) -> jax.Array:
  """[b m e] of what `read` gave, whether it has embeddings or what makes them."""
  return read if isinstance(read, (jax.Array, np.ndarray)) else encoder.encode(read)
