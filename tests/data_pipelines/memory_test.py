"""Memory that is taken again, and only once nobody looks at it."""

from concurrent import futures
import gc

import numpy as np
import pytest

from data_pipelines import memory
from sr4.core import sharding

SHAPE = (5, memory.LEAST // 4, 1)


@pytest.fixture(autouse=True)
def no_spare():
  gc.collect()
  memory._spare.clear()


def address(x: np.ndarray) -> int:
  return x.__array_interface__['data'][0]


def test_a_shape_and_a_dtype():
  for dtype in (np.uint8, np.float32, bool):
    x = memory.empty(SHAPE, dtype)
    assert x.shape == SHAPE and x.dtype == dtype and x.flags.writeable and x.flags.c_contiguous


def test_what_is_gone_is_taken_again():
  x = memory.empty(SHAPE, np.float32)
  was = address(x)
  del x
  assert address(memory.empty(SHAPE, np.float32)) == was


def test_another_size_is_left_spare():
  x = memory.empty(SHAPE, np.float32)
  was = address(x)
  del x
  other = memory.empty(SHAPE, np.uint8)
  assert address(other) != was and address(memory.empty(SHAPE, np.float32)) == was


@pytest.mark.parametrize(
  'look', [lambda x: x[1:2], lambda x: x.reshape(-1).view(np.uint8)[7:], memoryview]
)
def test_what_somebody_sees_stays(look):
  x = memory.empty(SHAPE, np.uint8)
  x[:] = 7
  seen = look(x)
  del x
  memory.empty(SHAPE, np.uint8)[:] = 9
  assert np.all(np.asarray(seen) == 7)


def test_what_jax_may_share_stays():
  x = memory.empty(SHAPE, np.float32)
  x[:] = 7
  there = sharding.rows(x)  # As training gives them to the devices.
  del x
  memory.empty(SHAPE, np.float32)[:] = 9
  assert (there == 7).all()


def test_spare_is_bounded():
  held = [memory.empty(SHAPE, np.uint8) for _ in range(memory.SPARE + 3)]
  del held
  assert len(memory._spare) == memory.SPARE


def test_threads_never_share():
  def work(k):
    for _ in range(50):
      x = memory.empty(SHAPE, np.uint8)
      x[::2, ::4096] = k
      assert np.all(x[::2, ::4096] == k)
    return k

  with futures.ThreadPoolExecutor(8) as pool:
    assert list(pool.map(work, range(8))) == list(range(8))
