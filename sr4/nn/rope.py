"""Rotary position embedding (arXiv 2104.09864) of real coordinates, adjacent pairs rotated."""

import jax
import jax.numpy as jnp
import numpy as np


def split_3d(head_dim: int) -> tuple[int, int, int]:
  """Channels of a head for (t, h, w): 44, 42, 42 of 128, as in Wan."""
  side = 2 * (head_dim // 6)
  return head_dim - 2 * side, side, side


def angles(coordinates: jax.Array, dims: tuple[int, ...], theta: float = 1e4) -> jax.Array:
  """Angle of each pair of channels.

  Args:
    coordinates: [... p], one number per axis; time in latent frames, space in patches.
    dims: channels that rotate with each of the p axes, all even.
  Returns:
    float32 [... sum(dims) / 2]: coordinate * theta^(-2 i / dim).
  """
  parts = []
  for axis, dim in enumerate(dims):
    frequency = frequencies(dim // 2, theta)
    parts.append(coordinates[..., axis, None].astype(jnp.float32) * frequency)
  return jnp.concatenate(parts, -1)


def frequencies(count: int, theta: float = 1e4) -> np.ndarray:
  """float32 [count]: theta^(-i / count).

  Made on the host in fp64, so that they are the same everywhere: powers in fp32 differ from device
  to device, and a thousand times that is seen.
  """
  return np.float32(theta ** (-np.arange(count) / count))


def rotate(x: jax.Array, angle: jax.Array) -> jax.Array:
  """x [b s n k] with channels (2i, 2i + 1) turned by angle [b s k/2]; the norm does not change.

  x cos + turned(x) sin, where (2i, 2i + 1) is turned by a right angle in a matrix product: exact in
  any dtype, and on a TPU channels are lanes, which are slow to take apart.
  """
  turn = np.kron(np.eye(x.shape[-1] // 2), [[0, 1], [-1, 0]]).astype(x.dtype)
  turned = jnp.einsum(
    *('bsnk,kj->bsnj', x, turn),
    precision=jax.lax.Precision.HIGHEST,
    preferred_element_type=jnp.float32,
  )
  cos, sin = (jnp.repeat(f(angle), 2, -1)[:, :, None] for f in (jnp.cos, jnp.sin))
  return (x.astype(jnp.float32) * cos + turned * sin).astype(x.dtype)
