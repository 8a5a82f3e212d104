"""sr4/nn/vsa.py against the paper's formulas, tile by tile, and against dense attention."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sr4.core import sharding
from sr4.core.sharding import P
from sr4.nn import attention
from sr4.nn import vsa

CONFIG = vsa.Config(tile=(4, 4, 4), sparsity=0.5)
SIZE = CONFIG.size
# A reference, a clip of eight tiles, padding for the mesh; then text of 72 tokens.
CHOOSING = (False,) + 8 * (True,) + 7 * (False,)
LONG, SHORT = len(CHOOSING) * SIZE, 72


def streams(n=2, k=8, b=2):
  """Queries, keys, values, gate, validity: edges of the clip, a reference and text with holes."""
  random = np.random.default_rng(0)
  draw = lambda s: random.standard_normal((b, s, n, k), dtype=np.float32)
  valid = np.ones((b, LONG), bool)
  valid[:, 9 * SIZE :] = False
  valid[:, 20:SIZE] = False
  valid[1, :SIZE] = False  # A row without the reference,
  valid[:, 3 * SIZE + 40 : 4 * SIZE] = False  # a tile at the edge of the clip.
  text = np.arange(SHORT) < np.array([[50], [7]])
  pairs = [(draw(LONG), draw(SHORT)) for _ in range(3)]
  return *pairs, draw(LONG), (valid, text)


def paper(q, k, v, gate, valid, sparsity, choosing=CHOOSING):
  """Out of (arXiv 2505.13389), fp64: every head and tile on its own.  Arguments as `streams`."""
  long, n = q[0].shape[1], q[0].shape[2]
  filled = -q[1].shape[1] % SIZE
  joined = lambda x: np.pad(
    np.concatenate(x, 1), [(0, 0), (0, filled)] + [(0, 0)] * (x[0].ndim - 2)
  )
  q, k, v, valid = (joined([np.asarray(y, np.float64) for y in x]) for x in (q, k, v, valid))
  valid = valid.astype(bool)
  gate = np.pad(gate, [(0, 0), (0, q.shape[1] - gate.shape[1]), (0, 0), (0, 0)])
  tiles = [slice(i, i + SIZE) for i in range(0, q.shape[1], SIZE)]
  choosing = list(choosing) + [False] * (len(tiles) - len(choosing))
  out = np.zeros_like(q)
  for b, h in np.ndindex(len(q), n):
    there = [j for j, at in enumerate(tiles) if valid[b, at].any()]
    free = [j for j in there if choosing[j]]
    one = [x[b, :, h] for x in (q, k, v)]
    q_c, k_c, v_c = ({j: x[tiles[j]][valid[b, tiles[j]]].mean(0) for j in there} for x in one)
    for i in there:
      scores = {j: q_c[i] @ k_c[j] / np.sqrt(q.shape[-1]) for j in there}
      taken = there
      if choosing[i]:
        best = sorted(free, key=lambda j: -scores[j])[
          : int(np.ceil((1 - sparsity) * len(free) - 1e-9))
        ]
        taken = sorted(set(best) | {j for j in there if not choosing[j]})
      keys = np.concatenate(
        [np.arange(tiles[j].start, tiles[j].stop)[valid[b, tiles[j]]] for j in taken]
      )
      logits = q[b, tiles[i], h] @ k[b, keys, h].T / np.sqrt(q.shape[-1])
      weights = np.exp(logits - logits.max(1, keepdims=True))
      out[b, tiles[i], h] = weights / weights.sum(1, keepdims=True) @ v[b, keys, h]
      if choosing[i]:
        weights = np.exp(list(scores.values()))
        coarse = weights / weights.sum() @ np.stack([v_c[j] for j in scores])
        out[b, tiles[i], h] += gate[b, tiles[i], h] * coarse
  return out[:, :long], out[:, long : out.shape[1] - filled]


def attended(q, k, v, gate, valid, sparsity, config=CONFIG):
  sparsity = jax.reshard(jnp.asarray(sparsity, jnp.float32), sharding.ROWS)
  tiles = vsa.Tiles(sparsity, CHOOSING, config, config.left(1))
  return vsa.attend(q, k, v, gate, valid, tiles)


def total(results, valid):
  """A number that follows from the tokens that there are."""
  return sum(jnp.sum(jnp.where(t[..., None, None], jnp.sin(x), 0)) for x, t in zip(results, valid))


def seen(results, valid):
  """The tokens that there are: what the others become is nobody's business."""
  return np.concatenate([np.asarray(x)[there] for x, there in zip(results, valid)])


@pytest.mark.parametrize('sparsity', [0.0, 0.5, 2 / 3, 0.8, 0.99])
def test_is_the_paper(sparsity, relative):
  x = streams()
  found = jax.jit(attended)(*x, [sparsity] * 2)
  assert relative(seen(found, x[-1]), seen(paper(*x, sparsity), x[-1])) < 1e-6


def test_all_tiles_and_no_gate_are_dense_attention(relative):
  q, k, v, gate, valid = streams()
  args = q, k, v, jnp.zeros_like(gate), valid

  def loss(attend, q, k, v):
    found = attend(q, k, v)
    return total(found, valid), found

  ours = lambda q, k, v: attended(q, k, v, args[3], valid, [0.0, 0.0])
  dense = lambda q, k, v: attention.attend(q, k, v, valid)
  run = lambda attend: jax.jit(jax.grad(functools.partial(loss, attend), (0, 1, 2), has_aux=True))(
    q, k, v
  )
  (gradients, found), (wanted, expected) = run(ours), run(dense)
  assert relative(seen(found, valid), seen(expected, valid)) < 1e-6
  for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(wanted)):
    assert relative(a, b) < 1e-6


def test_rows_are_as_sparse_as_they_are_told(relative):
  x = streams()
  both = attended(*x, [0.0, 0.75])
  for row, sparsity in enumerate((0.0, 0.75)):
    there = [valid & (np.arange(2) == row)[:, None] for valid in x[-1]]
    assert relative(seen(both, there), seen(paper(*x, sparsity), there)) < 1e-6


def test_the_best_are_chosen_and_equals_in_order():
  scores = jnp.array([[[[3.0, 1, 2, 2, 9, 2, 0], [1, 1, 1, 1, 1, 1, 1]]]])
  chosen, there = np.arange(7) != 4, jnp.array([[True] * 6 + [False]])
  pick = lambda sparsity, chooses: vsa.select(
    scores, jnp.array(chooses), chosen, there, jnp.array([sparsity])
  )
  found = pick(0.4, [True, True])[0, 0].astype(int).tolist()
  assert found == [[1, 0, 1, 1, 1, 0, 0], [1, 1, 1, 0, 1, 0, 0]]
  assert pick(0.4, [True, False])[0, 0, 1].tolist() == there[0].tolist()


def test_as_many_as_the_share_says_whatever_its_rounding():
  """K = ceil((1 - s) n) for every n."""
  counts, every = np.arange(1, 300), np.ones(299, bool)
  there = jnp.asarray(np.arange(299) < counts[:, None])
  for left, parts in ((1, 3), (1, 5), (1, 10), (2, 3)):
    sparsity = jnp.full(299, 1 - left / parts)
    mask = vsa.select(jnp.zeros((299, 1, 1, 299)), every[:1], every, there, sparsity)
    np.testing.assert_array_equal(jnp.sum(mask, (1, 2, 3)), -(-left * counts // parts))


def test_the_expected_reads_are_those_of_the_mask():
  """What the cost of the kernels, and so a plan, is reckoned by: tiles of references read all."""
  choosing = jnp.array([False] * 12 + [True] * 16 + [False] * 4)
  config = vsa.Config((4, 4, 4), sparsity=0.75)
  tiles = vsa.Tiles(jnp.full(2, 0.75), tuple(choosing.tolist()), config, config.left(1))
  scores = jax.random.normal(jax.random.key(0), (2, 3, 32, 32))
  mask = vsa.select(scores, choosing, choosing, jnp.ones((2, 32), bool), tiles.sparsity)
  assert vsa.reads(tiles, 32) == np.sum(mask, -1).mean() == 26
  assert vsa.Config((4, 4, 4), sparsity=0.75, dense_layers=(0, 2)).left(3) == pytest.approx(0.25)


def test_gradients_reach_the_gate_and_what_it_lets_through():
  q, k, v, gate, valid = streams()

  def coarse(q, k, v, gate):
    return total(attended(q, k, v, gate, valid, [0.5] * 2), valid)

  found = jax.jit(jax.grad(coarse, (0, 1, 2, 3)))(q, k, v, gate)
  with jax.enable_x64(True):
    wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (q, k, v, gate))
    nudge = jax.tree.map(
      lambda x: jnp.asarray(np.random.default_rng(1).standard_normal(x.shape)), wide
    )
    run = jax.jit(coarse)
    at = lambda e: run(*jax.tree.map(lambda x, d: x + e * d, wide, nudge))
    slope = (at(1e-4) - at(-1e-4)) / 2e-4
  told = sum(jnp.sum(g * d) for g, d in zip(jax.tree.leaves(found), jax.tree.leaves(nudge)))
  assert abs(told - slope) < 1e-3 * abs(slope)
  assert np.any(found[3])


def test_a_row_without_any_key_is_zero():
  q, k, v, gate, valid = streams()
  valid = [x & np.array([[True], [False]]) for x in valid]

  def run(q, k, v, gate):
    found = attended(q, k, v, gate, valid, [0.5] * 2)
    return sum(jnp.sum(x) for x in found), found

  slopes, found = jax.jit(jax.grad(run, (0, 1, 2, 3), has_aux=True))(q, k, v, gate)
  for x in jax.tree.leaves((slopes, found)):
    assert np.any(x[0]) and not np.any(x[1])


MESHES = [
  dict(fsdp=2, seq=4),  # by heads alone
  dict(fsdp=2, seq=2, tensor=2),
  dict(fsdp=1, seq=8),  # 4 heads: 4 ways by heads, 2 around
  dict(fsdp=1, seq=4, tensor=2),  # 2 heads each: 2 ways by heads, 2 around
]


def on(mesh, x, text):
  """text: the layout of its stream, which single-stream layers split like the clip's."""

  def loss(q, k, v, gate):
    found = attended(q, k, v, gate, valid, [0.5, 0.8])
    return total(found, valid), found

  with jax.set_mesh(sharding.make_mesh(**mesh)):
    *pairs, gate, valid = x
    layouts = sharding.LONG.heads, text(4)
    pairs = [tuple(map(jax.device_put, pair, layouts)) for pair in pairs]
    valid = [jax.device_put(there, P(sharding.DP, None)) for there in valid]
    gate = jax.device_put(gate, layouts[0])
    run = jax.jit(jax.grad(loss, (0, 1, 2, 3), has_aux=True))
    gradients, found = run(*pairs, gate)
    assert [sharding.of(a) for a in found] == list(layouts)
    return jax.device_get((seen(found, x[-1]), gradients))


TEXTS = {'short': lambda heads: sharding.short(heads).heads, 'long': lambda _: sharding.LONG.heads}


@pytest.mark.parametrize('text', TEXTS)
@pytest.mark.parametrize('mesh', MESHES, ids=str)
def test_the_mesh_does_not_change_the_answer(mesh, text, relative):
  x, text = streams(n=4), TEXTS[text]
  for ours, expected in zip(*map(jax.tree.leaves, (on(mesh, x, text), on(dict(fsdp=1), x, text)))):
    assert relative(ours, expected) < 1e-6


@pytest.mark.parametrize(
  'fields, told',
  [
    (dict(tile=(4, 4)), 'model.sparse.tile=(4, 4)'),
    (dict(tile=(3, 4, 8)), 'model.sparse.tile=(3, 4, 8)'),
    (dict(tile=(100,)), 'model.sparse.tile=(100,)'),
    (dict(tile=(4, 4, 4), sparsity=1.0), 'model.sparse.sparsity=1.0'),
    (dict(tile=(4, 4, 4), dense_until=-0.1), 'model.sparse.dense_until=-0.1'),
  ],
)
def test_what_no_model_can_be(fields, told):
  with pytest.raises(ValueError, match='model.sparse') as error:
    vsa.Config(**fields)
  assert told in str(error.value)
