"""One layer of the model, small, with every weight drawn; what goes in."""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from sr4.core import tree
from sr4.models import block
from sr4.models import mmdit

WIDTH, HEADS, TEXT = 48, 2, 5
GRID = (3, 2, 2)
S = 12
CONFIG = mmdit.Config(width=WIDTH, heads=HEADS, dtype='float32')
apply = jax.jit(lambda layer, y, ctx: layer(y, ctx))


def normal(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def coordinates(grid=GRID) -> np.ndarray:
  axes = np.meshgrid(*map(np.arange, grid), indexing='ij')
  return np.stack(axes, -1).reshape(1, -1, 3).astype(np.float32)


def context(angle=None, *, s=S, b=2, width=WIDTH, seed=5, **fields) -> block.Context:
  head = width // (1 if width != WIDTH else HEADS)
  default = block.Context(
    mod=normal(9, b, width, seed=seed),
    text_mod=normal(6, b, width, seed=seed + 1),
    angle=np.zeros((b, s, head // 2), np.float32) if angle is None else angle,
    time_angle=3 * normal(b, s, head // 2, seed=seed + 2),
    valid=np.ones((b, s), bool),
    readable=np.ones((b, s), bool),
    prompt=normal(b, TEXT, width, seed=seed + 3),
    text_valid=np.ones((b, TEXT), bool),
  )
  return jax.tree.map(jnp.asarray, dataclasses.replace(default, **fields))


def tokens(x, text=None) -> block.Tokens:
  text = np.zeros((len(x), TEXT, x.shape[-1]), np.float32) if text is None else text
  return block.Tokens(jnp.asarray(x), jnp.asarray(text))


def layer(randomized, *, dual, config=CONFIG, seed=0) -> block.Layer:
  make = lambda: block.Layer(config, dual=dual, rngs=nnx.Rngs(0))
  return randomized(tree.abstract(make), seed=seed)
