"""Safetensors written as they come: of what is written, one tensor is in memory.

A model is one file, or several and the index that diffusers and transformers read.
"""

from collections.abc import Iterable
from collections.abc import Iterator
import concurrent.futures
import contextlib
import hashlib
import json
import math
import os
import pathlib

import ml_dtypes
import numpy as np

from sr4.convert import rules
from sr4.core import files
from sr4.core import folders

DTYPES = {'float32': 'F32', 'bfloat16': 'BF16'}
SHARD = 4 << 30  # bytes of a file
BLOCK = 16 << 20  # bytes that are made contiguous, and written, at once
MANIFEST = 'sha256.json'  # {file: digest} of a folder
PAGE = 'sr4.json'  # the config of what is in it


class Folder:
  """A folder's files as they are written, each with its sha256."""

  def __init__(self, path: pathlib.Path):
    self.path, self.digests, self.size = path, {}, 0

  def save(self, name: str, parts: Iterable):
    """A file of these parts, each bytes or what has a buffer."""
    digest, path = hashlib.sha256(), os.path.join(self.path, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, 'wb') as f:
      for part in parts:
        digest.update(part)
        self.size += f.write(part)
      f.flush()
      os.fsync(f.fileno())
    self.digests[name] = digest.hexdigest()

  def json(self, name: str, page: dict):
    self.save(name, [(json.dumps(page, indent=2, sort_keys=True) + '\n').encode()])

  def tensors(self, stem, shapes: dict, arrays: Iterable, dtype: str, most: int = SHARD):
    """Files named after the stem, of no more than `most` bytes unless one tensor has more.

    Args:
      shapes: {name: shape}; arrays: of each, in the same order.
    """
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    sizes = {name: math.prod(shape) * kind.itemsize for name, shape in shapes.items()}
    groups, size = [[]], 0
    for name in shapes:
      if groups[-1] and size + sizes[name] > most:
        groups.append([])
        size = 0
      groups[-1].append(name)
      size += sizes[name]
    arrays, places = iter(arrays), {}
    for i, names in enumerate(groups, 1):
      number = f'-{i:05d}-of-{len(groups):05d}' if len(groups) > 1 else ''
      file = f'{stem}{number}.safetensors'
      self.save(file, stream({name: shapes[name] for name in names}, arrays, kind))
      places |= dict.fromkeys(names, os.path.basename(file))
    if len(groups) > 1:
      index = {'metadata': {'total_size': sum(sizes.values())}, 'weight_map': places}
      self.json(f'{stem}.safetensors.index.json', index)


def stream(shapes: dict, arrays: Iterator[np.ndarray], kind: np.dtype):
  """The bytes of a safetensors file: a header that says where each tensor lies, and these."""
  header, at = {'__metadata__': {'format': 'pt'}}, 0
  for name, shape in shapes.items():
    end = at + math.prod(shape) * kind.itemsize
    told = {'dtype': DTYPES[kind.name], 'shape': list(shape), 'data_offsets': [at, end]}
    header[name], at = told, end
  text = json.dumps(header).encode()
  text += b' ' * (-len(text) % 8)
  yield len(text).to_bytes(8, 'little') + text
  for name, shape in shapes.items():
    x = next(arrays)
    if x.shape != tuple(shape):
      raise ValueError(f'{name} is {x.shape}, and was to be {tuple(shape)}')
    x = x.reshape(1) if not x.ndim else x
    count = max(1, BLOCK // max(1, x[:1].nbytes))
    for at in range(0, len(x), count):  # It may be a view, of which no whole copy is needed.
      yield np.ascontiguousarray(x[at : at + count], kind).reshape(-1).view(np.uint8).data


def ahead(arrays: Iterator) -> Iterator:
  """The same, each made while the one before is written."""
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    future = pool.submit(next, arrays, None)
    while (x := future.result()) is not None:
      future = pool.submit(next, arrays, None)
      yield x


@contextlib.contextmanager
def appearing(out: str) -> Iterator[Folder]:
  """A Folder that becomes `out` when all is written, with the digests of its files, or is removed.

  Raises:
    ConvertError: `out` is there, and is not an empty folder.
  """
  target = pathlib.Path(os.path.abspath(out))
  if target.exists() and (not target.is_dir() or any(target.iterdir())):
    raise rules.ConvertError(f'{out} is not empty; give a new folder')
  with folders.partial(target) as path:
    folder = Folder(path)
    yield folder
    page = json.dumps(folder.digests, indent=2, sort_keys=True).encode()
    files.save(path / MANIFEST, page)
    os.rename(path, target)  # An empty folder gives way.


def check(path: str):
  """ConvertError for what is not as it was written."""
  place = os.path.join(path, MANIFEST)
  try:
    with open(place) as f:
      told = json.load(f)
  except (OSError, ValueError) as error:
    raise rules.ConvertError(
      f'{path} has no {MANIFEST} that can be read; give a folder that `sr4 export` wrote'
    ) from error
  for name, expected in told.items():
    try:
      with open(os.path.join(path, name), 'rb') as f:
        found = hashlib.file_digest(f, 'sha256').hexdigest()
    except FileNotFoundError:
      found = None
    if found != expected:
      what = 'is not as it was written' if found else 'is missing'
      raise rules.ConvertError(f'{path}: {name} {what}; export it again, or fetch it again')
