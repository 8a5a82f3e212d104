"""Files of public weights: one safetensors file, or a folder with one or several and an index."""

import dataclasses
import functools
import json
import os

import ml_dtypes  # noqa: F401  With it numpy knows bfloat16.
import numpy as np
import safetensors

from sr4.core import errors


class FileError(errors.UserError):
  """No such weights, or they are broken."""


@dataclasses.dataclass(frozen=True)
class Source:
  """Tensors by name; each is read when it is asked for."""

  path: str
  places: dict  # {name of a tensor: file}

  def shapes(self) -> dict[str, tuple[int, ...]]:
    return {name: tuple(self._slice(name).get_shape()) for name in self.places}

  def dtypes(self) -> dict[str, str]:
    """As the format calls them: F32, BF16, I8, ..."""
    return {name: self._slice(name).get_dtype() for name in self.places}

  def read(self, name: str) -> np.ndarray:
    return opened(self.places[name]).get_tensor(name)

  def _slice(self, name: str):
    return opened(self.places[name]).get_slice(name)


def source(path: str) -> Source:
  """Of a .safetensors file, or of a folder that has them, such as diffusers and transformers write.

  Raises:
    FileError: there is none, one is cut off, or the index names what is not there.
  """
  if not os.path.exists(path):
    raise FileError(f'{path}: there is no such file or folder of weights')
  if not os.path.isdir(path):
    return Source(path, dict.fromkeys(names(path), path))
  found = sorted(os.listdir(path))
  indices = [name for name in found if name.endswith('.safetensors.index.json')]
  if len(indices) > 1:
    raise FileError(f'{path} has {" and ".join(indices)}; give a folder of one model')
  for index in indices:
    try:
      with open(os.path.join(path, index)) as f:
        parts = json.load(f)['weight_map']
      places = {name: os.path.join(path, part) for name, part in parts.items() if part}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
      raise FileError(f'{path}: {index} is no whole index ({error!r}); fetch it again') from error
    if not places:
      raise FileError(f'{path}: {index} names no file; fetch it again')
    for part in sorted(set(places.values())):
      if not os.path.exists(part):
        raise FileError(f'{path}: {index} names {os.path.basename(part)}, which is not there')
      there = set(names(part))
      if lacks := [name for name, at in places.items() if at == part and name not in there]:
        raise FileError(
          f'{part} has no {lacks[0]}, which {index} names in it; fetch both of one release'
        )
      places |= {name: part for name in there - places.keys()}  # For who reads it to refuse.
    return Source(path, places)
  files = [os.path.join(path, name) for name in found if name.endswith('.safetensors')]
  if len(files) != 1:
    raise FileError(
      f'{path} has {len(files)} .safetensors files and no index; give the file that holds the '
      'weights'
    )
  return Source(path, dict.fromkeys(names(files[0]), files[0]))


def page(path: str) -> dict:
  """A JSON file that describes weights; FileError where it is cut off, or none."""
  try:
    with open(path) as f:
      found = json.load(f)
    return dict(found)
  except (ValueError, TypeError) as error:
    raise FileError(f'{path} is no whole description ({error}); fetch it again') from error


def names(path: str) -> list[str]:
  return list(opened(path).keys())


@functools.lru_cache(maxsize=64)
def opened(path: str):
  """The file, its header read and checked."""
  try:
    return safetensors.safe_open(path, framework='numpy')
  except (OSError, safetensors.SafetensorError) as error:
    raise FileError(
      f'{path} is no whole safetensors file ({error}); fetch it again, or convert it to safetensors'
    ) from error
