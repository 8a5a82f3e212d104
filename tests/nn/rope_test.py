"""sr4/nn/rope.py: parity with the three published forms, and relative position as an identity."""

from diffusers.models import embeddings
from diffusers.models.transformers import transformer_hunyuan_video as hunyuan
from diffusers.models.transformers import transformer_kandinsky6 as kandinsky
from diffusers.models.transformers import transformer_wan as wan
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from sr4.nn import rope

GRID = (5, 4, 6)


def _coordinates(grid) -> np.ndarray:
  axes = np.meshgrid(*map(np.arange, grid), indexing='ij')
  return np.stack(axes, -1).reshape(1, -1, len(grid)).astype(np.float32)


def _normal(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def _rotated(x, coordinates, dims, theta=1e4) -> np.ndarray:
  return np.asarray(rope.rotate(jnp.asarray(x), rope.angles(jnp.asarray(coordinates), dims, theta)))


def _dots(positions, dims, q, k) -> np.ndarray:
  """q.k for a query and a key at each pair of positions [pairs 2 axes]."""
  turn = lambda x, i: _rotated(np.tile(x, (1, len(positions), 1, 1)), positions[None, :, i], dims)
  return np.einsum('bsnk,bsnk->s', turn(q, 0).astype(np.float64), turn(k, 1))


@pytest.mark.parametrize(
  'head_dim, dims',
  [(128, (44, 42, 42)), (256, (88, 84, 84)), (64, (24, 20, 20)), (24, (8, 8, 8)), (12, (4, 4, 4))],
)
def test_split(head_dim, dims):
  assert rope.split_3d(head_dim) == dims and sum(dims) == head_dim


def test_as_wan(relative):
  """WanRotaryPosEmbed: 44, 42, 42 of 128, applied as its attention applies it."""
  q = _normal(2, np.prod(GRID), 3, 128)
  theirs = wan.WanRotaryPosEmbed(128, (1, 2, 2), 64)
  cos, sin = theirs(torch.zeros(1, 16, GRID[0], 2 * GRID[1], 2 * GRID[2]))
  even, odd = torch.tensor(q).unflatten(-1, (-1, 2)).unbind(-1)
  cos, sin = cos[..., 0::2], sin[..., 1::2]
  expected = torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)
  ours = _rotated(q, _coordinates(GRID), rope.split_3d(128))
  assert relative(ours, expected.numpy()) < 1e-6


def test_as_hunyuan(relative):
  """HunyuanVideoRotaryPosEmbed: 16, 56, 56 of 128, theta 256."""
  dims = (16, 56, 56)
  q = _normal(2, np.prod(GRID), 3, 128)
  frequencies = hunyuan.HunyuanVideoRotaryPosEmbed(2, 1, list(dims), 256.0)(
    torch.zeros(1, 16, GRID[0], 2 * GRID[1], 2 * GRID[2])
  )
  expected = embeddings.apply_rotary_emb(torch.tensor(q), frequencies, sequence_dim=1)
  assert relative(_rotated(q, _coordinates(GRID), dims, 256.0), expected.numpy()) < 1e-6


def test_as_kandinsky_with_scaled_frequencies(relative):
  """Kandinsky6RoPE1D(freqs_scaling=21/218) of index l is ours of the coordinate l * 21/218."""
  q = _normal(2, 218, 3, 128)
  table = kandinsky.Kandinsky6RoPE1D(128, freqs_scaling=21 / 218)(torch.arange(218))
  expected = kandinsky.apply_rotary(torch.tensor(q), table)
  ours = _rotated(q, np.arange(218, dtype=np.float32)[None, :, None] * (21 / 218), (128,))
  assert relative(ours, expected.numpy()) < 1e-6


@pytest.mark.parametrize('axis', [0, 1, 2])
def test_only_differences_count(axis):
  """q.k at (p, r) = q.k at (p + d, r + d) for a shift along each axis, negative times included."""
  q, k = _normal(1, 1, 1, 48, seed=1), _normal(1, 1, 1, 48, seed=2)
  random = np.random.default_rng(3)
  pairs = random.uniform(-8, 8, (16, 2, 3))
  pairs[:, :, 0] *= 2.5
  shift = np.zeros(3)
  shift[axis] = 7.25
  dims = rope.split_3d(48)
  here, there = _dots(pairs, dims, q, k), _dots(pairs + shift, dims, q, k)
  np.testing.assert_allclose(there, here, atol=1e-4)
  assert np.std(here) > 1  # Position does matter.
  moved = pairs + shift * np.array([[0], [1]])
  assert np.max(np.abs(_dots(moved, dims, q, k) - here)) > 0.5


def test_axes_have_channels_of_their_own():
  coordinates = np.zeros((1, 1, 3))
  dims = rope.split_3d(128)
  for axis, (start, stop) in enumerate([(0, 44), (44, 86), (86, 128)]):
    at = coordinates.copy()
    at[..., axis] = 3.0
    angle = np.asarray(rope.angles(jnp.asarray(at), dims))[0, 0]
    turned = np.repeat(angle, 2) != 0
    assert turned[start:stop].all() and turned.sum() == stop - start


def test_norms_do_not_change():
  x = _normal(2, 7, 3, 24)
  turned = _rotated(x, _normal(2, 7, 3) * 50, rope.split_3d(24))
  np.testing.assert_allclose(np.linalg.norm(turned, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-6)
  pairs = lambda y: np.linalg.norm(y.reshape(2, 7, 3, 12, 2), axis=-1)
  np.testing.assert_allclose(pairs(turned), pairs(x), rtol=1e-5)


def test_angles_are_fp32_and_x_keeps_its_dtype():
  angle = rope.angles(jnp.ones((1, 2, 1), jnp.bfloat16), (8,))
  assert angle.dtype == jnp.float32 and angle.shape == (1, 2, 4)
  assert rope.rotate(jnp.ones((1, 2, 1, 8), jnp.bfloat16), angle).dtype == jnp.bfloat16


def test_a_turn_in_bfloat16_is_rounded_once():
  """By large angles, which bf16 does not hold: half a unit of its 8 bits from the turn in fp32."""
  x = jnp.asarray(_normal(2, 7, 3, 24), jnp.bfloat16)
  angle = rope.angles(jnp.asarray(100 + 900 * np.abs(_normal(2, 7, 3))), rope.split_3d(24))
  exact = np.asarray(rope.rotate(x.astype(jnp.float32), angle))
  found = np.asarray(rope.rotate(x, angle), np.float32)
  assert np.all(np.abs(found - exact) <= 2**-8 * np.abs(exact) + 1e-6)
