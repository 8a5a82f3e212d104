"""Where every parameter and activation lies, against tables that were looked through: of a small
model on 8 devices with shapes, and of `large` laid out as configs/skyreels_v4.py does for slices.

To accept a change: LAYOUTS=write python -m pytest tests/models/layout_test.py, and read the diff.
"""

import collections
import dataclasses
import os
import pathlib
import re

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh
from jax.sharding import AxisType
import pytest

from configs import skyreels_v4
from sr4.core import sharding
from sr4.core import tree
from sr4.core.av import AV
from sr4.core.batch import Condition
from sr4.core.batch import Segment
from sr4.models import mmdit

HERE = pathlib.Path(__file__).parent / 'layouts'
CONFIG = mmdit.Config(
  width=64,
  heads=4,
  dual_layers=1,
  single_layers=1,
  video_channels=4,
  audio_channels=8,
  text_width=16,
  dtype='bfloat16',
)
MESHES = {
  'heads divide': dict(data=2, fsdp=1, seq=2, tensor=2),
  'heads do not divide': dict(fsdp=1, seq=8),
}


@pytest.fixture(scope='module', autouse=True)
def mesh():
  """None: each test sets its own."""


def condition(rows: int) -> Condition:
  """Shapes of a joint clip: 4 x 4 x 4 video latents, 10 of audio, 8 tokens of text."""
  at = lambda shape, dtype=jnp.float32: jax.ShapeDtypeStruct((rows, *shape), dtype)
  video = Segment(at((4, 4, 4, 4)), at((4, 4, 4, 1)), at((16, 3)), at((16,), bool), True)
  audio = Segment(None, None, at((10, 1)), at((10,), bool), True)
  present = AV(at((), bool), at((), bool))
  return Condition(AV((video,), (audio,)), at((8, 16)), at((8,), bool), present)


def parameters(model) -> list[str]:
  lines = []
  for name, x in tree.to_flat(model).items():
    shape = ' '.join(map(str, x.shape))
    lines.append(f'{name:<44} [{shape}] {sharding.P(*x.sharding.spec)}')
  return lines


def activations(model, rows: int = 8) -> list[str]:
  """The results of all matrix products of a forward pass, in order, as types."""
  over = jax.NamedSharding(jax.sharding.get_abstract_mesh(), sharding.ROWS)
  placed = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=over)
  cond = jax.tree.map(placed, condition(rows))
  at = lambda *shape: placed(jax.ShapeDtypeStruct((rows, *shape), jnp.float32))
  x, t = AV((at(4, 4, 4, 4),), (at(10, 8),)), AV(at(), at())
  closed = jax.make_jaxpr(lambda *args: args[0](*args[1:]))(model, x, t, cond)
  return list(products(closed.jaxpr, ''))


def products(jaxpr, where: str):
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'dot_general':
      (out,) = eqn.outvars
      name = str(eqn.source_info.name_stack).rpartition('/')[2]
      yield f'{where}{name:<18} {out.aval.str_short(short_dtypes=True)}'
    inside = f'{where}layer: ' if eqn.primitive.name == 'scan' else where
    for part in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, 'eqns')):
      part = getattr(part, 'jaxpr', part)
      if hasattr(part, 'eqns'):
        yield from products(part, inside)


@pytest.mark.parametrize('name', MESHES)
def test_layouts_are_those_of_the_table(name):
  with jax.set_mesh(sharding.make_mesh(**MESHES[name])):
    model = tree.abstract(lambda: mmdit.MMDiT(CONFIG, rngs=nnx.Rngs(0)))
    found = '\n'.join([*parameters(model), '', *activations(model), ''])
  table = HERE / f'{name.replace(" ", "_")}.txt'
  if os.environ.get('LAYOUTS') == 'write':
    HERE.mkdir(exist_ok=True)
    table.write_text(found)
  assert found == table.read_text()


def test_layouts_of_the_presets():
  """Presets with the same layouts share a table; sizes are left out, since they differ."""
  large = dataclasses.replace(CONFIG, width=4096, heads=32)
  tables = collections.defaultdict(list)
  for chips, pods in skyreels_v4.PODS.items():
    for name, pod in zip(('to 480 rows', 'above'), pods):
      shape = (2, pod.fsdp, pod.seq, 1)
      mesh = AbstractMesh(shape, sharding.AXES, axis_types=(AxisType.Explicit,) * 4)
      with jax.sharding.use_abstract_mesh(mesh):
        model = jax.eval_shape(lambda: mmdit.MMDiT(large, rngs=nnx.Rngs(0)))
        lines = [*parameters(model), '', *activations(model, 2 * pod.fsdp)]
      table = re.sub(r'\b\d+(@|\b)', r'n\1', '\n'.join(lines))
      tables[table].append(f'{chips} {name}')
  found = '\n'.join(f'# {", ".join(names)}\n{table}\n' for table, names in tables.items())
  table = HERE / 'presets.txt'
  if os.environ.get('LAYOUTS') == 'write':
    table.write_text(found)
  assert found == table.read_text()
