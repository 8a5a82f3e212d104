"""sr4/flow/conditioning.py: clips to batches, and conditions taken away."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sr4.core.av import AV
from sr4.core.batch import Clips
from sr4.core.batch import Condition
from sr4.core.batch import Keyframes
from sr4.core.batch import References
from sr4.core.batch import Segment
from sr4.core.batch import Size
from sr4.flow import conditioning
from sr4.models import codec

CODECS = AV(
  codec.build_video({'name': 'dct', 'space_factor': 4, 'channels': 12}),
  codec.build_audio(
    {'name': 'mdct', 'sample_rate': 16000, 'audio_channels': 1, 'hop': 256, 'bands': 64}
  ),
)
SIZE = Size(9, 16, 24, 8.0, 18000)  # 3 x 4 x 6 latents
PATCH = (1, 2, 2)


def _clips(rows=2, known=None, seed=0) -> Clips:
  random = np.random.default_rng(seed)
  return Clips(
    random.integers(0, 256, (rows, SIZE.frames, SIZE.height, SIZE.width, 3), np.uint8),
    random.uniform(-1, 1, (rows, SIZE.samples, 1)).astype(np.float32),
    known,
    np.ones((rows, 3, 4), np.float32),
    np.ones((rows, 3), bool),
    AV(np.arange(rows) != 1, np.ones(rows, bool)),
  )


def _encode(clips, size=SIZE):
  return jax.tree.map(
    np.asarray, conditioning.encode(CODECS, size, PATCH, jax.tree.map(jnp.asarray, clips))
  )


def test_nothing_known_is_black_and_not_zero():
  """T2V: M is 0 and I is the latent of black frames."""
  (segment,) = _encode(_clips()).cond.segments.video
  black = np.asarray(CODECS.video.black(9, 16, 24))
  assert np.std(black) > 0.1
  np.testing.assert_array_equal(segment.known, np.broadcast_to(black, (2, *black.shape)))
  assert segment.mask.shape == (2, 3, 4, 6, 1) and not np.any(segment.mask)
  assert segment.generated and np.all(segment.valid)


def test_known_frames_are_shown_and_nothing_else(relative):
  """I holds the clip's latents where M is 1, black's elsewhere; unknown frames do not leak."""
  known = np.zeros((2, 9, 1, 1), bool)
  known[0, :5], known[1, 0] = True, True
  clips = _clips(known=known)
  batch = _encode(clips)
  (segment,) = batch.cond.segments.video
  (latents,) = batch.latents.video
  black = np.asarray(CODECS.video.black(9, 16, 24))
  for row, count in ((0, 2), (1, 1)):
    np.testing.assert_array_equal(segment.mask[row, :, 0, 0, 0], np.arange(3) < count)
    assert np.ptp(segment.mask[row], (1, 2)).max() == 0
    assert relative(segment.known[row, :count], latents[row, :count]) < 1e-5
    np.testing.assert_array_equal(segment.known[row, count:], black[count:])
  hidden = clips.frames.copy()
  unseen = ~known[:, :, 0, 0]
  hidden[unseen] = 255 - hidden[unseen]
  other = _encode(
    Clips(
      hidden, *[getattr(clips, f) for f in ('samples', 'known', 'text', 'text_valid', 'present')]
    )
  )
  np.testing.assert_array_equal(other.cond.segments.video[0].known, segment.known)
  assert np.any(other.latents.video[0] != latents)


def test_rows_without_a_modality_weigh_nothing():
  batch = _encode(_clips())
  (video,), (audio,) = batch.weights
  assert video.shape == (2, 3, 4, 6, 1) and audio.shape == (2, batch.latents.audio[0].shape[1], 1)
  np.testing.assert_array_equal(video[:, 0, 0, 0, 0], [1, 0])
  assert np.ptp(video, (1, 2, 3)).max() == 0 and np.all(audio == 1)
  np.testing.assert_array_equal(batch.cond.present.video, [True, False])


@pytest.mark.parametrize('frames, samples', [(0, 18000), (9, 0)])
def test_a_size_without_a_modality(frames, samples):
  batch = _encode(_clips(), Size(frames, 16, 24, 8.0, samples))
  for part in (batch.latents, batch.weights, batch.cond.segments):
    assert [x is None for x in part] == [not frames, not samples]


def test_latents_are_the_codecs():
  clips = _clips()
  batch = _encode(clips)
  np.testing.assert_allclose(
    batch.latents.video[0], CODECS.video.encode(jnp.asarray(clips.frames)), atol=1e-5
  )
  np.testing.assert_allclose(
    batch.latents.audio[0], CODECS.audio.encode(jnp.asarray(clips.samples)), atol=1e-6
  )


@pytest.mark.parametrize('known', [None, 1, 5])
def test_latents_made_ahead_are_the_same_batch(known):
  """Of clips whose beginning is known, to whole latents, and of references."""
  size = dataclasses.replace(SIZE, reference_images=2, reference_frames=5, reference_samples=1024)
  random = np.random.default_rng(3)
  picture = lambda *shape: random.integers(0, 256, (2, *shape, 16, 24, 3), np.uint8)
  references = References(
    *(picture(2), np.array([[True, True], [True, False]])),
    *(picture(5), np.array([[True] * 5, [False] * 5])),
    *(random.uniform(-1, 1, (2, 1024, 1)).astype(np.float32), np.ones((2, 1024), bool)),
  )
  shown = None
  if known:
    shown = np.zeros((2, 9, 1, 1), bool)
    shown[:, :known] = True
  clips = dataclasses.replace(_clips(known=shown), references=references)
  now = _encode(clips, size)
  made = jax.tree.map(
    np.asarray, conditioning.coded(CODECS, size, jax.tree.map(jnp.asarray, clips))
  )
  bare = dataclasses.replace(references, images=None, frames=None, samples=None)
  ahead = dataclasses.replace(clips, frames=None, samples=None, references=bare, latents=made)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), _encode(ahead, size), now)


def test_positions():
  """Seconds, rows and columns in patches, in the order of the tokens; sound in seconds."""
  batch = _encode(_clips())
  positions = batch.cond.segments.video[0].positions
  assert positions.shape == (2, 3 * 2 * 3, 3) and positions.dtype == np.float32
  t, h, w = 2, 1, 2
  np.testing.assert_array_equal(positions[0, (t * 2 + h) * 3 + w], [t * 4 / 8.0, h, w])
  np.testing.assert_array_equal(positions[0], positions[1])
  sound = batch.cond.segments.audio[0].positions[0, :, 0]
  np.testing.assert_allclose(sound, np.arange(len(sound)) / CODECS.audio.rate, rtol=1e-6)
  # The last of both is the end of the same clip, to a latent.
  assert abs(sound[-1] - positions[0, -1, 0]) < 4 / 8.0


def _condition(rows) -> Condition:
  return Condition(
    AV((), ()),
    jnp.ones((rows, 2, 3)),
    jnp.asarray([[True, False]] * rows),
    AV(jnp.ones(rows, bool), jnp.arange(rows) % 2 == 0),
  )


def test_drop_rates_are_measured():
  rows = 20_000
  cond = _condition(rows)
  out = conditioning.drop(jax.random.key(5), cond, conditioning.DropConfig(0.1, 0.0, 0.3))
  no_text = ~np.asarray(out.text_valid).any(1)
  alone = ~np.asarray(out.present.video)
  assert abs(no_text.mean() - 0.1) < 0.01 and abs(alone.mean() - 0.3) < 0.015
  assert abs((no_text & alone).mean() - 0.03) < 0.006  # Each is drawn on its own.
  np.testing.assert_array_equal(out.present.audio, ~alone & np.asarray(cond.present.audio))
  np.testing.assert_array_equal(out.text_valid, np.asarray(cond.text_valid) & ~no_text[:, None])
  np.testing.assert_array_equal(out.text, cond.text)


def test_drop_of_nothing_and_of_all():
  cond = _condition(64)
  same = conditioning.drop(jax.random.key(5), cond, conditioning.DropConfig(0.0, 0.0, 0.0))
  jax.tree.map(np.testing.assert_array_equal, same, cond)
  none = conditioning.drop(jax.random.key(5), cond, conditioning.DropConfig(1.0, 1.0, 1.0))
  assert not np.any(none.text_valid) and not np.any(none.present.video | none.present.audio)


def test_without_takes_from_the_rows_named():
  cond, rows = _condition(3), jnp.asarray([True, False, True])
  np.testing.assert_array_equal(
    conditioning.without_text(cond, rows).text_valid,
    [[False, False], [True, False], [False, False]],
  )
  assert not np.any(conditioning.without_text(cond).text_valid)
  alone = conditioning.without_modality(cond, rows).present
  np.testing.assert_array_equal(alone.video, [False, True, False])
  np.testing.assert_array_equal(alone.audio, [False, False, False])
  assert not np.any(conditioning.without_modality(cond).present.video)


def test_references_are_dropped_and_the_clip_is_not():
  """A share of the rows loses its references, alone; the clip's own tokens stay."""
  rows = 10_000
  place = jnp.zeros((rows, 2, 1))
  seen = jnp.ones((rows, 2), bool)
  reference = Segment(jnp.zeros((rows, 2, 1)), None, place, seen, generated=False)
  clip = Segment(None, None, place, seen)
  cond = dataclasses.replace(_condition(rows), segments=AV(None, (reference, clip)))
  out = conditioning.drop(jax.random.key(1), cond, conditioning.DropConfig(0.0, 0.2, 0.0))
  dropped, kept = out.segments.audio
  gone = ~np.asarray(dropped.valid).any(1)
  assert abs(gone.mean() - 0.2) < 0.015 and out.segments.video is None
  np.testing.assert_array_equal(dropped.valid, np.repeat(~gone[:, None], 2, 1))
  assert kept.valid.all()


def test_what_is_given_whole_is_not_learnt():
  """Audio to video: the sound weighs nothing and the video, which may read it, all."""
  clips = dataclasses.replace(_clips(), clean=AV(np.array([False, False]), np.array([True, False])))
  batch = _encode(clips)
  (video,), (audio,) = batch.weights
  assert not audio[0].any() and audio[1].all()
  np.testing.assert_array_equal(video[:, 0, 0, 0, 0], [1, 0])
  np.testing.assert_array_equal(batch.cond.present.audio, [True, True])
  np.testing.assert_array_equal(batch.clean.audio, [True, False])


def test_keyframes_are_a_segment_of_their_own(relative):
  size = Size(9, 8, 8, 8.0, 0, keyframes=2, keyframe_scale=2)
  random = np.random.default_rng(0)
  draw = lambda *shape: random.integers(0, 256, (*shape, 3), np.uint8)
  high = draw(3, 2, 16, 16)
  clips = Clips(
    draw(3, 9, 8, 8),
    None,
    None,
    np.ones((3, 3, 4), np.float32),
    np.ones((3, 3), bool),
    AV(np.ones(3, bool), np.zeros(3, bool)),
    keyframes=Keyframes(high, np.array([[0, 8], [4, 8], [0, 4]], np.int32)),
  )
  batch = _encode(clips, size)
  low, key = batch.latents.video
  assert low.shape == (3, 3, 2, 2, 12) and key.shape == (3, 2, 4, 4, 12)
  alone = CODECS.video.encode(jnp.asarray(high[1, 1])[None, None])
  assert relative(key[1, 1], alone[0, 0]) < 1e-6
  assert [w.shape for w in batch.weights.video] == [(3, 3, 2, 2, 1), (3, 2, 4, 4, 1)]
  assert len(batch.cond.segments.video) == 2 and batch.latents.audio is None
