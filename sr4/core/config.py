"""Config is a program at the edge, a frozen dataclass inside.

A config file has `get_config(arg) -> ml_collections.ConfigDict`, and nothing of ours at module
level.  `load` runs it and applies `--config.a.b=value`; `build` turns a node into the dataclass
that reads it.
Every mistake is one line: the key, the value, the rule, the nearest right name.
"""

import ast
import dataclasses
import difflib
import importlib.machinery
import importlib.util
import os
import types
import typing

import ml_collections

from sr4.core import errors


class ConfigError(errors.UserError):
  """Something in a config that cannot be."""


def load(spec: str, overrides: typing.Sequence[str] = ()) -> ml_collections.ConfigDict:
  """The config of 'path.py' or 'path.py:arg', after overrides such as 'train.steps=100'."""
  path, _, arg = spec.partition(':')
  if not os.path.isfile(path):
    raise ConfigError(
      f'--config={path}: no such file; give the path of a config, such as configs/world.py'
    )
  loader = importlib.machinery.SourceFileLoader('sr4_config', path)
  module = importlib.util.module_from_spec(importlib.util.spec_from_loader('sr4_config', loader))
  try:
    loader.exec_module(module)
    config = module.get_config(arg) if arg else module.get_config()
  except (TypeError, ValueError) as error:
    raise ConfigError(f'--config={spec}: {error}') from error
  except Exception as error:  # It is a program, and may do anything.
    raise ConfigError(f'--config={spec}: {type(error).__name__}: {error}') from error
  if not isinstance(config, ml_collections.ConfigDict):
    raise ConfigError(f'--config={spec}: get_config gave {config!r}, and no ConfigDict')
  for override in overrides:
    _override(config, override)
  return config


# Sections that a config may leave to their defaults; the command line may begin them.
OPTIONAL = ('flow', 'optimizer', 'step', 'init', 'validate', 'preview', 'sample', 'mesh')


def _override(config, text: str):
  """Sets one value.  A key that the config leaves to its default is checked when it is built."""
  key, equals, value = text.partition('=')
  *parents, last = key.split('.')
  where = f'--config.{key}={value}'
  if not equals:
    raise ConfigError(f'--config.{text}: write --config.{text}=VALUE')
  if key.split('.')[0] not in (*config, *OPTIONAL):
    raise ConfigError(
      f'{where}: there is no {key.split(".")[0]!r}' + _nearest(key, list(_keys(config)))
    )
  node = config
  for part in parents:
    if part not in node:
      node[part] = ml_collections.ConfigDict()
    node = node[part]
    if not isinstance(node, ml_collections.ConfigDict):
      raise ConfigError(f'{where}: {part!r} is the value {node!r}, not a section')
  old = node.get(last)
  if isinstance(old, ml_collections.ConfigDict):
    raise ConfigError(
      f'{where}: {key!r} is a section; set one of {", ".join(f"{key}.{k}" for k in old)}'
    )
  with node.ignore_type():
    node[last] = _typed(where, value, old)


def _typed(where: str, text: str, old):
  """The override's value, in the type of what it replaces."""
  try:
    value = ast.literal_eval(text)
  except (ValueError, SyntaxError):
    value = {'true': True, 'false': False}.get(text.lower(), text)
  if isinstance(old, str):
    return value if isinstance(value, str) else text
  if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if isinstance(old, (tuple, list)) and isinstance(value, (tuple, list)):
    return type(old)(value)
  if type(old) is int and isinstance(value, float):
    return value  # Of a field that may be a float, as 6.0 of a weight of 6: its section knows.
  if old is not None and type(value) is not type(old):
    raise ConfigError(f'{where}: {text!r} is not of type {type(old).__name__}, as {old!r} is')
  return value


def _keys(node, prefix='') -> typing.Iterator[str]:
  for key in node:
    yield prefix + key
    if isinstance(node[key], ml_collections.ConfigDict):
      yield from _keys(node[key], f'{prefix}{key}.')


def _nearest(key: str, known) -> str:
  close = difflib.get_close_matches(key, known, 1, 0.5)
  return (
    f'; did you mean {close[0]!r}?' if close else f'; there are {", ".join(sorted(known)[:20])}'
  )


def build(cls, node, where: str = 'config'):
  """An instance of a dataclass from a mapping; nested dataclasses are built from nested mappings.

  Raises:
    ConfigError: an unknown key, a value of the wrong type, or the class's own objection.
  """
  fields = {f.name: f for f in dataclasses.fields(cls)}
  hints = typing.get_type_hints(cls)
  values = {}
  for key, value in dict(node).items():
    if key not in fields:
      raise ConfigError(
        f'{where}.{key}={value!r}: {cls.__module__}.{cls.__name__} has no {key!r}'
        + _nearest(key, list(fields))
      )
    values[key] = _coerce(hints[key], value, f'{where}.{key}')
  try:
    return cls(**values)
  except ConfigError:
    raise
  except (TypeError, ValueError) as error:
    raise ConfigError(f'{where}: {error}') from error


def _coerce(hint, value, where: str):
  """The value as the field's type wants it; ConfigError where it cannot be that."""

  def must(rule: str):
    return ConfigError(f'{where}={value!r}: it must be {rule}')

  origin, inner = typing.get_origin(hint), typing.get_args(hint)
  if origin in (typing.Union, types.UnionType):
    if value is None and type(None) in inner:
      return None
    return _coerce(next(o for o in inner if o is not type(None)), value, where)
  if dataclasses.is_dataclass(hint) or origin is dict:
    if not isinstance(value, (dict, ml_collections.ConfigDict)):
      raise must('a section with keys')
    if origin is dict:
      return {key: _coerce(inner[1], v, f'{where}.{key}') for key, v in value.items()}
    return build(hint, value, where)
  if origin is tuple:
    if not isinstance(value, (tuple, list)):
      raise must('a tuple')
    if inner[-1] is not ... and len(value) != len(inner):
      raise must(f'a tuple of {len(inner)}')
    return tuple(_coerce(inner[0], v, f'{where}[{i}]') for i, v in enumerate(value))
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  wrong = not isinstance(value, hint) or (hint is int and isinstance(value, bool))
  if isinstance(hint, type) and wrong:
    raise must(f'of type {hint.__name__}')
  return value


def to_json(config) -> dict:
  """Plain dicts, lists and scalars, for a checkpoint."""
  if isinstance(config, (dict, ml_collections.ConfigDict)):
    return {key: to_json(config[key]) for key in config}
  return [to_json(v) for v in config] if isinstance(config, (tuple, list)) else config
