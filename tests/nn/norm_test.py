"""sr4/nn/norm.py: against torch, statistics in fp32 whatever goes in."""

import jax.numpy as jnp
import numpy as np
import torch

from sr4.nn import norm


def _x(*shape):
  return np.float32(3 + 2 * np.random.default_rng(0).standard_normal(shape))


def test_layer_norm_as_torch(relative, randomized):
  x = _x(2, 5, 48)
  plain = torch.nn.LayerNorm(48, eps=1e-6, elementwise_affine=False)
  assert relative(norm.layer_norm(jnp.asarray(x)), plain(torch.tensor(x)).numpy()) < 1e-6
  layer, theirs = randomized(norm.LayerNorm(48)), torch.nn.LayerNorm(48, eps=1e-6)
  with torch.no_grad():
    theirs.weight.copy_(torch.tensor(np.asarray(layer.scale[...])))
    theirs.bias.copy_(torch.tensor(np.asarray(layer.bias[...])))
    assert relative(layer(jnp.asarray(x)), theirs(torch.tensor(x)).numpy()) < 1e-6


def test_rms_norm_as_torch(relative, randomized):
  x = _x(2, 5, 3, 24)
  layer, theirs = randomized(norm.RMSNorm(24)), torch.nn.RMSNorm(24, eps=1e-6)
  with torch.no_grad():
    theirs.weight.copy_(torch.tensor(np.asarray(layer.scale[...])))
    assert relative(layer(jnp.asarray(x)), theirs(torch.tensor(x)).numpy()) < 1e-6


def test_statistics_are_fp32():
  """1000 + noise in bf16: sums in bf16 would lose the noise; the result returns in bf16."""
  x = jnp.asarray(1000 + 8 * _x(1, 4096), jnp.bfloat16)
  y = norm.layer_norm(x)
  assert y.dtype == jnp.float32
  assert abs(float(jnp.mean(y))) < 1e-4 and abs(float(jnp.std(y)) - 1) < 1e-4
  assert norm.LayerNorm(4096)(x).dtype == norm.RMSNorm(4096)(x).dtype == jnp.bfloat16
  x = jnp.asarray(_x(1, 4096), jnp.bfloat16)
  exact = torch.nn.functional.rms_norm(torch.tensor(np.float32(x)), (4096,), eps=1e-6)
  once = exact.bfloat16().float().numpy()  # Rounded in the end, and not before.
  assert np.mean(np.float32(norm.RMSNorm(4096)(x)) == once) > 0.99
