"""Between latents and tokens, and from a time to a vector."""

import einops
import jax
import jax.numpy as jnp

from sr4.nn import rope


def patchify(x: jax.Array, patch: tuple[int, ...]) -> jax.Array:
  """[b t h w c] -> [b s p*c] with patch (pt, ph, pw); [b l c] -> [b l c] with patch (1,).

  ValueError when a side is not a multiple of its patch.
  """
  grid = x.shape[1:-1]
  if any(size % step for size, step in zip(grid, patch)):
    raise ValueError(
      f'a latent of {grid} cannot be cut into patches of {patch}; choose a size '
      'whose latent sides are multiples of the patch'
    )
  if len(grid) == 1:
    return x
  pt, ph, pw = patch
  return einops.rearrange(
    x, 'b (t pt) (h ph) (w pw) c -> b (t h w) (pt ph pw c)', pt=pt, ph=ph, pw=pw
  )


def unpatchify(tokens: jax.Array, grid: tuple[int, ...], patch: tuple[int, ...]) -> jax.Array:
  """The inverse of patchify for a latent of this grid (t, h, w) or (l,)."""
  if len(grid) == 1:
    return tokens
  pt, ph, pw = patch
  return einops.rearrange(
    tokens,
    'b (t h w) (pt ph pw c) -> b (t pt) (h ph) (w pw) c',
    t=grid[0] // pt,
    h=grid[1] // ph,
    w=grid[2] // pw,
    pt=pt,
    ph=ph,
    pw=pw,
  )


def sinusoid(t: jax.Array, size: int = 256) -> jax.Array:
  """[b] -> float32 [b size]: cosines, sines of 1000 (1 - t), which peers call timestep."""
  angle = 1000 * (1 - t.astype(jnp.float32))[:, None] * rope.frequencies(size // 2)
  return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1)
