"""Every task from a record of SR4-World to what the model is told, judged by the world itself."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines import collate
from data_pipelines import tasks
from data_pipelines import world
from data_pipelines.world import kinds
from sr4.core.av import AV
from sr4.core.batch import Size
from sr4.flow import conditioning
from sr4.models import codec

CODECS = AV(
  codec.build_video({'name': 'dct', 'space_factor': 4, 'channels': 192}),  # Lossless.
  codec.build_audio(
    {'name': 'mdct', 'sample_rate': 8000, 'audio_channels': 1, 'hop': 256, 'bands': 64}
  ),
)
WORLD = world.World(
  world.Config.simple(height=24, width=32, frames=17, fps=8.0, sample_rate=8000, channels=1)
)
CLIP = Size(17, 24, 32, 8.0, 17000)
SLOTS = dict(reference_images=2, reference_frames=17, reference_samples=8000)
SIZES = {
  't2i': dataclasses.replace(CLIP, frames=1, samples=0),
  't2a': dataclasses.replace(CLIP, frames=0),
  'image_ref': dataclasses.replace(CLIP, **SLOTS),
  'video_ref': dataclasses.replace(CLIP, **SLOTS),
  'audio_ref': dataclasses.replace(CLIP, **SLOTS),
}
SOURCES = {'t2i': 'images', 't2a': 'sounds', 'edit': 'edits'} | {
  name: name for name in ('image_ref', 'video_ref', 'audio_ref')
}
ROWS = 3


def _size(name) -> Size:
  return SIZES.get(name, CLIP)


def _record(name, index):
  """Of the first clip from there on in which something rings."""
  while not (found := kinds.make(WORLD, index, SOURCES.get(name, 'clips'))).has_audio:
    if name == 't2i':
      break
    index += 100
  return found


def _rows(name, change=lambda record: record):
  random = lambda i: np.random.default_rng([i, 7])
  return [
    tasks.make(name, change(_record(name, i)), _size(name), random(i), 4, 1) for i in range(ROWS)
  ]


def _batch(name, rows):
  text = np.ones((len(rows), 2, 4), np.float32), np.ones((len(rows), 2), bool)
  clips = collate.collate(rows, _size(name), collate.fields([name], _size(name)), *text, 1)
  encode = lambda clips: conditioning.encode(CODECS, _size(name), (1, 2, 2), clips)
  return jax.tree.map(np.asarray, jax.jit(encode)(jax.tree.map(jnp.asarray, clips)))


MASKED = [name for name, task in tasks.TASKS.items() if task.known]


@pytest.mark.parametrize('name', tasks.TASKS)
def test_a_bucket_can_do_the_task(name):
  tasks.check(name, _size(name))
  assert all(len(row.frames if row.frames is not None else row.samples) for row in _rows(name))


@pytest.mark.parametrize('name', MASKED)
def test_what_is_known_is_the_source_and_what_is_not_does_not_leak(name):
  rows = _rows(name)
  batch = _batch(name, rows)
  (segment,) = batch.cond.segments.video
  shown = np.asarray(CODECS.video.decode(jnp.asarray(segment.known)))
  for row, decoded in zip(rows, shown):
    known = np.broadcast_to(row.known, row.frames.shape[:3])
    assert 0 < known.mean() < 1, 'nothing is known, or all'
    truth = row.frames.astype(np.float32) / 127.5 - 1
    np.testing.assert_allclose(decoded[known], truth[known], atol=2e-3)
  noise = np.random.default_rng(0)
  hidden = [
    dataclasses.replace(
      row,
      frames=np.where(
        row.known[..., None], row.frames, noise.integers(0, 256, row.frames.shape, 'u1')
      ),
    )
    for row in rows
  ]
  other = _batch(name, hidden)
  jax.tree.map(np.testing.assert_array_equal, other.cond, batch.cond)
  assert np.any(other.latents.video[0] != batch.latents.video[0])


@pytest.mark.parametrize(
  'name, frames',
  [
    ('i2v', lambda known: known == [0]),
    ('start_end', lambda known: known == [0, 16]),
    ('keyframes', lambda known: 1 <= len(known) <= 6),
    ('extend', lambda known: known == list(range(len(known))) and len(known) % 4 == 1),
    (
      'extend_back',
      lambda known: known == list(range(17 - len(known), 17)) and len(known) % 4 == 0,
    ),
  ],
)
def test_which_frames_are_known(name, frames):
  lengths = set()
  for i in range(40):
    row = tasks.make(name, _record(name, 0), CLIP, np.random.default_rng(i), 4, 1)
    known = np.flatnonzero(row.known[:, 0, 0]).tolist()
    assert row.known.shape == (17, 1, 1) and frames(known), known
    lengths.add(len(known))
  many = {'keyframes': 6, 'extend': 4, 'extend_back': 4}
  assert len(lengths) == many.get(name, 1)


def test_an_edit_is_where_the_record_says():
  record = _record('edit', 1)
  row = tasks.make('edit', record, CLIP, np.random.default_rng(0), 4, 1)
  np.testing.assert_array_equal(row.known, ~record.mask)


def test_regions_stand_still_or_move_for_a_while():
  random = np.random.default_rng(0)
  still = tasks.TASKS['inpaint'].known(random, CLIP, 4)
  assert not np.any(still != still[:1]) and still.shape == (17, 24, 32)
  moving = [tasks.TASKS['edit'].known(random, CLIP, 4) for _ in range(20)]
  assert all(np.any(known != known[:1]) for known in moving)
  hidden = [np.flatnonzero((~known).any((1, 2))) for known in moving]
  assert all(len(when) >= 9 and np.all(np.diff(when) == 1) for when in hidden)


@pytest.mark.parametrize('name', tasks.TASKS)
def test_sound_is_there_exactly_where_it_should_be(name):
  """T2V loses it, pictures have none, a silent clip has none, and what is given is not learnt."""
  rows = _rows(name)
  has = name not in ('t2i', 't2v')
  assert [row.samples is not None for row in rows] == [has] * ROWS
  batch = _batch(name, rows)
  np.testing.assert_array_equal(batch.cond.present.audio, [has] * ROWS)
  learnt = {'a2v': (True, False), 'v2a': (False, True)}.get(name, (_size(name).frames > 0, has))
  for weights, expected in zip(batch.weights, learnt):
    assert weights is None or all(np.all(w == expected) for w in weights)
  if name in ('t2av', 't2v', 'i2v'):
    silent = lambda record: dataclasses.replace(record, samples=None)
    assert all(row.samples is None for row in _rows(name, silent))


def test_sound_is_that_of_the_frames():
  """A longer clip is cut in time, and its sound at the same place."""
  long = dataclasses.replace(WORLD.config, frames=41)
  record = kinds.make(world.World(long), 3, 'clips')
  row = tasks.make('t2av', record, CLIP, np.random.default_rng(1), 4, 1)
  starts = [i for i in range(25) if np.array_equal(record.frames[i : i + 17], row.frames)]
  begin = starts[0] * 1000
  assert 0 < starts[0] < 24 and len(starts) == 1
  np.testing.assert_array_equal(row.samples, record.samples[begin : begin + 17000])


def test_a_silent_stretch_of_a_record_is_no_sound():
  record = kinds.make(world.World(dataclasses.replace(WORLD.config, frames=41)), 3, 'clips')
  samples = record.samples.copy()
  samples[:-1000] = 0
  record = dataclasses.replace(record, samples=samples)
  assert tasks.cut(record, CLIP, 0.0, 1)[2] is None
  assert tasks.cut(record, CLIP, 0.99, 1)[2][-1000:].any()
  with pytest.raises(tasks.TaskError, match='neither the frames nor the sound'):
    tasks.make('t2a', record, SIZES['t2a'], np.random.default_rng(1), 4, 1)


def test_references_are_those_of_the_caption():
  portrait, _ = WORLD.reference(0, 0)
  (row, *_) = _rows('image_ref')
  assert len(row.images) == 1 and np.array_equal(row.images[0], portrait)
  assert '@image_1' in _record('image_ref', 0).captions['short']
  (row, *_) = _rows('video_ref')
  source, target, _, _ = WORLD.edit(0, 'remove')
  record = kinds.make(WORLD, 0, 'video_ref')
  row = tasks.make('video_ref', record, _size('video_ref'), np.random.default_rng(0), 4, 1)
  np.testing.assert_array_equal(row.clip, source.frames)
  np.testing.assert_array_equal(row.frames, target.frames)
  record = _record('audio_ref', 0)
  row = tasks.make('audio_ref', record, _size('audio_ref'), np.random.default_rng(0), 4, 1)
  assert row.sound.shape == (8000, 1) and np.any(row.sound)


@pytest.mark.parametrize(
  'name, source, told',
  [
    ('image_ref', 'clips', 'no image reference'),
    ('video_ref', 'image_ref', 'no video reference'),
  ],
)
def test_a_record_without_the_reference_is_refused(name, source, told):
  record = kinds.make(WORLD, 0, source)
  with pytest.raises(tasks.TaskError, match=told):
    tasks.make(name, record, _size(name), np.random.default_rng(0), 4, 1)


@pytest.mark.parametrize(
  'name, lacks, told', [('v2a', 'samples', 'no sound'), ('a2v', 'frames', 'no frames')]
)
def test_a_record_of_one_modality_cannot_be_given_whole(name, lacks, told):
  record = dataclasses.replace(_record(name, 0), **{lacks: None})
  with pytest.raises(tasks.Unsuited, match=f'{told}, and .{name}. needs both'):
    tasks.make(name, record, CLIP, np.random.default_rng(0), 4, 1)


def test_a_reference_without_a_slot_is_refused():
  record = dataclasses.replace(
    kinds.make(WORLD, 0, 'video_ref'),
    references=(
      *kinds.make(WORLD, 0, 'video_ref').references,
      *kinds.make(WORLD, 0, 'image_ref').references,
    ),
  )
  size = dataclasses.replace(CLIP, reference_frames=17)
  with pytest.raises(tasks.TaskError, match='no slot'):
    tasks.make('video_ref', record, size, np.random.default_rng(0), 4, 1)


def test_keyframes_are_the_sharp_frames_of_a_small_clip():
  size = Size(17, 12, 16, 8.0, 0, keyframes=3, keyframe_scale=2)
  record = _record('t2v', 0)
  row = tasks.make('t2v', record, size, np.random.default_rng(0), 4, 1)
  assert row.frames.shape == (17, 12, 16, 3) and row.keyframes.shape == (3, 24, 32, 3)
  np.testing.assert_array_equal(row.keyframes, record.frames[row.at])
  assert np.all(np.diff(row.at) > 0) and np.all(row.at % 4 == 0)
  means = record.frames.reshape(17, 12, 2, 16, 2, 3).mean((2, 4))
  assert np.abs(row.frames - means).max() <= 0.5
