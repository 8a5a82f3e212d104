"""sr4/models/mmdit.py by shapes alone: how many parameters, what a config may say, rotary time."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sr4.core import tree
from sr4.core.av import AV
from sr4.models import mmdit


def _abstract(config) -> mmdit.MMDiT:
  return jax.eval_shape(lambda: mmdit.MMDiT(config, rngs=nnx.Rngs(0)))


# Sizes.


def _count(c: mmdit.Config) -> tuple[int, int]:
  """(video, total) parameters, from the architecture.

  With width d, head dim k, MLP 4d, each dense layer with a bias:
    stream     qkv 3d(d+1), output d(d+1), MLP 4d(d+1) + d(4d+1), qk norms 2k, table 6d
    cross      q, k, v, output 4d(d+1), qk norms 2k
    branch     a stream (two in a dual layer: tokens, text), audio-video cross with a table 3d,
               and for video text cross with a layer norm 2d
    trunk      embedding of the latents, text e -> d -> d, time 256 -> d -> d, modulation d -> 9d
               and 6d, head modulation d -> 2d with a table 2d, head
  Video tokens hold V, I and M (Eq. 7): patch (2 c + 1) in, patch c out; audio c in, c out.
  """
  d, k, e = c.width, c.head_dim, c.text_width
  dense = lambda i, o: (i + 1) * o
  stream = dense(d, 3 * d) + dense(d, d) + dense(d, 4 * d) + dense(4 * d, d) + 2 * k + 6 * d
  cross = 4 * dense(d, d) + 2 * k

  def layers(text):
    both = cross + 3 * d + text * (cross + 2 * d)
    return c.dual_layers * (2 * stream + both) + c.single_layers * (stream + both)

  def trunk(i, o):
    return (
      dense(i, d)
      + dense(e, d)
      + dense(d, d)
      + dense(256, d)
      + dense(d, d)
      + dense(d, 9 * d)
      + dense(d, 6 * d)
      + dense(d, 2 * d)
      + 2 * d
      + dense(d, o)
    )

  patch = int(np.prod(c.patch))
  video = layers(True) + trunk(patch * (2 * c.video_channels + 1), patch * c.video_channels)
  return video, video + layers(False) + trunk(c.audio_channels, c.audio_channels)


@pytest.mark.parametrize(
  'size, millions',
  [
    ('tiny', (11.78, 21.94)),
    ('small', (1411.25, 2595.61)),
    ('base', (5630.05, 10353.33)),
    ('large', (14835.81, 27254.33)),
    ('small-hd256', None),
    ('base-hd256', None),
    ('large-hd256', None),
  ],
)
def test_parameter_counts(size, millions):
  config = mmdit.Config(**mmdit.SIZES[size])
  assert config.head_dim == (256 if 'hd256' in size else 64 if size == 'tiny' else 128)
  flat = tree.to_flat(_abstract(config))
  video = tree.count([x for name, x in flat.items() if 'audio' not in name.split('.')])
  assert (video, tree.count(flat)) == _count(config)
  if millions:
    assert (round(video / 1e6, 2), round(tree.count(flat) / 1e6, 2)) == millions


def test_debug_is_below_a_million():
  config = mmdit.Config(**mmdit.SIZES['debug'], text_width=64)
  assert tree.count(_abstract(config)) == _count(config)[1] < 1e6


@pytest.mark.parametrize(
  'fields, words',
  [
    (dict(audio_rope_scale='second'), ("audio_rope_scale='second'", 'seconds', 'per_clip')),
    (dict(remat='some'), ("remat='some'", 'none', 'dots', 'full')),
    (dict(width=100, heads=3), ('100', '3', 'head dim')),
    (dict(width=12, heads=4), ('12', '4', 'even')),
    (dict(single_layers=0), ('single_layers=0', '1 or more')),
    (dict(dual_layers=-1), ('dual_layers=-1', '1 or more')),
  ],
)
def test_config_errors(fields, words):
  with pytest.raises(ValueError) as error:
    mmdit.Config(**fields)
  for word in words:
    assert word in str(error.value)


# Time.

CLIPS = {81: (21, 218), 161: (41, 433), 241: (61, 648)}  # frames at 16 fps: latents of each


def _clock(scale, frames) -> tuple[np.ndarray, np.ndarray]:
  """Rotary time of every video and every audio latent of a clip, in latent frames."""
  model = _abstract(mmdit.Config(audio_rope_scale=scale))
  t, l = CLIPS[frames]
  x = AV((jnp.zeros((1, t, 1, 1, 1)),), (jnp.zeros((1, l, 1)),))
  seconds = AV(np.arange(t) / 4, np.arange(l) * 1024 / 44100)
  return tuple(
    np.asarray(mmdit.rotary_time(model.config, i, jnp.asarray(s, jnp.float32)[None, :, None], x))[
      0, :, 0
    ]
    for i, s in enumerate(seconds)
  )


@pytest.mark.parametrize('scale', mmdit.AUDIO_ROPE_SCALES)
@pytest.mark.parametrize('frames', CLIPS)
def test_video_time_is_the_latent_frame(scale, frames):
  np.testing.assert_allclose(_clock(scale, frames)[0], np.arange(CLIPS[frames][0]), atol=1e-5)


def test_paper_is_per_clip_at_five_seconds_only():
  paper, per_clip = (_clock(scale, 81)[1] for scale in ('paper', 'per_clip'))
  assert np.max(np.abs(paper - per_clip)) < 1e-2
  np.testing.assert_allclose(paper, np.arange(218) * 21 / 218, atol=1e-4)
  np.testing.assert_allclose(_clock('per_clip', 241)[1], np.arange(648) * 61 / 648, atol=1e-4)
  np.testing.assert_allclose(_clock('paper', 241)[1], np.arange(648) * 21 / 218, atol=1e-4)


def _misfit(scale, frames) -> np.ndarray:
  """Seconds by which each audio latent lies ahead of the pictures it sounds with.

  Both at the middle of what they hold: audio latent l the samples from l to l + 1, video latent i
  the frames 4i - 3 ... 4i, mean (4i - 1.5) / 16 seconds.
  """
  l = np.arange(CLIPS[frames][1])
  seen = (16 * (l + 0.5) * 1024 / 44100 + 1.5) / 4
  return (_clock(scale, frames)[1] - seen) / 4


@pytest.mark.parametrize('frames, drift', [(161, 0.27), (241, 0.45)])
def test_paper_drifts_in_long_clips_and_seconds_does_not(frames, drift):
  """SPEC section 2: 0.27 s at 10 s, 0.45 s at 15 s.  Ours keeps one offset from end to end."""
  assert abs(_misfit('paper', frames)[-1] - drift) < 0.005
  assert np.ptp(_misfit('seconds', frames)) < 1e-4
  assert abs(_misfit('per_clip', frames)[-1]) < abs(_misfit('paper', frames)[-1])


def test_sound_alone_in_per_clip_is_in_seconds():
  model = _abstract(mmdit.Config(audio_rope_scale='per_clip'))
  seconds = jnp.asarray([[[0.0], [2.5]]])
  np.testing.assert_array_equal(
    mmdit.rotary_time(model.config, 1, seconds, AV(None, (jnp.zeros((1, 9, 5)),)))[0, :, 0], [0, 10]
  )
