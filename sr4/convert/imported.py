"""Weights of a part in a folder that `sr4 import` wrote: a checkpoint of ours."""

import json
import os

from sr4.convert import rules
from sr4.models import kinds
from sr4.training import checkpoint


def there(path: str) -> bool:
  return bool(path) and os.path.exists(os.path.join(path, kinds.IMPORTED))


def read(path: str, section: str, like):
  """A part like `like`.

  Raises:
    ConvertError: the folder has no such part, or one that was made with another config.
    CheckpointError: it is broken.
  """
  _, page = checkpoint.page(path, 0)
  parts = page['parts']
  if section not in parts:
    raise rules.ConvertError(f'{path} has weights of {", ".join(parts)}, and none of {section}')
  ours, theirs = (bare(x) for x in (json.loads(kinds.identity(like.config)), parts[section]))
  if ours != theirs:
    wrong = [
      f'{name} is {theirs.get(name)} there and {ours.get(name)} here'
      for name in sorted(ours.keys() | theirs.keys())
      if ours.get(name) != theirs.get(name)
    ]
    raise rules.ConvertError(
      f'{path} has weights of another config.{section}: {rules.some(wrong)}; give the fields that '
      'it was imported with'
    )
  return checkpoint.restore(path, 0, like, f'{section}.')


def bare(page: dict) -> dict:
  """What tells of the shapes of weights, without which these are, and how they are used."""
  aside = ('weights', 'dtype', 'tokenizer', 'template', 'tokens', 'picture_tokens', 'clip_fps')
  return {
    name: bare(x) if isinstance(x, dict) else x for name, x in page.items() if name not in aside
  }
