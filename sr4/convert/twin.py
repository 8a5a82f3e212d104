"""The MMDiT in torch (sr4/torch/mmdit.py): our names, layer by layer, weights [out in]."""

import dataclasses
import math

from sr4.convert import rules
from sr4.models import mmdit

STACKED = ('dual.', 'single.')
LEAVES = {'kernel': 'weight', 'scale': 'weight'}


def table(name: str, shape: tuple[int, ...]) -> rules.Tensor | rules.Stack:
  """A `rules.Table`."""
  if not name.startswith(STACKED):
    return one(name, shape)
  stack, rest = name.split('.', 1)
  layers = range(shape[0])
  return rules.Stack(tuple(one(f'{stack}.{layer}.{rest}', shape[1:]) for layer in layers))


def one(name: str, shape: tuple[int, ...]) -> rules.Tensor:
  head, leaf = name.rsplit('.', 1)
  foreign = f'{head}.{LEAVES.get(leaf, leaf)}'
  if leaf == 'kernel':
    # An attention's output takes heads and their channels; all others take one axis.
    inputs = 2 if head.endswith('.out') and len(shape) == 3 else 1
    return rules.Tensor(foreign, (math.prod(shape[inputs:]), math.prod(shape[:inputs])), (1, 0))
  if leaf == 'bias':
    return rules.Tensor(foreign, (math.prod(shape),), (0,))
  return rules.Tensor(foreign, shape, tuple(range(len(shape))))


def page(config: mmdit.Config) -> dict:
  """config.json of the twin: the fields that it has, which those are that weights fit."""
  aside = ('dtype', 'remat', 'blocks', 'audio')
  fields = {name: x for name, x in dataclasses.asdict(config).items() if name not in aside}
  return fields if config.audio else fields | dict(audio_channels=0)
