"""The straight path between noise and data (Eq. 6), for any tree of modalities.

  z_t = t z_0 + (1 - t) eps        t = 1 is data, t = 0 is noise
  target = z_0 - eps

diffusers and Wan write sigma = 1 - t and the target eps - z_0: v_diffusers(sigma) = -v(1 - sigma).
"""

import dataclasses

import jax
import jax.numpy as jnp

from sr4.core import prng
from sr4.core.av import AV
from sr4.core.sharding import ROWS


@dataclasses.dataclass(frozen=True)
class TimeConfig:
  """How t is drawn: uniform in the report; logit-normal (arXiv 2403.03206) and shift are choice"""

  distribution: str = 'uniform'  # or logit_normal
  mean: float = 0.0
  std: float = 1.0
  shift: float = 1.0  # > 1: more time near noise

  def __post_init__(self):
    if self.distribution not in ('uniform', 'logit_normal'):
      raise ValueError(
        f"distribution={self.distribution!r} is neither 'uniform' nor 'logit_normal'"
      )
    if self.shift <= 0 or self.std <= 0:
      raise ValueError(f'shift={self.shift} and std={self.std} must be above 0')


def shifted(t, shift: float):
  """sigma' = s sigma / (1 + (s - 1) sigma) with sigma = 1 - t, in terms of t."""
  return t / (t + shift * (1 - t))  # Exact at both ends, which solvers take logarithms of.


def sample_times(key: jax.Array, rows: int, config: AV, independent: float) -> AV:
  """t of each modality, float32 [rows] in (0, 1).

  Args:
    config: AV of TimeConfig.
    independent: share of rows whose audio draws its own quantile; the rest use the video's, each
      modality with its own distribution and shift.
  """
  draw = lambda name: jax.random.uniform(
    prng.named(key, name), (rows,), minval=1e-5, maxval=1 - 1e-5, out_sharding=ROWS
  )
  u, own = draw('video'), draw('audio')
  quantile = AV(u, jnp.where(draw('independent') < independent, own, u))

  def to_time(c, u):
    if c.distribution == 'logit_normal':
      normal = 2**0.5 * jax.lax.erf_inv(2 * u - 1)
      u = jax.nn.sigmoid(c.mean + c.std * normal)
    return shifted(u, c.shift)

  return AV(*map(to_time, config, quantile))


def noise_like(key: jax.Array, x):
  """Standard normal of the shapes and layouts of a tree."""

  def draw(path, leaf):
    return jax.random.normal(
      prng.named(key, jax.tree_util.keystr(path)),
      leaf.shape,
      out_sharding=jax.typeof(leaf).sharding.spec,
    )

  return jax.tree_util.tree_map_with_path(draw, x)


def each(f, t: AV, *trees: AV) -> AV:
  """f(t, leaf, ...) for all leaves of each modality, t broadcast against the leaf."""

  def one(t, *leaves):
    widen = lambda leaf: jnp.reshape(t, jnp.shape(t) + (1,) * (leaf.ndim - jnp.ndim(t)))
    return jax.tree.map(lambda *xs: f(widen(xs[0]), *xs), *leaves)

  return AV(*(one(*args) for args in zip(t, *trees)))


def interpolate(t: AV, data: AV, noise: AV) -> AV:
  """z_t."""
  return each(lambda t, z, e: t * z + (1 - t) * e, t, data, noise)


def velocity(data: AV, noise: AV) -> AV:
  """The target of Eq. 6."""
  return jax.tree.map(lambda z, e: z - e, data, noise)


def data_from(t: AV, z_t: AV, v: AV) -> AV:
  """z_0 on the straight line through z_t with velocity v."""
  return each(lambda t, z, v: z + (1 - t) * v, t, z_t, v)


def noise_from(t: AV, z_t: AV, v: AV) -> AV:
  """eps on the same line."""
  return each(lambda t, z, v: z - t * v, t, z_t, v)
