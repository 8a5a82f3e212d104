"""AdamW with a schedule, clipping, and masks by parameter name."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import optax

from sr4.core import tree


@dataclasses.dataclass(frozen=True)
class Config:
  learning_rate: float = 1e-4
  warmup: int = 1000  # steps from 0 to learning_rate
  steps: int = 100_000  # of the whole run; the decay ends here
  decay: str = 'constant'  # or cosine, linear
  final: float = 0.0  # learning rate at the end, as a share of the peak
  b1: float = 0.9
  b2: float = 0.95
  eps: float = 1e-8
  weight_decay: float = 0.0
  decayed: tuple[str, ...] = (r'\.kernel$',)  # names that weight decay applies to
  frozen: tuple[str, ...] = ()  # names that do not train; they have no optimizer state
  clip: float = 1.0  # global norm of the gradient

  def __post_init__(self):
    if self.decay not in ('constant', 'cosine', 'linear'):
      raise ValueError(f"optimizer.decay={self.decay!r} is not 'constant', 'cosine' or 'linear'")
    if self.warmup >= self.steps:
      raise ValueError(
        f'optimizer.warmup={self.warmup} must be below the {self.steps} steps of the '
        'run; lower it or train longer'
      )


def schedule(c: Config):
  """step -> learning rate."""

  def rate(step):
    warm = jnp.minimum(1.0, (step + 1) / max(c.warmup, 1))
    done = jnp.clip((step - c.warmup) / max(c.steps - c.warmup, 1), 0, 1)
    left = {'constant': 1.0, 'linear': 1 - done, 'cosine': (1 + jnp.cos(math.pi * done)) / 2}[
      c.decay
    ]
    return c.learning_rate * warm * (c.final + (1 - c.final) * left)

  return rate


def make(c: Config) -> optax.GradientTransformation:
  """Frozen parameters get no update, and no state in memory."""
  adamw = optax.chain(
    optax.clip_by_global_norm(c.clip),
    optax.scale_by_adam(c.b1, c.b2, c.eps),
    optax.add_decayed_weights(c.weight_decay, lambda p: tree.matching(p, c.decayed)),
    optax.scale_by_learning_rate(schedule(c)),
  )
  label = lambda p: jax.tree.map(
    lambda frozen: 'frozen' if frozen else 'trained', tree.matching(p, c.frozen)
  )
  if not c.frozen:
    return adamw
  return optax.partition({'trained': adamw, 'frozen': optax.set_to_zero()}, label)
