"""A checkpoint read in parts, in an order of the reader's: a few of them are in memory at a time.

When all of an array has been read its digest is compared, so that what is passed on is what was
written.
"""

import collections
from collections.abc import Iterable
from collections.abc import Iterator
import math
import os

import numpy as np
import tensorstore

from sr4.training import checkpoint
from sr4.training import digest

# Memory that many threads have freed stays with each, and they are many.
ONE = {'data_copy_concurrency': {'limit': 1}, 'file_io_concurrency': {'limit': 1}}
AHEAD = 32 << 20  # bytes that are read before they are asked for


def arrays(
  directory: str, step: int, digests: dict[str, str], parts: Iterable[tuple[str, int | None]]
) -> Iterator[np.ndarray]:
  """Each part: an array of this name, or one layer of it.

  Raises:
    CheckpointError: an array is missing, cannot be read, or is not as it was written.
  """
  path = os.path.join(os.path.abspath(directory), str(step))
  opened, sums, read = {}, {}, collections.Counter()
  context = tensorstore.Context(ONE)
  parts, ahead, waiting = iter(parts), collections.deque(), 0

  def ask():
    nonlocal waiting
    while waiting < AHEAD and (part := next(parts, None)):
      name, layer = part
      if name not in opened:
        opened[name] = digest.stored(os.path.join(path, 'arrays'), name, context)
        sums[name] = np.zeros(2, np.uint32)
      x = opened[name] if layer is None else opened[name][layer : layer + 1]
      ahead.append((name, layer, x.read()))
      waiting += x.size * x.dtype.numpy_dtype.itemsize

  while True:
    with checkpoint.reading(path):
      ask()
      if not ahead:
        return
      name, layer, future = ahead.popleft()
      x = np.asarray(future.result())
      waiting -= x.nbytes
      shape = opened[name].shape
      sums[name] += digest.of_run(x, (layer or 0) * x.size)
      read[name] += x.size
      if read[name] == math.prod(shape) and digest.hexadecimal(sums[name]) != digests.get(name):
        raise checkpoint.damaged(path, f'array {name!r} is not as it was written')
    yield x if layer is None else x[0]
