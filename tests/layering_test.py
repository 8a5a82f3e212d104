"""Imports point one way (DESIGN.md), read from the source without importing it."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
# What modules of a folder may import of ours, by the start of the name; a file may have a rule of
# its own.  Verbs (sr4/*.py) and serving join everything and have none.
RULES = {
  'sr4/core': ('sr4.core',),
  'sr4/nn': ('sr4.core', 'sr4.nn'),
  'sr4/models': ('sr4.core', 'sr4.nn', 'sr4.models'),
  'sr4/flow': ('sr4.core', 'sr4.flow'),  # A model is a callable.
  'sr4/training': ('sr4.core', 'sr4.flow', 'sr4.models', 'sr4.training'),
  # Previews are drawn with the pipeline and written.
  'sr4/training/loop.py': (
    *('sr4.core', 'sr4.flow', 'sr4.models', 'sr4.training', 'sr4.pipeline'),
    'sr4.convert',  # weights of the codecs
  ),
  'sr4/training/looks.py': (
    *('sr4.training', 'sr4.pipeline', 'sr4.provenance', 'data_pipelines.mp4'),
  ),
  # What a step took is measured with the figures of what it should take.
  'sr4/training/accounting.py': ('sr4.models', 'sr4.planning.flops', 'sr4.planning.topology'),
  'sr4/training/data.py': ('sr4.core', 'sr4.models', 'data_pipelines'),
  'sr4/planning': ('sr4.core', 'sr4.nn', 'sr4.flow', 'sr4.models', 'sr4.training', 'sr4.planning'),
  # Weights that were imported are a checkpoint.
  'sr4/convert/imported.py': ('sr4.convert', 'sr4.models', 'sr4.training.checkpoint'),
  'sr4/convert': ('sr4.core', 'sr4.models', 'sr4.convert'),
  'sr4/torch': (
    'sr4.core',
    'sr4.nn',
    'sr4.models',
    'sr4.flow',
    'sr4.torch',
    'data_pipelines.stills',
  ),
  'sr4/torch/sampler.py': (
    *('sr4.core', 'sr4.models', 'sr4.flow', 'sr4.steps', 'sr4.extension', 'sr4.torch'),
  ),
  'sr4/torch/pipeline.py': (
    *('sr4.core', 'sr4.flow', 'sr4.extension', 'sr4.torch', 'data_pipelines.media'),
  ),
  'sr4/metrics': ('sr4.core', 'sr4.metrics'),
  'sr4/prompt': ('sr4.core', 'sr4.prompt', 'data_pipelines.world'),
  'data_pipelines': ('sr4.core', 'data_pipelines'),
  # The latent factory runs codecs and encoder.
  'data_pipelines/factory.py': (
    *('sr4.core', 'sr4.flow', 'sr4.models', 'sr4.convert.weights', 'data_pipelines'),
  ),
  'data_pipelines/encode.py': ('sr4.core', 'sr4.cli', 'data_pipelines'),
  'configs': (),  # A config is a program without us.
}
FILES = sorted(
  str(path.relative_to(ROOT))
  for top in ('sr4', 'data_pipelines', 'configs')
  for path in (ROOT / top).rglob('*.py')
)


def _imports(source: str) -> set[str]:
  """Full names of all that a module imports, in functions too; `from a import b` is a.b."""
  names = set()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, 'relative imports hide where they point'
      names |= {f'{node.module}.{alias.name}' for alias in node.names}
  return names


def _within(name: str, packages) -> bool:
  return any(name == p or name.startswith(f'{p}.') for p in packages)


def _rule(file: str):
  """The packages that a file may import; None: any."""
  for place in [file, *map(str, pathlib.PurePath(file).parents)]:
    if place in RULES:
      return RULES[place]
  return None


# Where torch may be asked for, in functions.
TORCH = ('sr4/torch/', 'sr4/models/text/transformers_lm.py')


def _astray(file: str, source: str) -> set[str]:
  """What a file imports against the rules."""
  names, rule = _imports(source), _rule(file)
  astray = {n for n in names if _within(n, ('tensorflow', 'tf_keras', 'clu'))}
  if not file.startswith(TORCH):
    astray |= {n for n in names if _within(n, ('torch', 'diffusers', 'transformers'))}
  if rule is not None:
    astray |= {
      n
      for n in names
      if _within(n, ('sr4', 'data_pipelines', 'configs', 'tests')) and not _within(n, rule)
    }
  return astray


@pytest.mark.parametrize('file', FILES)
def test_imports_point_one_way(file):
  verb = pathlib.PurePath(file).parent == pathlib.PurePath('sr4')
  assert (_rule(file) is None) == verb, 'a folder without a rule'
  assert not _astray(file, (ROOT / file).read_text())


@pytest.mark.parametrize(
  'file, source, astray',
  [
    ('sr4/core/tree.py', 'from sr4.nn import linear', 'sr4.nn.linear'),
    ('sr4/flow/loss.py', 'def f():\n  import sr4.models.mmdit', 'sr4.models.mmdit'),
    ('sr4/training/step.py', 'from sr4 import pipeline', 'sr4.pipeline'),
    ('data_pipelines/loader.py', 'from sr4.models import codec', 'sr4.models.codec'),
    ('configs/world.py', 'from sr4.core import config', 'sr4.core.config'),
    ('sr4/sample.py', 'import tensorflow as tf', 'tensorflow'),
    ('sr4/models/codec.py', 'import torch.nn', 'torch.nn'),
  ],
)
def test_the_rule_bites(file, source, astray):
  assert _astray(file, source) == {astray}


# A layout is stated by who has the array: activations in core/sharding.py, weights where they are
# made (nn), the state and its microbatches in training; core/tree.py fills in what has none.
LAYOUTS = ('sr4/core/sharding.py', 'sr4/core/tree.py', 'sr4/nn/', 'sr4/training/')


def _constructs_specs(source: str) -> bool:
  """Does it call P, jax.P or PartitionSpec?"""
  calls = (node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
  names = (getattr(f, 'attr', None) or getattr(f, 'id', None) for f in calls)
  return any(name in ('P', 'PartitionSpec') for name in names)


def test_layouts_are_stated_in_few_places():
  stating = {file for file in FILES if _constructs_specs((ROOT / file).read_text())}
  assert not {file for file in stating if not file.startswith(LAYOUTS)}
  assert 'sr4/core/sharding.py' in stating
  assert _constructs_specs('x = jax.P(None)') and not _constructs_specs('from a import P')
