"""Codecs and text encoders by name: what a config may ask for, and what it asked for once."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import hashlib
import json
import os

import jax

from sr4.core import config as config_lib


@dataclasses.dataclass(frozen=True)
class Kind:
  """Something that a config may name."""

  config: type
  make: Callable  # config -> the thing, a pytree of its weights
  defaults: Mapping = dataclasses.field(default_factory=dict)


def build(kinds: Mapping[str, Kind], cfg: Mapping, where: str):
  """The one that a node names, of `name` and fields of its Config.  Weights are shapes.

  Raises:
    ConfigError: no such name, or fields that its Config does not have or take.
  """
  fields = dict(cfg)
  name = fields.pop('name', None)
  if name not in kinds:
    raise config_lib.ConfigError(f'{where}.name={name!r} is not among {", ".join(sorted(kinds))}')
  kind = kinds[name]
  config = config_lib.build(kind.config, joined(kind.defaults, fields), where)
  return jax.eval_shape(lambda: kind.make(config))


def joined(defaults: Mapping, given: Mapping) -> dict:
  """`given` over `defaults`, in sections too."""
  found = dict(defaults)
  for name, value in dict(given).items():
    section = isinstance(value, Mapping) or hasattr(value, 'items')
    found[name] = joined(found.get(name, {}), value) if section else value
  return found


# Fields that say where something lies or how it is computed, and not what comes of it.
IMPORTED = 'imported.json'  # {kind: hash} in a folder that `sr4 import` wrote
ASIDE = ('chunk', 'tile', 'device')


def identity(config) -> str:
  """JSON of all that a codec's latents or an encoder's embeddings follow from.

  Weights are in it as a hash of what is in their files, wherever these lie.
  """

  def told(config) -> dict:
    page = {'kind': type(config).__module__}
    for field in dataclasses.fields(config):
      value = getattr(config, field.name)
      if dataclasses.is_dataclass(value):
        page[field.name] = told(value)
      elif field.name == 'weights':
        page['weights'] = weights_id(value, page['kind'])
      elif field.name == 'tokenizer':
        page['tokenizer'] = file_id(value or beside(config.weights, 'tokenizer.json'))
      elif field.name not in ASIDE:
        page[field.name] = value
    return page

  return json.dumps(told(config), sort_keys=True)


def beside(weights: str, name: str) -> str:
  """The file of this name in the folder of weights, or of their file."""
  return os.path.join(weights if os.path.isdir(weights) else os.path.dirname(weights), name)


def file_id(path: str) -> str:
  """A hash of a small file; of one that is not there, its name."""
  if not os.path.isfile(path):
    return path
  with open(path, 'rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()


def weights_of(page: dict) -> dict[str, str]:
  """{kind: hash} of all weights in pages of identity, one in the other."""
  found = {page['kind']: page['weights']} if page.get('weights') else {}
  for value in page.values():
    found |= weights_of(value) if isinstance(value, dict) else {}
  return found


def weights_id(path: str, kind: str = '', part: int = 1 << 16, parts: int = 256) -> str:
  """A hash of files of weights: their names, sizes, and up to `parts` parts of each, evenly spread.

  Not of all bytes: they are tens of gigabytes, and what is trained changes everywhere.  Of a folder
  that `sr4 import` wrote, that of the files from which it came.
  """
  if not os.path.exists(path):
    return path
  if os.path.exists(os.path.join(path, IMPORTED)):
    with open(place := os.path.join(path, IMPORTED)) as f:
      try:
        return dict(json.load(f)).get(kind, '')
      except (TypeError, ValueError) as e:
        raise config_lib.ConfigError(f'{place} is broken ({e}); import the weights again') from e
  folder = path if os.path.isdir(path) else os.path.dirname(path)
  names = sorted(os.listdir(folder)) if os.path.isdir(path) else [os.path.basename(path)]
  digest = hashlib.sha256()
  for name in names:
    if not name.endswith(('.safetensors', '.json', '.bin', '.txt', '.model')):
      continue
    with open(os.path.join(folder, name), 'rb') as f:
      size = os.fstat(f.fileno()).st_size
      digest.update(f'{name} {size}'.encode())
      for at in range(0, size, max(part, size // parts)):
        f.seek(at)
        digest.update(f.read(part))
  return digest.hexdigest()
