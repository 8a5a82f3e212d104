"""sr4/nn/embed.py: patches there and back, and time as diffusers writes it."""

from diffusers.models import embeddings
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from sr4.nn import embed


@pytest.mark.parametrize(
  'shape, patch, tokens',
  [
    ((2, 3, 4, 6, 5), (1, 2, 2), (2, 18, 20)),
    ((2, 4, 4, 6, 5), (2, 2, 3), (2, 8, 60)),
    ((2, 3, 4, 6, 5), (1, 1, 1), (2, 72, 5)),
    ((2, 7, 5), (1,), (2, 7, 5)),
  ],
)
def test_patches_round_trip(shape, patch, tokens):
  x = jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape)
  y = embed.patchify(x, patch)
  assert y.shape == tokens
  np.testing.assert_array_equal(embed.unpatchify(y, shape[1:-1], patch), x)


def test_a_token_is_a_patch_in_row_order():
  """Token (t, h, w) of grid positions holds the patch's rows, then columns, then channels."""
  x = np.arange(2 * 4 * 6 * 3).reshape(1, 2, 4, 6, 3)
  y = np.asarray(embed.patchify(jnp.asarray(x), (1, 2, 2)))
  t, h, w = 1, 1, 2
  np.testing.assert_array_equal(
    y[0, (t * 2 + h) * 3 + w], x[0, t, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2].reshape(-1)
  )


@pytest.mark.parametrize('shape', [(1, 3, 5, 6, 2), (1, 3, 4, 7, 2)])
def test_a_size_that_does_not_divide(shape):
  with pytest.raises(ValueError) as error:
    embed.patchify(jnp.zeros(shape), (1, 2, 2))
  assert str(shape[1:-1]) in str(error.value) and '(1, 2, 2)' in str(error.value)


def test_sinusoid_as_diffusers(relative):
  """Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0) at timestep 1000 (1 - t).

  Angles reach 1000, where neighbours in fp32 are 6e-5 apart: hence 1e-5, and not 1e-6.
  """
  t = np.float32([0, 0.125, 0.5, 0.75, 1])  # 1000 (1 - t) is exact.
  ours = embed.sinusoid(jnp.asarray(t))
  assert ours.shape == (5, 256) and ours.dtype == jnp.float32
  steps = torch.tensor(1000 * (1 - t))
  timesteps = embeddings.Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)
  assert relative(ours, timesteps(steps).numpy()) < 1e-5
  assert (
    relative(
      ours,
      embeddings.get_timestep_embedding(
        steps, 256, flip_sin_to_cos=True, downscale_freq_shift=0
      ).numpy(),
    )
    < 1e-5
  )
