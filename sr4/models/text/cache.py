"""Embeddings on disk: what an encoder made of a prompt once, for ever.

    FOLDER/encoder.json       whose they are
    FOLDER/ab/abcdef....safetensors   text [v e] bf16 and at [v], its places in a row

The name is a hash of all that an embedding follows from: the encoder's config and weights (its
layer, template, lengths), the words, the pictures.  Any number of processes may read and write.
"""

from collections.abc import Sequence
import dataclasses
import hashlib
import os
from typing import Any

import jax
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from sr4.core import files
from sr4.core.batch import Size
from sr4.core.prompt import Prompt
from sr4.core.prompt import PromptError
from sr4.models import kinds


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Cached:
  """models/text/encoder.py `TextEncoder`: reads what is there, and asks no weights.

  A prompt that is not there is encoded and kept, where the encoder needs no mesh for it; else it is
  an error, and `python -m data_pipelines.encode` fills the folder.
  """

  folder: str
  encoder: Any = dataclasses.field(compare=False)
  identity: str = ''

  def __post_init__(self):
    object.__setattr__(self, 'identity', kinds.identity(self.encoder.config))

  @property
  def config(self):
    return self.encoder.config

  @property
  def width(self) -> int:
    return self.encoder.width

  def shapes(self, rows: int, size: Size):
    _, valid = self.encoder.shapes(rows, size)
    return jax.ShapeDtypeStruct((*valid.shape, self.width), np.float32), valid

  def read(self, prompts: Sequence[Prompt], size: Size) -> tuple[np.ndarray, np.ndarray]:
    text, valid = (np.zeros(x.shape, x.dtype) for x in self.shapes(len(prompts), size))
    for row, prompt in enumerate(prompts):
      found = self.find(prompt)
      if found is None:
        found = self.made(prompt, size)
      at = found['at']
      if at.size and at[-1] >= valid.shape[1]:
        raise PromptError(
          f'{self.path(prompt)} has {at[-1] + 1} tokens, and the size has {valid.shape[1]}; '
          'fill another folder for it'
        )
      text[row, at], valid[row, at] = found['text'], True
    return text, valid

  def find(self, prompt: Prompt) -> dict[str, np.ndarray] | None:
    path = self.path(prompt)
    try:
      with safetensors.safe_open(path, framework='numpy') as f:
        return {name: f.get_tensor(name) for name in ('text', 'at')}
    except FileNotFoundError:
      return None
    except safetensors.SafetensorError as error:
      raise PromptError(f'{path} is broken ({error}); take it away, and it is made anew') from error

  def made(self, prompt: Prompt, size: Size) -> dict[str, np.ndarray]:
    if jax.tree.leaves(self.encoder):
      raise PromptError(
        f'{prompt.text[:60]!r} is not in {self.folder}, and {type(self.encoder).__name__} encodes '
        'on the mesh alone; run `python -m data_pipelines.encode` with this config first, or take '
        'config.text.cache away'
      )
    text, valid = self.encoder.read([prompt], size)
    return self.write(prompt, text[0], valid[0])

  def write(self, prompt: Prompt, text: np.ndarray, valid: np.ndarray) -> dict[str, np.ndarray]:
    """Keeps [m e] of a prompt."""
    at = np.flatnonzero(valid).astype(np.int32)
    kept = {'text': np.asarray(text)[at].astype(ml_dtypes.bfloat16), 'at': at}
    path = self.path(prompt)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    page = os.path.join(self.folder, 'encoder.json')
    if not os.path.exists(page):
      files.save(page, self.identity.encode())
    files.save(path, safetensors.numpy.save(kept))
    return kept

  def path(self, prompt: Prompt) -> str:
    name = key(self.identity, prompt)
    return os.path.join(self.folder, name[:2], f'{name}.safetensors')


def key(identity: str, prompt: Prompt) -> str:
  """Of all that an embedding follows from."""
  digest = hashlib.sha256()

  def add(data: bytes):
    digest.update(len(data).to_bytes(8, 'little') + data)

  add(identity.encode())
  add(prompt.text.encode())
  for picture in prompt.images:
    add(repr(picture.shape).encode())
    add(np.ascontiguousarray(picture).tobytes())
  if prompt.clip is not None:
    add(repr((prompt.clip.shape, prompt.fps)).encode())
    add(np.ascontiguousarray(prompt.clip).tobytes())
  return digest.hexdigest()
