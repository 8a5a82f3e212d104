"""sr4/nn/kernels/block_sparse.py: all implementations against the dense product under the mask."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sr4.nn.kernels import block_sparse
from sr4.nn.kernels import block_sparse_gpu
from sr4.nn.kernels import block_sparse_tpu
from sr4.planning import hlo
from sr4.planning import operations
from tests import one_tpu

OTHERS = [name for name in block_sparse.IMPLEMENTATIONS if name != 'reference']
# Tile, tiles of queries, tiles of keys, how many are chosen: few, one, all, and more than a group.
SIZES = [(128, 3, 5, 2), (256, 2, 3, 1), (64, 4, 4, 4), (64, 2, 21, 19)]


@pytest.fixture(scope='module', autouse=True)
def mesh():
  """None: a kernel runs inside shard_map, where there is none to see."""


def inputs(tile, i, j, most, n=2, k=128, b=2, dtype=jnp.float32):
  """q, k, v, valid, mask: with holes, a tile of keys that is not there, and one that half is."""
  random = np.random.default_rng(tile + j)
  draw = lambda *shape: jnp.asarray(random.standard_normal(shape), dtype)
  valid = random.random((b, j * tile)) < 0.8
  valid[:, (j - 1) * tile + tile // 2 :] = False
  if j > most:
    valid[0, tile : 2 * tile] = False
  scores = random.random((b, n, i, j))
  mask = scores >= np.sort(scores, -1)[..., -most][..., None]
  q, keys, values = draw(b, i * tile, n, k), draw(b, j * tile, n, k), draw(b, j * tile, n, k)
  return q, keys, values, jnp.asarray(valid), jnp.asarray(mask)


def run(name):
  interpret = name.startswith('pallas')
  return functools.partial(block_sparse.attend, implementation=name, interpret=interpret)


def gradients(name, *x):
  loss = lambda *x: jnp.sum(jnp.sin(run(name)(*x).astype(jnp.float32)))
  return jax.jit(jax.grad(loss, (0, 1, 2)))(*x)


@pytest.mark.parametrize('sizes', SIZES)
@pytest.mark.parametrize('name', OTHERS)
def test_forward_and_gradients(name, sizes, relative):
  x = inputs(*sizes)
  assert relative(run(name)(*x), run('reference')(*x)) < 1e-6
  for found, wanted in zip(gradients(name, *x), gradients('reference', *x)):
    assert relative(found, wanted) < 1e-6


@pytest.mark.parametrize('name', OTHERS)
def test_bf16_is_as_far_from_fp32_as_the_plain_product_is(name, relative):
  """Weights and results are rounded to bf16 by both, which alone is 2e-3."""
  *x, valid, mask = inputs(128, 2, 4, 2, dtype=jnp.bfloat16)
  wide = [a.astype(jnp.float32) for a in x]
  both = lambda name, x: (
    run(name)(*x, valid, mask),
    *gradients(name, *x, valid, mask),
  )
  exact, plain, found = both('reference', wide), both('reference', x), both(name, x)
  for a, b, c in zip(found, plain, exact):
    assert relative(a, c) < 1.25 * relative(b, c)


@pytest.mark.parametrize('name', block_sparse.IMPLEMENTATIONS)
def test_rows_without_a_valid_key_are_zero_and_have_no_gradient(name):
  q, k, v, valid, mask = inputs(64, 2, 3, 1, b=1)
  valid = jnp.ones_like(valid).at[:, :64].set(False)
  mask = jnp.zeros_like(mask).at[:, :, 0, 0].set(True).at[:, :, 1, 1].set(True)
  x = q, k, v, valid, mask
  assert not np.any(run(name)(*x)[:, :64])
  dq, dk, _ = gradients(name, *x)
  assert not np.any(dq[:, :64]) and not np.any(dk[:, :64]) and np.any(dq[:, 64:])


@pytest.mark.parametrize('name', OTHERS)
def test_runs_agree_to_the_bit(name):
  x = inputs(64, 2, 5, 3)
  for a, b in zip(gradients(name, *x), gradients(name, *x)):
    np.testing.assert_array_equal(a, b)


def test_tpu_parts_follow_each_other(relative):
  """As many keys or queries at a time as VMEM holds: here, two tiles; the last part has one."""
  *x, valid, mask = inputs(128, 5, 7, 3)
  whole, lse = block_sparse_tpu.forward(*x, valid, mask, 3, True)
  stays = 2 * (128 * 2 * 128 * 4 + 1024)
  parts, other = block_sparse_tpu.forward(*x, valid, mask, 3, True, stays)
  assert relative(parts, whole) < 1e-6 and relative(other, lse) < 1e-6
  rest = (valid, mask, whole, lse, jnp.cos(whole), 3, True)
  found = block_sparse_tpu.backward(*x, *rest, stays * 3 // 2)
  for a, b in zip(found, block_sparse_tpu.backward(*x, *rest)):
    assert relative(a, b) < 1e-6


def test_a_policy_keeps_the_results_and_what_they_are_of():
  x = inputs(64, 2, 5, 3, b=1)
  policy = jax.checkpoint_policies.save_only_these_names('attention')

  def loss(q):
    return jnp.sum(jax.checkpoint(lambda q: run('pallas_tpu')(q, *x[1:]), policy=policy)(q) ** 2)

  text = str(jax.make_jaxpr(jax.grad(loss))(x[0]))
  assert text.count('name=block_sparse_forward') == 1 and 'block_sparse_backward' in text


# Tokens of 720p for 5 seconds, padded to tiles; forward and backward.
@pytest.mark.parametrize(
  'chip, tile', [('v5e', 128), ('v5p', 64), ('v5p', 128), ('v6e', 256), ('tpu7x', 256)]
)
def test_compiles_for_tpu(chip, tile):
  tiles = 75_776 // tile
  x = jax.ShapeDtypeStruct((1, tiles * tile, 2, 128), jnp.bfloat16)
  valid = jax.ShapeDtypeStruct(x.shape[:2], bool)
  mask = jax.ShapeDtypeStruct((1, 2, tiles, tiles), bool)

  def loss(q, k, v, valid, mask):
    out = block_sparse.attend(q, k, v, valid, mask, tiles / 3)
    return jnp.sum(out.astype(jnp.float32))

  found = one_tpu.compiled(jax.grad(loss, (0, 1, 2)), x, x, x, valid, mask, chip=chip)
  if chip != 'tpu7x':  # Of which this compiler writes no text.
    work, pair = operations.program(hlo.parse(found.as_text())), 2 * tile**2 * 128
    pairs = 2 * tiles * (tiles / 3)
    assert work.forward == pytest.approx(2 * pairs * pair) and work.kernel == ('tiles', tile)
    assert work.backward == pytest.approx(5 * pairs * pair) and not work.unknown


@pytest.mark.parametrize('tile', [64, 128, 256])
def test_lowers_for_cuda(tile):
  """To Triton, which a GPU's own compiler takes on."""
  x = jax.ShapeDtypeStruct((1, 8 * tile, 2, 128), jnp.bfloat16)
  valid = jax.ShapeDtypeStruct(x.shape[:2], bool)
  mask = jax.ShapeDtypeStruct((1, 2, 8, 8), bool)

  def both(q, k, v, valid, mask):
    out, lse = block_sparse_gpu.forward(q, k, v, valid, mask, 3)
    return block_sparse_gpu.backward(q, k, v, valid, mask, out, lse, out, 3)

  lowered = jax.jit(both).trace(x, x, x, valid, mask).lower(lowering_platforms=('cuda',))
  assert lowered.as_text().count('__gpu$xla.gpu.triton') == 3
