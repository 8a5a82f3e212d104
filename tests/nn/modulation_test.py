"""sr4/nn/modulation.py: AdaLN-Zero starts as the identity, and is LN(x) (1 + scale) + shift."""

from diffusers.models import embeddings
from diffusers.models import normalization
from flax import nnx
import jax.numpy as jnp
import numpy as np
import torch

from sr4.nn import modulation


def _normal(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def test_modulate_and_gate():
  x, update = _normal(2, 5, 8), _normal(2, 5, 8, seed=1)
  shift, scale, amount = _normal(3, 2, 8, seed=2)
  mean, std = x.mean(-1, keepdims=True), x.std(-1, keepdims=True)
  np.testing.assert_allclose(
    modulation.modulate(jnp.asarray(x), shift, scale),
    (x - mean) / std * (1 + scale[:, None]) + shift[:, None],
    atol=1e-5,
  )
  np.testing.assert_allclose(
    modulation.gate(jnp.asarray(x), jnp.asarray(update), amount),
    x + amount[:, None] * update,
    atol=1e-6,
  )


def test_as_ada_layer_norm_zero(relative):
  """The six rows are diffusers' six chunks of AdaLayerNormZero: shift, scale, gate, twice."""
  theirs = normalization.AdaLayerNormZero(16)
  emb, x = _normal(2, 16), _normal(2, 5, 16, seed=1)
  with torch.no_grad():
    normed, gate, shift_mlp, scale_mlp, gate_mlp = theirs(torch.tensor(x), emb=torch.tensor(emb))
  layer = modulation.projection(6, 16, rngs=nnx.Rngs(0))
  layer.kernel[...] = jnp.asarray(
    theirs.linear.weight.detach().numpy().reshape(6, 16, 16).transpose(2, 0, 1)
  )
  layer.bias[...] = jnp.asarray(theirs.linear.bias.detach().numpy().reshape(6, 16))
  silu = torch.nn.functional.silu(torch.tensor(emb)).numpy()
  mod = layer(jnp.asarray(silu))
  assert mod.shape == (6, 2, 16)
  assert relative(modulation.modulate(jnp.asarray(x), mod[0], mod[1]), normed.numpy()) < 1e-6
  for row, expected in ((2, gate), (3, shift_mlp), (4, scale_mlp), (5, gate_mlp)):
    assert relative(mod[row], expected.numpy()) < 1e-6


def test_time_embedding_as_diffusers(relative, randomized):
  """silu of TimestepEmbedding over Timesteps, as every AdaLN of diffusers feeds its linear."""
  ours = randomized(modulation.TimeEmbedding(16, rngs=nnx.Rngs(0)), std=0.1)
  theirs = embeddings.TimestepEmbedding(256, 16)
  t = np.float32([0.25, 0.5, 1.0])
  with torch.no_grad():
    for mine, layer in ((ours.up, theirs.linear_1), (ours.out, theirs.linear_2)):
      layer.weight.copy_(torch.tensor(np.asarray(mine.kernel[...]).T))
      layer.bias.copy_(torch.tensor(np.asarray(mine.bias[...])))
    sinusoid = embeddings.Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)
    expected = torch.nn.functional.silu(theirs(sinusoid(torch.tensor(1000 * (1 - t)))))
  out = ours(jnp.asarray(t))
  assert out.dtype == jnp.float32
  assert relative(out, expected.numpy()) < 1e-5


def test_starts_closed():
  time = modulation.TimeEmbedding(16, rngs=nnx.Rngs(0))(jnp.asarray([0.1, 0.9]))
  assert not np.any(modulation.projection(9, 16, rngs=nnx.Rngs(1))(time))
  table = modulation.table(6, 16)
  assert table[...].shape == (6, 16) and not np.any(table[...])


def test_bfloat16_tokens_stay_bfloat16():
  x = jnp.ones((1, 3, 8), jnp.bfloat16)
  zero = jnp.zeros((1, 8))
  assert modulation.modulate(x, zero, zero).dtype == modulation.gate(x, x, zero).dtype == x.dtype
