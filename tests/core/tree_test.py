"""sr4/core/tree.py: names of a model's leaves, there and back."""

from flax import nnx
import jax
import numpy as np
import pytest

from sr4.core import sharding
from sr4.core import tree
from sr4.core.av import AV
from sr4.nn import linear


class Pair(nnx.Module):
  """Two linears, one nested."""

  def __init__(self, *, rngs: nnx.Rngs):
    make = lambda: linear.Linear('bd,de->be', (4, 3), ('fsdp', None), dtype='float32', rngs=rngs)
    self.one, self.rest = make(), nnx.data(AV(make(), None))


def _pair():
  return Pair(rngs=nnx.Rngs(0))


def test_names_are_dotted_paths():
  assert set(tree.to_flat(_pair())) == {
    'one.kernel',
    'one.bias',
    'rest.video.kernel',
    'rest.video.bias',
  }


def test_flat_round_trip():
  pair = _pair()
  flat = tree.to_flat(pair)
  again = tree.from_flat(jax.tree.map(np.zeros_like, pair), flat)
  assert isinstance(again, Pair)
  assert jax.tree.structure(again) == jax.tree.structure(pair)
  assert all(again_x is x for again_x, x in zip(jax.tree.leaves(again), jax.tree.leaves(pair)))
  # The order of the dict is not what names mean.
  again = tree.from_flat(pair, dict(reversed(flat.items())))
  assert all(a is b for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(pair)))


def test_a_missing_name_is_told():
  flat = tree.to_flat(_pair())
  del flat['rest.video.bias']
  with pytest.raises(KeyError, match='rest.video.bias'):
    tree.from_flat(_pair(), flat)


@pytest.mark.parametrize(
  'patterns, names',
  [
    ((r'\.kernel$',), {'one.kernel', 'rest.video.kernel'}),
    ((r'^one\.',), {'one.kernel', 'one.bias'}),
    ((r'video\.bias', r'^one\.k'), {'rest.video.bias', 'one.kernel'}),
    ((), set()),
  ],
)
def test_matching(patterns, names):
  flat = tree.to_flat(tree.matching(_pair(), patterns))
  assert {name for name, match in flat.items() if match} == names
  assert set(map(type, flat.values())) == {bool}


def test_count_and_abstract():
  mesh = sharding.make_mesh(fsdp=4)
  with jax.set_mesh(mesh):
    shapes = tree.abstract(lambda key: Pair(rngs=nnx.Rngs(key)), jax.random.key(0))
    assert tree.count(shapes) == tree.count(_pair()) == 2 * (12 + 3)
    kernel = tree.to_flat(shapes)['one.kernel']
    assert kernel.sharding == jax.NamedSharding(mesh, sharding.P('fsdp', None))
