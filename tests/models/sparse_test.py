"""The MMDiT with Video Sparse Attention: beside the dense model, and on any mesh."""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sr4.core import sharding
from sr4.core import tree
from sr4.core.av import AV
from sr4.core.batch import Condition
from sr4.core.batch import Segment
from sr4.models import mmdit
from sr4.nn import vsa

ROWS = 4
DENSE = mmdit.Config(
  width=32,
  heads=4,
  dual_layers=1,
  single_layers=2,
  video_channels=3,
  audio_channels=5,
  text_width=6,
  patch=(1, 1, 1),
  dtype='float32',
  remat='none',
)
SPARSE = dataclasses.replace(DENSE, sparse=vsa.Config(tile=(4, 4, 4), sparsity=0.75))


def call(clip=(6, 8, 8), keys=(2, 12, 12), reference=(2, 5, 5)):
  """(x, t, cond): a reference, a clip whose edges no tile fits, and pictures after it."""
  random = np.random.default_rng(0)
  draw = lambda *shape: random.standard_normal((ROWS, *shape), dtype=np.float32)

  def segment(t, h, w, start, generated=True):
    grid = np.stack(np.meshgrid(np.arange(t) + start, range(h), range(w), indexing='ij'), -1)
    positions = np.tile(grid.reshape(-1, 3), (ROWS, 1, 1)).astype(np.float32)
    valid = np.ones((ROWS, t * h * w), bool)
    if not generated:
      valid[0] = False  # A row without the reference.
    return Segment(draw(t, h, w, 3), np.abs(draw(t, h, w, 1)), positions, valid, generated)

  video = segment(*reference, -2, generated=False), segment(*clip, 0), segment(*keys, 1)
  positions = np.tile(np.arange(7, dtype=np.float32)[:, None] / 7, (ROWS, 1, 1))
  audio = (Segment(None, None, positions, np.ones((ROWS, 7), bool)),)
  there = AV(np.ones(ROWS, bool), np.ones(ROWS, bool))
  text = draw(9, 6), np.arange(9) < np.array([[9], [4], [1], [6]])
  x = AV((draw(*clip, 3), draw(*keys, 3)), (draw(7, 5),))
  t = AV(np.float32([0.1, 0.4, 0.6, 0.9]), np.float32([0.5, 0.2, 0.6, 0.9]))
  return x, t, Condition(AV(video, audio), *text, there)


@pytest.fixture(scope='module')
def weights(randomized):
  """{name: array} of a sparse model, whose gates are open."""
  make = lambda: mmdit.MMDiT(SPARSE, rngs=nnx.Rngs(0))
  return jax.device_get(tree.to_flat(randomized(tree.abstract(make), std=0.1)))


def run(config, weights, args=None, mesh=None, gate=1.0, learn=False):
  """Velocities of a model with these weights; (velocities, gradients {name: array} of a sum)."""
  make = lambda: mmdit.MMDiT(config, rngs=nnx.Rngs(0))
  with jax.set_mesh(sharding.make_mesh(**(mesh or dict(fsdp=1)))):
    like = tree.abstract(make)
    flat = {
      name: jax.device_put(weights[name] * (gate if '.gate.' in name else 1), x.sharding)
      for name, x in tree.to_flat(like).items()
    }

    def loss(model, args):
      out = model(*args)
      return sum(jnp.sum(jnp.sin(v)) for v in jax.tree.leaves(out)), out

    model = tree.from_flat(like, flat)
    args = sharding.rows(args or call())
    if not learn:
      return jax.device_get(jax.jit(lambda model, args: model(*args))(model, args))
    gradients, out = jax.jit(jax.grad(loss, has_aux=True))(model, args)
    return jax.device_get((out, tree.to_flat(gradients)))


def far(relative, one, two) -> float:
  return max(map(relative, jax.tree.leaves(one), jax.tree.leaves(two)))


@pytest.fixture(scope='module')
def dense(weights):
  return run(DENSE, weights, learn=True)


@pytest.fixture(scope='module')
def sparse(weights):
  return run(SPARSE, weights, learn=True)


def test_a_dense_model_is_the_sparse_one_without_its_gates(weights):
  names = tree.to_flat(tree.abstract(lambda: mmdit.MMDiT(DENSE, rngs=nnx.Rngs(0)))).keys()
  gates = {name for name in weights if '.gate.' in name}
  assert weights.keys() - gates == names
  assert gates == {
    f'{stack}.video.tokens.gate.{x}' for stack in ('dual', 'single') for x in ('kernel', 'bias')
  }


def test_gates_begin_at_zero():
  new = tree.to_flat(jax.jit(lambda: mmdit.MMDiT(SPARSE, rngs=nnx.Rngs(0)))())
  assert not any(np.any(x) for name, x in new.items() if '.gate.' in name)


def test_all_tiles_and_no_gate_are_the_dense_model(weights, dense, relative):
  """Told by the config, by the condition, or by the time of a step; gradients, too."""
  change = lambda **fields: dataclasses.replace(
    SPARSE, sparse=dataclasses.replace(SPARSE.sparse, **fields)
  )
  x, t, cond = call()
  none = x, t, dataclasses.replace(cond, sparsity=np.zeros(ROWS, np.float32))
  for config, args in (
    (change(sparsity=0.0), None),
    (change(dense_layers=(0, 1, 2)), None),
    (change(dense_until=0.95), None),
    (SPARSE, none),
  ):
    assert far(relative, run(config, weights, args, gate=0.0), dense[0]) < 1e-5
  _, gradients = run(SPARSE, weights, none, gate=0.0, learn=True)
  assert max(relative(gradients[name], x) for name, x in dense[1].items() if np.any(x)) < 1e-5


def test_it_leaves_something_out_where_it_may(weights, dense, relative):
  """Each layer, each row by its own time and limit."""
  x, t, cond = call()
  without = lambda **fields: run(
    dataclasses.replace(SPARSE, sparse=dataclasses.replace(SPARSE.sparse, **fields)),
    weights,
    gate=0.0,
  )
  rows = lambda out: [
    max(np.abs(a[i] - b[i]).max() for a, b in zip(out.video, dense[0].video)) > 1e-3
    for i in range(ROWS)
  ]
  assert all(rows(without()))
  assert rows(without(dense_until=0.5)) == [False, False, True, True]
  for layer in range(3):
    assert all(rows(without(dense_layers=tuple({0, 1, 2} - {layer}))))
  limit = dataclasses.replace(cond, sparsity=np.float32([0, 1, 0, 1]))
  assert rows(run(SPARSE, weights, (x, t, limit), gate=0.0)) == [False, True, False, True]


def test_gates_are_learnt(sparse):
  for name, gradient in sparse[1].items():
    if '.gate.' in name:
      assert np.all(np.any(gradient.reshape(len(gradient), -1), 1)), name


@pytest.mark.parametrize('mesh', [dict(fsdp=2, seq=2, tensor=2), dict(fsdp=1, seq=8)], ids=str)
def test_the_mesh_does_not_change_the_answer(mesh, weights, sparse, relative):
  """By heads, and at last half by heads and half around."""
  out, gradients = run(SPARSE, weights, mesh=mesh, learn=True)
  assert far(relative, out, sparse[0]) < 1e-5
  assert max(relative(gradients[name], x) for name, x in sparse[1].items() if np.any(x)) < 1e-4


def test_layers_that_are_not_there():
  with pytest.raises(ValueError, match=r'dense_layers: \[3\] are not among the 3 layers'):
    dataclasses.replace(SPARSE, sparse=vsa.Config(tile=(4, 4, 4), dense_layers=(0, 3)))
