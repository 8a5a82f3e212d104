"""sr4/training/step.py: mesh and microbatches do not change a step; bad steps change nothing."""

import dataclasses
import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sr4.core import prng
from sr4.core import sharding
from sr4.core import tree
from sr4.core.av import AV
from sr4.core.batch import Batch
from sr4.core.batch import Condition
from sr4.core.batch import Segment
from sr4.flow import conditioning
from sr4.flow import loss as flow_loss
from sr4.models import mmdit
from sr4.training import optimizer
from sr4.training import state as state_lib
from sr4.training import step as step_lib

pytestmark = pytest.mark.usefixtures('quick_compile')

ROWS = 8
CONFIG = mmdit.Config(
  width=48,
  heads=4,
  dual_layers=1,
  single_layers=1,
  video_channels=3,
  audio_channels=5,
  text_width=6,
  dtype='float32',
  remat='none',
)
FLOW = flow_loss.Config(independent_times=0.5, drop=conditioning.DropConfig(0.25, 0.25, 0.25))
STEPS = 20
KEY = jax.random.key(7)  # Drops the text, and the other modality, of one row.
# Its state is the gradient, bit by bit, and its update the gradient's descent.
KEEP = optax.chain(optax.trace(decay=0.0), optax.scale(-0.1))


def _batch() -> Batch:
  """A reference, a clip with a known first frame, a voice and a sound, on the host.

  Row 1 has no video, row 2 no audio.  Tokens are odd in number: the mesh's seq axis must pad.
  """
  random = np.random.default_rng(0)
  draw = lambda *shape: random.standard_normal((ROWS, *shape), dtype=np.float32)
  present = AV(np.arange(ROWS) != 1, np.arange(ROWS) != 2)

  def segment(length, axes, start, generated, known=None, mask=None):
    positions = start + np.abs(draw(length, axes))
    return Segment(known, mask, positions, np.ones((ROWS, length), bool), generated)

  mask = np.zeros((ROWS, 2, 4, 4, 1), np.float32)
  mask[0, 0] = 1
  reference = segment(1, 3, -2, False, draw(1, 2, 2, 3), np.ones((ROWS, 1, 2, 2, 1), np.float32))
  clip = segment(8, 3, 0, True, draw(2, 4, 4, 3), mask)
  clip.valid[3, 6:] = False
  segments = AV((reference, clip), (segment(3, 1, -1, False, draw(3, 5)), segment(8, 1, 0, True)))
  weigh = lambda present, *shape: np.float32(
    np.broadcast_to(present.reshape(-1, *(1,) * len(shape)), (ROWS, *shape))
  )
  text_valid = np.ones((ROWS, 4), bool)
  text_valid[1, 2:], text_valid[3] = False, False
  return Batch(
    AV((draw(2, 4, 4, 3),), (draw(8, 5),)),
    AV((weigh(present.video, 2, 4, 4, 1),), (weigh(present.audio, 8, 1),)),
    Condition(segments, draw(4, 6), text_valid, present),
  )


def _state(randomized, tx) -> state_lib.State:
  make = lambda: mmdit.MMDiT(CONFIG, rngs=nnx.Rngs(0))
  model = randomized(tree.abstract(make), std=0.1)
  return jax.jit(lambda model: state_lib.init(lambda _: model, tx, KEY))(model)


def _updated(randomized, mesh, steps=1):
  """(host state, host metrics) after a step on this mesh, and the losses of so many."""
  with jax.set_mesh(sharding.make_mesh(**mesh)):
    update = jax.jit(functools.partial(step_lib.update, KEEP, FLOW, step_lib.Config()))
    batch = sharding.rows(_batch())
    first = state, metrics = update(_state(randomized, KEEP), KEY, batch)
    losses = [metrics['loss']]
    while len(losses) < steps:
      state, metrics = update(state, KEY, batch)
      losses.append(metrics['loss'])
    return *jax.device_get(first), np.array(losses)


def _same(one, two, relative):
  """Two results of _updated: loss, gradients, new weights and their average."""
  for name, value in one[1].items():
    np.testing.assert_allclose(value, two[1][name], rtol=1e-5, err_msg=name)
  for part in ('opt', 'model', 'ema'):
    expected = tree.to_flat(getattr(two[0], part))
    assert expected
    for name, x in tree.to_flat(getattr(one[0], part)).items():
      assert relative(x, expected[name]) < 1e-5, (part, name)


@pytest.fixture(scope='module')
def on_one(randomized):
  return _updated(randomized, dict(fsdp=1), STEPS)


def test_a_step_is_a_step(on_one):
  """Every weight has a gradient and moves; the losses are the two that the batch has."""
  state, metrics, _ = on_one
  assert set(metrics) == {'loss', 'video', 'audio', 'grad_norm', 'skipped', 'skipped_in_a_row'}
  np.testing.assert_allclose(metrics['loss'], metrics['video'] + metrics['audio'], rtol=1e-6)
  gradients = tree.to_flat(state.opt)
  assert all(np.any(g) for g in gradients.values())
  norm = np.sqrt(sum(np.sum(np.float64(g) ** 2) for g in gradients.values()))
  np.testing.assert_allclose(metrics['grad_norm'], norm, rtol=1e-5)
  assert state.step == 1 and state.guard.skipped == 0 and state.guard.norm == metrics['grad_norm']


MESHES = [  # Every pair of axes; 4 heads over seq x tensor = 8 go around in a ring.
  dict(data=2, fsdp=2, seq=2),
  dict(data=2, fsdp=1, seq=2, tensor=2),
  dict(fsdp=2, seq=2, tensor=2),
  dict(fsdp=1, seq=4, tensor=2),
  dict(fsdp=1, seq=8),
]


@pytest.mark.parametrize('mesh', MESHES, ids=str)
def test_the_mesh_does_not_change_a_step_nor_twenty(on_one, mesh, randomized, relative):
  found = _updated(randomized, mesh, STEPS)
  _same(found, on_one, relative)
  np.testing.assert_allclose(found[2], on_one[2], rtol=1e-4)


def test_parts_that_do_not_divide():
  with pytest.raises(ValueError) as error:
    step_lib.microbatches(jnp.zeros((4, 2)), 3)
  assert 'accumulate=3' in str(error.value) and '4 rows' in str(error.value)


# A model of four numbers, on which steps are quick.


class Part(nnx.Module):
  """Two numbers."""

  def __init__(self):
    self.kernel, self.bias = nnx.Param(jnp.float32(2.0)), nnx.Param(jnp.float32(0.5))


class Toy(nnx.Module):
  """velocity = (sum of kernels) x + (sum of biases) (what a row is told)."""

  def __init__(self):
    self.layer, self.other = Part(), Part()

  def __call__(self, x, t, cond):
    told = (
      1.0
      + cond.text_valid.sum(1)
      + cond.present.video
      + sum(jnp.mean(s.positions, (1, 2)) for segments in cond.segments for s in segments or ())
    )
    kernel = self.layer.kernel[...] + self.other.kernel[...]
    bias = self.layer.bias[...] + self.other.bias[...]
    return jax.tree.map(lambda a: kernel * a + bias * told.reshape(-1, *(1,) * (a.ndim - 1)), x)


def _toy_batch(scale=1.0) -> Batch:
  x = scale * np.random.default_rng(0).standard_normal((ROWS, 8, 5), dtype=np.float32)
  there = np.ones(ROWS, bool)
  cond = Condition(
    AV(None, ()), np.ones((ROWS, 1, 1), np.float32), np.ones((ROWS, 1), bool), AV(there, there)
  )
  return sharding.rows(Batch(AV(None, (x,)), AV(None, (np.ones((ROWS, 8, 1), np.float32),)), cond))


def _toy(tx, **fields):
  """(state, jitted update) of the toy."""
  state = state_lib.init(lambda key: Toy(), tx, KEY)
  config = dataclasses.replace(step_lib.Config(), **fields)
  return state, jax.jit(functools.partial(step_lib.update, tx, FLOW, config))


def _flat(state) -> dict:
  return {
    f'{part}.{name}': np.asarray(x)
    for part in ('model', 'ema', 'opt')
    for name, x in tree.to_flat(getattr(state, part)).items()
  } | {'norm': np.asarray(state.guard.norm)}


# A part has a row of each device at least: of 4 rows, 64 parts are 4.
@pytest.mark.parametrize('mesh, parts', [(dict(fsdp=2), 2), (dict(fsdp=1), 64)])
def test_microbatches_do_not_change_a_step(mesh, parts, relative):
  """Rows without a modality fall unevenly into the parts."""

  def run(mesh, accumulate):
    with jax.set_mesh(sharding.make_mesh(**mesh)):
      state, update = _toy(KEEP, accumulate=accumulate)
      return jax.device_get(update(state, KEY, sharding.rows(_batch())))

  _same(run(mesh, parts), run(dict(fsdp=1), 1), relative)


@pytest.mark.parametrize('bad', [np.nan, np.inf, 1e6], ids=['nan', 'inf', 'spike'])
def test_a_bad_step_changes_the_counters_alone(bad):
  """A loss that is not finite, or a gradient of many times the usual norm: skipped, and counted."""
  state, update = _toy(optimizer.make(optimizer.Config(warmup=0)))
  for _ in range(3):
    state, metrics = update(state, KEY, _toy_batch())
  assert metrics['skipped'] == 0
  before = state
  for count in (1, 2):
    state, metrics = update(state, KEY, _toy_batch(bad))
    assert state.step == before.step + count
    assert metrics['skipped'] == metrics['skipped_in_a_row'] == count
    jax.tree.map(np.testing.assert_array_equal, _flat(state), _flat(before))
  state, metrics = update(state, KEY, _toy_batch())
  assert metrics['skipped'] == 2 and metrics['skipped_in_a_row'] == 0
  changed = {name for name, x in _flat(state).items() if np.any(x != _flat(before)[name])}
  assert {'model.layer.kernel', 'ema.layer.kernel', 'norm'} <= changed
  assert all(np.all(np.isfinite(x)) for x in _flat(state).values())


@pytest.mark.parametrize('usual, skipped', [(0.99, 1), (1.01, 0)])
def test_a_gradient_is_a_spike_from_so_many_times_its_running_mean(usual, skipped):
  """The mean, of accepted steps, moves by a fiftieth; a step of no more than `spike` times it."""
  state, update = _toy(optax.sgd(0.0), spike=5.0)
  norm = update(state, KEY, _toy_batch())[1]['grad_norm']
  guard = dataclasses.replace(state.guard, norm=norm / 5 * usual)
  after, metrics = update(dataclasses.replace(state, guard=guard), KEY, _toy_batch())
  assert metrics['skipped'] == skipped
  expected = guard.norm if skipped else 0.98 * guard.norm + 0.02 * norm
  np.testing.assert_allclose(after.guard.norm, expected, rtol=1e-6)


def test_random_numbers_move_on_with_the_step():
  """The same batch at another step has other noise; the same step has the same."""
  state, update = _toy(optax.sgd(0.0))
  losses = []
  for _ in range(3):
    state, metrics = update(state, KEY, _toy_batch())
    losses.append(float(metrics['loss']))
  assert len(set(losses)) == 3
  again, metrics = update(dataclasses.replace(state, step=jnp.int32(1)), KEY, _toy_batch())
  assert float(metrics['loss']) == losses[1]
  assert float(update(again, prng.named(KEY, 'x'), _toy_batch())[1]['loss']) != losses[2]


def test_the_average_of_the_weights():
  """ema' = decay ema + (1 - decay) model', with decay min(ema, (1 + step) / (10 + step))."""
  state, update = _toy(optax.sgd(0.05), ema=0.3)
  expected = 2.0
  for step in range(6):
    state, _ = update(state, KEY, _toy_batch())
    decay = min(0.3, (1 + step) / (10 + step))
    expected = decay * expected + (1 - decay) * float(state.model.layer.kernel[...])
    np.testing.assert_allclose(state.ema.layer.kernel[...], expected, rtol=1e-5)


def test_frozen_names_do_not_move_and_have_no_state():
  tx = optimizer.make(optimizer.Config(warmup=0, weight_decay=0.1, frozen=(r'^other\.',)))
  state, update = _toy(tx)
  held = [name for name in tree.to_flat(state.opt) if 'kernel' in name or 'bias' in name]
  assert len(held) == 4 and not [name for name in held if 'other' in name]  # Two moments of each.
  after, _ = update(state, KEY, _toy_batch())
  for part in ('model', 'ema'):
    one, two = (tree.to_flat(getattr(s, part)) for s in (state, after))
    assert {name for name in one if one[name] != two[name]} == {'layer.kernel', 'layer.bias'}


def test_what_is_frozen_has_no_part_in_the_norm():
  """Both parts have one gradient: without one of them the norm is less by the root of 2."""
  state, _ = _toy(optax.sgd(0.05))
  of = lambda **fields: float(plain(state, KEY, _toy_batch(), **fields)[1]['grad_norm'])
  plain = functools.partial(step_lib.update, optax.sgd(0.05), FLOW, step_lib.Config())
  np.testing.assert_allclose(of(), 2**0.5 * of(frozen=(r'^other\.',)), rtol=1e-6)


def test_weight_decay_is_for_kernels_alone():
  """Without a gradient, decay alone moves weights: by rate * decay * weight, and no bias."""
  tx = optimizer.make(optimizer.Config(learning_rate=1e-2, warmup=0, weight_decay=0.5))
  model = Toy()
  zero = jax.tree.map(jnp.zeros_like, model)
  updates, _ = tx.update(zero, tx.init(model), model)
  moved = {name: float(x) for name, x in tree.to_flat(updates).items()}
  assert moved == {
    'layer.kernel': pytest.approx(-1e-2),
    'other.kernel': pytest.approx(-1e-2),
    'layer.bias': 0.0,
    'other.bias': 0.0,
  }


def test_all_kernels_of_the_model_decay_and_nothing_else():
  model = jax.eval_shape(lambda: mmdit.MMDiT(CONFIG, rngs=nnx.Rngs(0)))
  decayed = tree.to_flat(tree.matching(model, optimizer.Config().decayed))
  for name, decays in decayed.items():
    assert decays == name.endswith('.kernel'), name
  assert not any(
    decays for name, decays in decayed.items() if name.endswith(('bias', 'scale', 'table'))
  )
  assert sum(decayed.values()) > 40


def test_sparsity_grows_with_the_step():
  """By 0.03 after every 40 steps, in every row; without a schedule the model has its own."""
  batch = sharding.rows(_batch())
  limit = lambda step, **c: step_lib.sparsified(step_lib.Config(**c), step, batch).cond.sparsity
  assert limit(100) is None
  for step, expected in ((0, 0.0), (39, 0.0), (40, 0.03), (400, 0.3), (4000, 1.0)):
    found = limit(jnp.int32(step), sparsify=0.03)
    np.testing.assert_allclose(found, [expected] * ROWS, rtol=1e-6)
    assert sharding.of(found) == sharding.ROWS
  with pytest.raises(ValueError, match='step.sparsify_every=0'):
    step_lib.Config(sparsify=0.03, sparsify_every=0)
