"""Codecs and text encoders by name: what a config may ask for."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses

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
