"""Plug-ins that score what needs weights: aesthetics, watermark, embeddings, sound class, sync.

A scorer is a class with no arguments, or any callable, with `provides`:

    class Aesthetics:
      provides = ('aesthetics',)
      reads = {'side': 224}  # Keywords of excerpt.read; without, pictures are 160 pixels at 8 fps.

      def __init__(self):
        self.model = ...  # Once for each worker.

      def __call__(self, excerpt) -> dict:
        return {'aesthetics': float(self.model(excerpt.frames))}

    python -m data_pipelines.curate ... --scorer my_package.my_module:Aesthetics

Scores that the engine itself understands: `audio_class` (one of CLASSES), `concept` (a word),
`embedding` (a vector) and `caption` (a text, which replaces the one that came with the file).
"""

from collections.abc import Mapping
import difflib
import importlib
import math
import numbers
from typing import Protocol
from typing import runtime_checkable

from sr4.core import errors

CLASSES = ('effect', 'music', 'speech', 'singing')
TEXTS = ('audio_class', 'concept', 'caption')
VECTORS = ('embedding',)


class ScorerError(errors.UserError):
  """A scorer that cannot be loaded, or breaks its promise."""


@runtime_checkable
class Scorer(Protocol):
  """Excerpt to scores: exactly the names in `provides`; None for what does not apply to it."""

  provides: tuple[str, ...]

  def __call__(self, excerpt) -> dict: ...


def find(spec: str):
  """What 'package.module:NAME' names: a scorer, or a class of scorers that is not yet made."""
  module, _, name = spec.partition(':')
  if not module or not name:
    raise ScorerError(f'--scorer {spec!r}: give package.module:NAME.')
  try:
    there = importlib.import_module(module)
  except ImportError as e:
    raise ScorerError(
      f'--scorer {spec}: {e}; install it, or put its folder into PYTHONPATH.'
    ) from e
  found = getattr(there, name, None)
  if found is None:
    near = difflib.get_close_matches(name, dir(there), 1)
    raise ScorerError(
      f'--scorer {spec}: {module} has no {name!r}.'
      + (f' Did you mean {near[0]!r}?' if near else '')
    )
  provides = getattr(found, 'provides', None)
  if not callable(found) or not isinstance(provides, tuple) or not provides:
    raise ScorerError(
      f'--scorer {spec}: it must be callable and have `provides`, a tuple of the names of its '
      f'scores; it has {provides!r}.'
    )
  return found


def load(spec: str) -> Scorer:
  """The scorer, made if it is a class: this may load weights."""
  found = find(spec)
  return found() if isinstance(found, type) else found


def scores(scorer: Scorer, excerpt) -> dict:
  """The scorer's scores of an excerpt, checked: plain floats, words, vectors or None.

  Raises:
    ScorerError: other names than promised, a number that is not finite, an unknown class.
  """
  got, name = scorer(excerpt), getattr(scorer, '__name__', type(scorer).__name__)
  if not isinstance(got, Mapping) or set(got) != set(scorer.provides):
    raise ScorerError(
      f'{name} gave {sorted(got) if isinstance(got, Mapping) else got!r} and promised '
      f'{sorted(scorer.provides)}; give each, or None where it does not apply.'
    )
  return {key: None if value is None else _plain(name, key, value) for key, value in got.items()}


def _plain(name, key, value):
  if key in VECTORS:
    value = [float(x) for x in value]
    if not value or not all(map(math.isfinite, value)):
      raise ScorerError(f'{name}: {key} must be a vector of finite numbers.')
    return value
  if key in TEXTS:
    if not isinstance(value, str) or (key == 'audio_class' and value not in CLASSES):
      rule = f'one of {CLASSES}' if key == 'audio_class' else 'a text'
      raise ScorerError(f'{name}: {key} is {value!r}; it must be {rule}.')
    return value
  if not isinstance(value, numbers.Real) or not math.isfinite(value):
    raise ScorerError(f'{name}: {key} is {value!r}; it must be a finite number.')
  return float(value)


def route(scores: Mapping) -> str | None:
  """The class of the sound, which is also the name of its folder; None: nobody told."""
  return scores.get('audio_class')
