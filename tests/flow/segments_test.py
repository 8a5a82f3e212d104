"""sr4/flow/segments.py: what is known, where it lies, and that nothing hidden is told."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sr4.core import sharding
from sr4.core.av import AV
from sr4.core.batch import Clips
from sr4.core.batch import References
from sr4.core.batch import Size
from sr4.flow import conditioning
from sr4.flow import segments
from sr4.models import codec

CODECS = AV(
  codec.build_video({'name': 'dct', 'space_factor': 4, 'channels': 12}),
  codec.build_audio(
    {'name': 'mdct', 'sample_rate': 16000, 'audio_channels': 1, 'hop': 256, 'bands': 64}
  ),
)
PATCH = (1, 2, 2)


@pytest.mark.parametrize(
  'known, latents',
  [
    ([0], [1, 0, 0]),  # image to video
    ([0, 1, 2, 3, 4], [1, 1, 0]),  # extension
    ([0, 1, 2, 3], [1, 0.75, 0]),  # A latent spans four frames; three of them are known.
    ([0, 8], [1, 0, 0.25]),  # start and end frame
    (range(9), [1, 1, 1]),
    ([], [0, 0, 0]),
  ],
)
def test_the_mask_is_the_share_known_under_each_latent(known, latents):
  frames = jnp.isin(jnp.arange(9), jnp.asarray(list(known), jnp.int32))[None, :, None, None]
  share = segments.known_share(frames, (3, 2, 5), 4)
  assert share.shape == (1, 3, 2, 5, 1) and np.ptp(share, (2, 3)).max() == 0
  np.testing.assert_array_equal(share[0, :, 0, 0, 0], latents)


def test_the_mask_of_a_region():
  known = np.ones((1, 5, 8, 12), bool)
  known[:, 2:, :4, 6:] = False  # From frame 2 on: 3 of the 4 frames of latent 1.
  share = np.asarray(segments.known_share(jnp.asarray(known), (2, 2, 3), 4))[0, ..., 0]
  np.testing.assert_array_equal(share[0], 1)
  np.testing.assert_array_equal(share[1], [[1, 1 - 0.75 / 2, 0.25], [1, 1, 1]])


def test_a_region_is_shown_around_and_not_within(relative):
  """I keeps the clip's latents where all is known, and no change of hidden pixels is seen in it."""
  random = np.random.default_rng(0)
  frames = random.uniform(-1, 1, (2, 5, 8, 16, 3)).astype(np.float32)
  known = np.ones((2, 5, 8, 16), bool)
  known[:, :, 2:8, 4:14] = False
  show = lambda x: map(
    np.asarray, segments.reveal(CODECS.video, jnp.asarray(x), jnp.asarray(known))
  )
  latent, mask = show(frames)
  hidden = np.where(known[..., None], frames, random.uniform(-1, 1, frames.shape)).astype('f4')
  again, _ = show(hidden)
  np.testing.assert_array_equal(latent, again)
  assert np.any(CODECS.video.encode(hidden) != CODECS.video.encode(frames))
  whole, none = mask[..., 0] == 1, mask[..., 0] == 0
  assert whole.any() and none.any() and not (whole | none).all()
  assert relative(latent[whole], np.asarray(CODECS.video.encode(frames))[whole]) < 1e-6
  black = np.broadcast_to(CODECS.video.black(5, 8, 16), latent.shape)
  np.testing.assert_array_equal(latent[none], black[none])


def test_a_codec_reads_bytes_as_the_pixels_that_they_are(relative):
  frames = jnp.arange(256, dtype=jnp.uint8)
  x = frames / 127.5 - 1
  np.testing.assert_array_equal(segments.to_uint8(x), frames)
  clip = jnp.resize(frames, (1, 5, 8, 16, 3))
  known = jnp.arange(5)[None, :, None, None] < 3
  for given in (clip, clip / 127.5 - 1):
    latent, _ = segments.reveal(CODECS.video, given, known)
    hidden = CODECS.video.encode(jnp.where(known[..., None], clip / 127.5 - 1, segments.BLACK))
    assert relative(latent, hidden) < 1e-6
  np.testing.assert_array_equal(segments.to_uint8(jnp.asarray([-3.0, 3.0])), [0, 255])


@jax.tree_util.register_static
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
  known = np.isin(np.arange(9), [0, 5, 6, 7, 8])[None, :, None, None]
  frames = np.random.default_rng(0).uniform(-1, 1, (1, 9, 4, 4, 3)).astype(np.float32)
  hidden = np.where(known[..., None], frames, np.float32(0.7))
  size = Size(9, 4, 4, 8.0, 0)
  run = lambda frames: np.asarray(
    segments.video(Cumulative(), size, PATCH, 1, jnp.asarray(frames), jnp.asarray(known)).known
  )
  np.testing.assert_array_equal(run(frames), run(hidden))
  assert np.any(run(frames) != run(-frames))


def test_a_causal_prefix_is_the_clips_own():
  """The latents of a known beginning are those of the whole clip, in a codec that remembers."""
  frames = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (1, 9, 4, 4, 3)), jnp.float32)
  known = (jnp.arange(9) < 5)[None, :, None, None]
  latent, mask = segments.reveal(Cumulative(), frames, known)
  np.testing.assert_allclose(latent[:, :2], Cumulative().encode(frames)[:, :2], rtol=1e-6)
  np.testing.assert_array_equal(mask[0, :, 0, 0, 0], [1, 1, 0])
  np.testing.assert_array_equal(latent[0, 2], Cumulative().black(9, 4, 4)[2])


def test_positions_of_patches_that_span_latents():
  paired = np.asarray(segments.video_positions((4, 2, 2), (2, 1, 1), 0.25))
  np.testing.assert_array_equal(np.unique(paired[:, 0]), [0, 0.5])


def test_a_keyframe_lies_on_the_patches_that_it_refines():
  """Its time is its frame's, and the mean place of the patches over a low one is that one's."""
  size = Size(9, 16, 24, 8.0, 0, keyframes=2, keyframe_scale=2)
  at = jnp.array([[0, 8], [4, 8]])
  clip = segments.video(CODECS.video, size, PATCH, 2)
  key = segments.keyframes(CODECS.video, size, PATCH, at)
  low = np.asarray(clip.positions).reshape(2, 3, 2, 3, 3)
  high = np.asarray(key.positions).reshape(2, 2, 4, 6, 3)
  blocks = high.reshape(2, 2, 2, 2, 3, 2, 3).mean((3, 5))
  for row in range(2):
    for k in range(2):
      np.testing.assert_allclose(blocks[row, k], low[row, int(at[row, k]) // 4], atol=1e-6)
  assert len(np.unique(high[0].reshape(-1, 3), axis=0)) == 2 * 4 * 6  # No two alike.
  assert key.generated and not key.mask.any() and key.known.shape == (2, 2, 8, 12, 12)


def test_a_known_keyframe_is_shown(relative):
  size = Size(5, 8, 8, 8.0, 0, keyframes=2, keyframe_scale=2)
  frames = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (1, 2, 16, 16, 3)), jnp.float32)
  known = (jnp.arange(5) == 0)[None, :, None, None]
  key = segments.keyframes(CODECS.video, size, PATCH, jnp.array([[0, 4]]), frames, known)
  np.testing.assert_array_equal(key.mask[0, :, 0, 0, 0], [1, 0])
  assert relative(key.known[0, 0], CODECS.video.encode(frames[:, :1])[0, 0]) < 1e-6
  np.testing.assert_array_equal(key.known[0, 1], CODECS.video.black(1, 16, 16)[0])


def test_keyframes_that_nobody_chose_end_latents():
  size = Size(17, 8, 8, 8.0, 0, keyframes=3)
  assert segments.keyframes_at(size, 4) == (0, 8, 16)
  assert segments.keyframes_at(Size(17, 8, 8, 8.0, 0, keyframes=1), 4) == (0,)


def test_references_fill_their_slots_and_the_rest_is_seen_by_no_one(relative):
  size = Size(
    9, 8, 16, 8.0, 8000, 0, 1, reference_images=2, reference_frames=5, reference_samples=1024
  )
  random = np.random.default_rng(0)
  given = References(
    random.integers(0, 256, (2, 2, 8, 16, 3), np.uint8),
    np.array([[True, True], [True, False]]),
    random.integers(0, 256, (2, 5, 8, 16, 3), np.uint8),
    np.array([[True] * 5, [False] * 5]),
    random.uniform(-1, 1, (2, 1024, 1)).astype(np.float32),
    np.arange(1024) < np.array([[1024], [300]]),
  )
  clips = Clips(None, None, None, None, None, None, references=given)
  alone = dataclasses.replace(size, frames=0, samples=0)
  coded = conditioning.coded(CODECS, alone, clips)
  (video,), (audio,) = segments.references(CODECS, size, PATCH, given, coded)
  assert video.known.shape == (2, 4, 2, 4, 12) and not video.generated
  one = CODECS.video.encode(given.images[0, 1][None, None] / np.float32(127.5) - 1)
  assert relative(video.known[0, 1], one[0, 0]) < 1e-6
  clip = CODECS.video.encode(given.frames[:1] / np.float32(127.5) - 1)
  assert relative(video.known[0, 2:], clip[0]) < 1e-6
  np.testing.assert_array_equal(video.valid[0], True)
  np.testing.assert_array_equal(video.valid[1], np.repeat([True, False, False, False], 2))
  seconds = np.where(video.valid, video.positions[..., 0], 0)
  np.testing.assert_allclose(seconds[0], np.repeat([-2, -1.5, -1, -0.5], 2))
  np.testing.assert_allclose(seconds[1], np.repeat([-0.5, 0, 0, 0], 2))  # As if it had one slot.
  assert audio.known.shape == (2, 4, 64) and not audio.generated
  np.testing.assert_array_equal(audio.valid, [[True] * 4, [True, True, False, False]])
  seconds = np.where(audio.valid, audio.positions[..., 0], 0) * CODECS.audio.rate
  np.testing.assert_allclose(seconds, [[-4, -3, -2, -1], [-2, -1, 0, 0]], rtol=1e-6)


def test_a_latent_of_a_reference_is_there_if_its_frames_are():
  """Of one row, and with one latent after the first, whose places are the mesh's as any others."""
  for count, there in ((5, [1, 1]), (4, [1, 0]), (1, [1, 0]), (0, [0, 0])):
    frames = sharding.rows(np.arange(5)[None] < count)
    found = jax.jit(lambda x: segments.latents_of(x, 4))(frames)
    np.testing.assert_array_equal(found, [there])


def test_references_come_before_the_clip_in_time_and_keep_their_places():
  latents = jnp.arange(2.0 * 3 * 4 * 6 * 5).reshape(2, 3, 4, 6, 5)
  valid = jnp.array([[True, True, True], [True, False, False]])
  segment = segments.video_reference(latents, (1, 2, 2), 0.25, valid)
  assert not segment.generated and segment.positions.shape == (2, 3 * 2 * 3, 3)
  seconds = np.asarray(segment.positions[..., 0]).reshape(2, 3, 6)
  np.testing.assert_allclose(seconds[0], np.repeat([[-0.75], [-0.5], [-0.25]], 6, 1))
  np.testing.assert_allclose(seconds[1, 0], -0.25)
  clip = segments.video_positions((3, 4, 6), (1, 2, 2), 0.25)
  np.testing.assert_array_equal(segment.positions[0, :, 1:], clip[:, 1:])
  np.testing.assert_array_equal(segment.valid[1], [True] * 6 + [False] * 12)
  assert segment.mask.min() == 1 and segment.known is latents


def test_reference_sounds_end_where_the_clip_begins():
  segment = segments.audio_reference(jnp.zeros((1, 4, 8)), 2.0, jnp.ones((1, 4), bool))
  np.testing.assert_allclose(segment.positions[0, :, 0], [-2.0, -1.5, -1.0, -0.5])
  assert not segment.generated and segment.mask is None
