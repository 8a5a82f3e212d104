"""sr4/core/config.py: what is built, and that each mistake is one line with key, value and rule."""

import dataclasses
import re

import ml_collections
import pytest

from sr4.core import config
from sr4.training import loop

PROGRAM = """
import ml_collections


def get_config(arg='none'):
  if arg == 'bad':
    raise ValueError('the variants are none and demo')
  return ml_collections.ConfigDict(dict(
      arg=arg, inner=dict(), train=dict(steps=100, rate=1e-3, resume=True, name='run', seed=None),
      sizes=(1, 2, 3), prompts=('a', 'b')))
"""


@dataclasses.dataclass(frozen=True)
class Inner:
  """A leaf of configs."""

  rate: float = 0.5
  names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Outer:
  """Has every kind of field that configs have."""

  steps: int
  inner: Inner = Inner()
  parts: tuple[Inner, ...] = ()
  patch: tuple[int, int, int] = (1, 2, 2)
  seed: int | None = None
  on: bool = False

  def __post_init__(self):
    if self.steps < 0:
      raise ValueError(f'steps={self.steps} must not be negative')


@pytest.fixture(scope='module')
def program(tmp_path_factory):
  path = tmp_path_factory.mktemp('config') / 'program.py'
  path.write_text(PROGRAM)
  return str(path)


def _error(f, *args) -> str:
  with pytest.raises(config.ConfigError) as error:
    f(*args)
  text = str(error.value)
  assert '\n' not in text
  return text


def test_load_runs_the_program(program):
  assert config.load(program).arg == 'none'
  assert config.load(f'{program}:demo').arg == 'demo'


@pytest.mark.parametrize(
  'override, path, value',
  [
    ('train.steps=7', 'train.steps', 7),
    ('train.rate=2', 'train.rate', 2.0),
    ('train.rate=3e-4', 'train.rate', 3e-4),
    ('train.resume=false', 'train.resume', False),
    ('train.name=123', 'train.name', '123'),
    ('train.name=a=b', 'train.name', 'a=b'),
    ('train.seed=5', 'train.seed', 5),
    ('validate.every=5', 'validate.every', 5),
    ('sizes=(4, 5)', 'sizes', (4, 5)),
    ('sizes=[4]', 'sizes', (4,)),
    ("prompts=('x',)", 'prompts', ('x',)),
    ('train.steps=2.5', 'train.steps', 2.5),  # Building the section tells whether it may be.
  ],
)
def test_override(program, override, path, value):
  node = config.load(program, [override])
  for part in path.split('.'):
    node = node[part]
  assert node == value and type(node) is type(value)


def test_sections_that_a_config_may_leave_out():
  fields = {f.name for f in dataclasses.fields(loop.Sections)}
  assert set(config.OPTIONAL) == fields - {'train'}  # How long only its user knows.


@pytest.mark.parametrize(
  'override, words',
  [
    ('trian.steps=7', ('--config.trian.steps=7', "'trian'", "did you mean 'train.steps'?")),
    ('train.steps.x=7', ('--config.train.steps.x=7', "'steps'", '100', 'not a section')),
    ('zzz=1', ('--config.zzz=1', "'zzz'", 'there are', 'prompts')),
    ('train.steps=many', ('--config.train.steps=many', "'many'", 'int', '100')),
    ('train.steps=True', ('--config.train.steps=True', 'int')),
    ('train.rate=fast', ('--config.train.rate=fast', 'float')),
    ('train.resume=1', ('--config.train.resume=1', 'bool')),
    ('prompts=x', ('--config.prompts=x', 'tuple')),
    ('train=3', ('--config.train=3', 'section', 'train.steps')),
    ('train.steps', ('--config.train.steps', '=VALUE')),
  ],
)
def test_override_errors(program, override, words):
  text = _error(config.load, program, [override])
  for word in words:
    assert word in text


def test_a_key_left_to_its_default_is_checked_when_it_is_built(program):
  node = config.load(program, ['inner.rate=2', 'inner.nams=(1,)'])
  assert node.inner.rate == 2
  text = _error(config.build, Outer, {'steps': 1, 'inner': node.inner})
  assert 'config.inner.nams=(1,)' in text and "did you mean 'names'?" in text
  assert config.load(program, ['train.extra=x']).train.extra == 'x'


def test_a_variant_that_is_not_there_is_told(program):
  text = _error(config.load, f'{program}:bad')
  assert f'--config={program}:bad' in text and 'the variants are' in text


def test_a_missing_file_is_told():
  text = _error(config.load, 'configs/nowhere.py:demo')
  assert 'configs/nowhere.py' in text and 'no such file' in text and 'configs/world.py' in text


@pytest.mark.parametrize(
  'text, told',
  [
    ('def get_config(:', r'SyntaxError: .*\(program.py, line 1\)'),
    ('import nowhere_at_all', "ModuleNotFoundError: No module named 'nowhere_at_all'"),
    ('', "has no attribute 'get_config'"),
    ('def get_config():\n  return {}["x"]', "KeyError: 'x'"),
    ('def get_config():\n  return 7', 'get_config gave 7, and no ConfigDict'),
  ],
)
def test_a_program_that_gives_no_config_is_told(tmp_path, text, told):
  (tmp_path / 'program.py').write_text(text)
  assert re.search(
    f'^--config=.*program.py: .*{told}', _error(config.load, f'{tmp_path}/program.py')
  )


def test_build_nested_and_tuples():
  node = ml_collections.ConfigDict(
    dict(
      steps=3,
      inner=dict(rate=2),
      parts=(dict(names=['a']), dict(rate=0.25)),
      patch=[1, 4, 4],
      seed=9,
    )
  )
  assert config.build(Outer, node) == Outer(
    3, Inner(2.0), (Inner(names=('a',)), Inner(0.25)), (1, 4, 4), 9
  )
  assert config.build(Outer, dict(steps=3, seed=None)) == Outer(3)
  assert type(config.build(Inner, {'rate': 1}).rate) is float


@pytest.mark.parametrize(
  'node, words',
  [
    (dict(steps=3, inner=dict(rte=1.0)), ('config.inner.rte=1.0', 'Inner', "did you mean 'rate'?")),
    (dict(steps=3, qqq=1), ('config.qqq=1', 'Outer', 'there are', 'steps')),
    (dict(steps='3'), ("config.steps='3'", 'int')),
    (dict(steps=3.0), ('config.steps=3.0', 'int')),
    (dict(steps=True), ('config.steps=True', 'int')),
    (dict(steps=3, on=1), ('config.on=1', 'bool')),
    (dict(steps=3, seed='x'), ("config.seed='x'", 'int')),
    (dict(steps=3, parts=(dict(), dict(rate='x'))), ("config.parts[1].rate='x'", 'float')),
    (dict(steps=3, patch=(1, 2, 2.5)), ('config.patch[2]=2.5', 'int')),
    (dict(), ('config', 'steps')),
    (dict(steps=-1), ('config: steps=-1 must not be negative',)),
  ],
)
def test_build_errors(node, words):
  text = _error(config.build, Outer, node)
  for word in words:
    assert word in text


@pytest.mark.parametrize(
  'node, words',
  [
    (dict(steps=3, inner=5), ('config.inner=5',)),  # A section that is not one.
    (dict(steps=3, patch=5), ('config.patch=5',)),
    (dict(steps=3, inner=dict(names='ab')), ("config.inner.names='ab'",)),  # Not ('a', 'b').
    (dict(steps=3, patch=(1, 2)), ('config.patch=(1, 2)', '3')),
  ],
)
def test_build_errors_of_containers(node, words):
  text = _error(config.build, Outer, node)
  for word in words:
    assert word in text


def test_to_json_is_plain():
  node = ml_collections.ConfigDict(dict(a=dict(b=(1, 2)), c=(dict(d=None),)))
  plain = config.to_json(node)
  assert plain == {'a': {'b': [1, 2]}, 'c': [{'d': None}]}
  assert type(plain['a']) is dict and type(plain['c'][0]) is dict
