"""Reference classes for parity: random weights, theirs and ours, and a state dict as a source."""

import math

import jax
import numpy as np
import torch

from sr4.core import tree


class State:
  """Of sr4.convert.rules: the weights of a torch module."""

  path = 'a state dict'

  def __init__(self, model):
    self.places = {name: x.float().numpy() for name, x in model.state_dict().items()}

  def shapes(self):
    return {name: x.shape for name, x in self.places.items()}

  def dtypes(self):
    return dict.fromkeys(self.places, 'F32')

  def read(self, name):
    return self.places[name]


def randomized(model):
  """Every parameter a little off what it is made with, so that none is 0 or 1."""
  torch.manual_seed(0)
  with torch.no_grad():
    for x in model.parameters():
      x.add_((0.1 * x.std() if x.ndim > 1 else 0.02) * torch.randn_like(x))
  return model.eval()


def drawn(like, seed=0):
  """Arrays for tree.abstract of a codec, drawn on the host: kernels of variance 1 / fan-in."""
  random = np.random.default_rng(seed)

  def draw(path, x):
    fan = math.prod(x.shape[:-1]) if x.ndim > 1 else 2500
    about = 1 if tree.name_of(path).endswith('gamma') else 0
    value = about + fan**-0.5 * random.standard_normal(x.shape)
    return jax.device_put(value.astype(x.dtype), x.sharding)

  return jax.tree_util.tree_map_with_path(draw, like)


def channels_first(x) -> torch.Tensor:
  return torch.from_numpy(np.moveaxis(np.asarray(x, np.float32), -1, 1).copy())


def channels_last(x: torch.Tensor) -> np.ndarray:
  return np.moveaxis(x.float().numpy(), 1, -1)
