"""AdamW with a schedule, clipping, and masks by parameter name."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sr4.core import config
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
    if not 0 <= self.learning_rate < math.inf:
      raise ValueError(
        f'optimizer.learning_rate={self.learning_rate} must be 0 or more, and finite'
      )
    if not (0 <= self.b1 < 1 and 0 <= self.b2 < 1 and self.eps > 0):
      raise ValueError(
        f'optimizer.b1={self.b1} and b2={self.b2} must be in [0, 1), and eps={self.eps} above 0'
      )
    if self.warmup < 0 or self.weight_decay < 0:
      raise ValueError(
        f'optimizer.warmup={self.warmup} and weight_decay={self.weight_decay} must be 0 or more'
      )
    if self.clip <= 0:
      raise ValueError(f'optimizer.clip={self.clip} must be above 0; inf clips nothing')
    if self.warmup >= self.steps:
      raise ValueError(
        f'optimizer.warmup={self.warmup} must be below the {self.steps} steps of the '
        'run; lower it or train longer'
      )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pace:
  """A schedule's numbers, fp32.  Given to a compiled step as data, they change no program."""

  learning_rate: np.float32
  warmup: np.float32
  steps: np.float32
  final: np.float32

  @classmethod
  def of(cls, c: Config) -> 'Pace':
    return cls(*(np.float32(getattr(c, field.name)) for field in dataclasses.fields(cls)))


def schedule(decay: str, pace: Pace):
  """step -> learning rate."""

  def rate(step):
    warm = jnp.minimum(1.0, (step + 1) / jnp.maximum(pace.warmup, 1))
    if decay == 'constant':
      return pace.learning_rate * warm
    done = jnp.clip((step - pace.warmup) / jnp.maximum(pace.steps - pace.warmup, 1), 0, 1)
    left = 1 - done if decay == 'linear' else (1 + jnp.cos(math.pi * done)) / 2
    return pace.learning_rate * warm * (pace.final + (1 - pace.final) * left)

  return rate


def check_frozen(c: Config, names):
  """ConfigError where a pattern of frozen parameters is of none of these."""
  for pattern in c.frozen:
    if not any(re.search(pattern, name) for name in names):
      raise config.ConfigError(
        f'optimizer.frozen={pattern!r} is of no parameter; they have names like {next(iter(names))}'
      )


def make(c: Config, pace: Pace | None = None) -> optax.GradientTransformation:
  """Frozen parameters get no update, and no state in memory.  pace: the config's own where None."""
  adamw = optax.chain(
    optax.clip_by_global_norm(c.clip),
    optax.scale_by_adam(c.b1, c.b2, c.eps),
    optax.add_decayed_weights(c.weight_decay, lambda p: tree.matching(p, c.decayed)),
    optax.scale_by_learning_rate(schedule(c.decay, pace or Pace.of(c))),
  )
  label = lambda p: jax.tree.map(
    lambda frozen: 'frozen' if frozen else 'trained', tree.matching(p, c.frozen)
  )
  if not c.frozen:
    return adamw
  return optax.partition({'trained': adamw, 'frozen': optax.set_to_zero()}, label)
