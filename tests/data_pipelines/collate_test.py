"""data_pipelines/collate.py: the fields and shapes of a bucket, filled and marked."""

import jax
import numpy as np

from data_pipelines import collate
from data_pipelines import tasks
from sr4.core.batch import Size

SIZE = Size(5, 8, 8, 8.0, 100, 2, 2, reference_images=2, reference_frames=5, reference_samples=50)
HAS = collate.fields(('t2av', 'edit', 'a2v', 'image_ref'), SIZE)


def _row():
  ones = lambda *shape: np.ones(shape, np.uint8)
  return tasks.Row(
    ones(5, 8, 8, 3),
    np.ones((100, 1), np.float32),
    np.ones((5, 8, 8), bool),
    keyframes=ones(2, 16, 16, 3),
    at=np.array([0, 4], np.int32),
    images=(ones(8, 8, 3),),
    clip=ones(3, 8, 8, 3),
    sound=np.ones((20, 1), np.float32),
  )


def _collate(rows):
  text = np.ones((len(rows), 3, 4), np.float32), np.ones((len(rows), 3), bool)
  return collate.collate(rows, SIZE, HAS, *text, 1)


def test_shapes_are_those_of_the_arrays():
  made = _collate([_row(), tasks.Row()])
  like = jax.ShapeDtypeStruct((2, 3, 4), np.float32), jax.ShapeDtypeStruct((2, 3), bool)
  told = collate.shapes(2, SIZE, HAS, like, 1)
  same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), made, told)
  assert all(jax.tree.leaves(same)) and len(jax.tree.leaves(same)) == 17


def test_what_a_row_lacks_is_zero_and_marked(monkeypatch):
  dirty = lambda shape, dtype: np.full(shape, 1, dtype)
  monkeypatch.setattr(collate.np, 'empty', dirty)
  made = _collate([_row(), tasks.Row()])
  np.testing.assert_array_equal(made.present.video, [True, False])
  np.testing.assert_array_equal(made.present.audio, [True, False])
  assert not any(
    np.any(x[1]) for x in (made.frames, made.samples, made.known, made.keyframes.frames)
  )
  refs = made.references
  np.testing.assert_array_equal(refs.images_valid, [[True, False], [False, False]])
  np.testing.assert_array_equal(refs.frames_valid.sum(1), [3, 0])
  np.testing.assert_array_equal(refs.samples_valid.sum(1), [20, 0])
  assert refs.frames[0, :3].all() and not refs.frames[0, 3:].any() and not refs.images[1].any()
