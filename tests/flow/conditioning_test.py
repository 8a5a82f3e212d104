"""sr4/flow/conditioning.py: known frames, positions, and conditions taken away."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sr4.core.av import AV
from sr4.core.batch import Clips
from sr4.core.batch import Condition
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


@pytest.mark.parametrize(
  'known, latents',
  [
    ([0], [1, 0, 0]),  # image to video
    ([0, 1, 2, 3, 4], [1, 1, 0]),  # extension
    ([0, 1, 2, 3], [1, 0, 0]),  # A latent with an unknown frame is not known.
    ([0, 5, 6, 7, 8], [1, 0, 1]),  # start and end
    ([8], [0, 0, 0]),
    (range(9), [1, 1, 1]),
    ([], [0, 0, 0]),
  ],
)
def test_known_latents(known, latents):
  frames = jnp.isin(jnp.arange(9), jnp.asarray(list(known), jnp.int32))[None]
  np.testing.assert_array_equal(conditioning.known_latents(frames, 4)[0], np.array(latents, bool))


def test_pixels_round_trip():
  frames = jnp.arange(256, dtype=jnp.uint8)
  x = conditioning.pixels(frames)
  assert x[0] == -1 and x[-1] == 1
  np.testing.assert_array_equal(conditioning.to_uint8(x), frames)
  np.testing.assert_array_equal(conditioning.to_uint8(jnp.asarray([-3.0, 3.0])), [0, 255])


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
  known = np.zeros((2, 9), bool)
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
  hidden[~known] = 255 - hidden[~known]
  other = _encode(
    Clips(
      hidden, *[getattr(clips, f) for f in ('samples', 'known', 'text', 'text_valid', 'present')]
    )
  )
  np.testing.assert_array_equal(other.cond.segments.video[0].known, segment.known)
  assert np.any(other.latents.video[0] != latents)


class Cumulative:
  """A causal codec whose latents hold all that went before, as a VAE's may."""

  time_factor = 4

  def encode(self, frames):
    groups = jnp.mean(frames[:, 1:].reshape(len(frames), -1, 4, *frames.shape[2:]), 2)
    return jnp.cumsum(jnp.concatenate([frames[:, :1], groups], 1), 1)

  def black(self, frames, height, width):
    return self.encode(jnp.full((1, frames, height, width, 3), -1.0))[0]


def test_a_known_end_does_not_tell_what_comes_before_it():
  """The last latent of a start-and-end clip is of black and the end, not of the hidden middle."""
  known = np.isin(np.arange(9), [0, 5, 6, 7, 8])[None]
  frames = np.random.default_rng(0).uniform(-1, 1, (1, 9, 4, 4, 3)).astype(np.float32)
  hidden = np.where(known[:, :, None, None, None], frames, np.float32(0.7))
  size = Size(9, 4, 4, 8.0, 0)
  run = lambda frames: np.asarray(
    conditioning.video_segment(
      Cumulative(), size, PATCH, 1, jnp.asarray(frames), jnp.asarray(known)
    ).known
  )
  np.testing.assert_array_equal(run(frames), run(hidden))
  assert np.any(run(frames) != run(-frames))


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
  paired = np.asarray(conditioning.video_positions((4, 2, 2), (2, 1, 1), 0.25))
  np.testing.assert_array_equal(np.unique(paired[:, 0]), [0, 0.5])


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
  out = conditioning.drop(jax.random.key(5), cond, conditioning.DropConfig(text=0.1, modality=0.3))
  no_text = ~np.asarray(out.text_valid).any(1)
  alone = ~np.asarray(out.present.video)
  assert abs(no_text.mean() - 0.1) < 0.01 and abs(alone.mean() - 0.3) < 0.015
  assert abs((no_text & alone).mean() - 0.03) < 0.006  # Each is drawn on its own.
  np.testing.assert_array_equal(out.present.audio, ~alone & np.asarray(cond.present.audio))
  np.testing.assert_array_equal(out.text_valid, np.asarray(cond.text_valid) & ~no_text[:, None])
  np.testing.assert_array_equal(out.text, cond.text)


def test_drop_of_nothing_and_of_all():
  cond = _condition(64)
  same = conditioning.drop(jax.random.key(5), cond, conditioning.DropConfig(0.0, 0.0))
  jax.tree.map(np.testing.assert_array_equal, same, cond)
  none = conditioning.drop(jax.random.key(5), cond, conditioning.DropConfig(1.0, 1.0))
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


def test_references_come_before_the_clip_in_time_and_keep_their_places():
  latents = jnp.arange(2.0 * 3 * 4 * 6 * 5).reshape(2, 3, 4, 6, 5)
  valid = jnp.array([[True, True, True], [True, False, False]])
  segment = conditioning.video_reference(latents, (1, 2, 2), 0.25, valid)
  assert not segment.generated and segment.positions.shape == (2, 3 * 2 * 3, 3)
  seconds = np.asarray(segment.positions[0, :, 0]).reshape(3, 6)
  np.testing.assert_allclose(seconds, np.repeat([[-0.75], [-0.5], [-0.25]], 6, 1))
  clip = conditioning.video_positions((3, 4, 6), (1, 2, 2), 0.25)
  np.testing.assert_array_equal(segment.positions[0, :, 1:], clip[:, 1:])
  np.testing.assert_array_equal(segment.valid[1], [True] * 6 + [False] * 12)
  assert segment.mask.min() == 1 and segment.known is latents


def test_reference_sounds_end_where_the_clip_begins():
  segment = conditioning.audio_reference(jnp.zeros((1, 4, 8)), 2.0, jnp.ones((1, 4), bool))
  np.testing.assert_allclose(segment.positions[0, :, 0], [-2.0, -1.5, -1.0, -0.5])
  assert not segment.generated and segment.mask is None
