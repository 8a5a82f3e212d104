"""Reference classes for parity: random weights, and a state dict as a source of them."""

import numpy as np
import torch


class State:
  """Of sr4.convert.rules: the weights of a torch module."""

  path = 'a state dict'

  def __init__(self, model):
    self.places = {name: x.float().numpy() for name, x in model.state_dict().items()}

  def shapes(self):
    return {name: x.shape for name, x in self.places.items()}

  def read(self, name):
    return self.places[name]


def randomized(model):
  """Every parameter a little off what it is made with, so that none is 0 or 1."""
  torch.manual_seed(0)
  with torch.no_grad():
    for x in model.parameters():
      x.add_((0.1 * x.std() if x.ndim > 1 else 0.02) * torch.randn_like(x))
  return model.eval()


def channels_first(x) -> torch.Tensor:
  return torch.from_numpy(np.moveaxis(np.asarray(x, np.float32), -1, 1).copy())


def channels_last(x: torch.Tensor) -> np.ndarray:
  return np.moveaxis(x.float().numpy(), 1, -1)
