"""sr4/models/codec.py, dct.py, mdct.py: identities, causality by gradient, and what is said of
sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sr4.models import codec
from sr4.models import dct
from sr4.models import mdct
from tests import one_tpu


def _video(**fields):
  return codec.build_video({'name': 'dct', **fields})


def _audio(**fields):
  return codec.build_audio({'name': 'mdct', **fields})


def _frames(*shape, seed=0):
  return np.float32(np.random.default_rng(seed).uniform(-1, 1, (*shape, 3)))


def _samples(*shape, seed=0):
  return np.float32(np.random.default_rng(seed).normal(0, 0.3, shape))


def _relative(x, y):
  return np.linalg.norm(np.asarray(x, np.float64) - y) / np.linalg.norm(y)


# Video.


@pytest.mark.parametrize('frames, t', [(1, 1), (5, 2), (81, 21), (241, 61)])
def test_latent_shape(frames, t):
  assert _video(space_factor=8, channels=16).latent_shape(frames, 480, 832) == (t, 60, 104, 16)
  assert _video(space_factor=4).latent_shape(frames, 32, 64) == (t, 8, 16, 32)


@pytest.mark.parametrize(
  'shape, message',
  [
    ((82, 32, 32), 'frames is 82.*1 \\+ a multiple of 4: 81 or 85'),
    ((0, 32, 32), 'frames is 0.*: 1\\.'),
    ((81, 30, 32), 'height is 30.*multiple of 8: 24 or 32'),
    ((81, 32, 3), 'width is 3.*: 8\\.'),
  ],
)
def test_latent_shape_teaches(shape, message):
  with pytest.raises(ValueError, match=message):
    _video(space_factor=8).latent_shape(*shape)


def test_clips_are_encoded_where_they_lie():
  """Joined or gathered, their frames would be there twice, or as floats: four times."""
  clips = jax.ShapeDtypeStruct((16, 81, 480, 832, 3), jnp.uint8)
  encode = _video(space_factor=8, channels=16).encode
  assert one_tpu.temporaries(encode, clips, chip='v5p') < clips.size / one_tpu.GIB


@pytest.mark.parametrize('s', [1, 2, 4, 8])
def test_video_with_all_coefficients_is_lossless(s):
  video = _video(space_factor=s, channels=12 * s * s)
  x = _frames(2, 9, 16, 8)
  assert _relative(video.decode(video.encode(x)), x) <= 1e-6


def test_video_basis_is_orthonormal():
  """Energy in the unscaled coefficients is energy in the pixels: what is dropped is the error."""
  config = dct.DctConfig(space_factor=4, channels=192)
  analysis, synthesis = (np.float64(x).reshape(192, 192) for x in dct._dct_weights(config))
  basis = np.sign(analysis) * np.sqrt(analysis * synthesis)
  np.testing.assert_allclose(basis.T @ basis, np.eye(192), atol=1e-6)
  # The channels of a shorter codec are the first of a longer one.
  few, _ = dct._dct_weights(dct.DctConfig(space_factor=4, channels=16))
  np.testing.assert_array_equal(few.reshape(192, 16), analysis[:, :16])


def test_video_channels_are_ordered_by_frequency():
  (t, y, x, colour), cost = dct._dct_order(dct.DctConfig(space_factor=8, channels=768))
  assert (np.diff(cost) >= 0).all()
  assert (t[0], y[0], x[0], colour[0]) == (0, 0, 0, 0)
  place = {k: i for i, k in enumerate(zip(t, y, x, colour, strict=True))}
  assert len(place) == 768
  for (*k, c), i in place.items():  # Luma before chroma, and low before high on every axis.
    assert not c or place[*k, 0] < i
    for axis in range(3):
      lower = (*k[:axis], k[axis] - 1, *k[axis + 1 :], c)
      assert k[axis] == 0 or place[lower] < i


def test_video_is_causal_by_gradient():
  video = _video()
  frames = _frames(1, 13, 8, 8)
  jacobian = jax.jacrev(lambda x: jnp.sum(jnp.abs(video.encode(x)), axis=(0, 2, 3, 4)))(
    jnp.asarray(frames)
  )
  seen = np.abs(jacobian).sum(axis=(1, 3, 4, 5)) > 0  # [t, T]
  for i in range(4):
    first = max(0, 4 * i - 3)
    np.testing.assert_array_equal(np.flatnonzero(seen[i]), np.arange(first, 4 * i + 1))


def test_first_frame_is_alone():
  video = _video()
  x = _frames(1, 9, 8, 8)
  np.testing.assert_allclose(video.encode(x)[:, :1], video.encode(x[:, :1]), atol=1e-5)
  # It has nothing in time, and what a model writes there changes nothing.
  (t, *_), _ = dct._dct_order(video.config)
  z = video.encode(x)
  np.testing.assert_allclose(z[:, 0, ..., t > 0], 0, atol=1e-5)  # fp32 sums of 192.
  noisy = z.at[:, 0, ..., t > 0].add(1.0)
  assert video.decode(z).shape == x.shape
  np.testing.assert_allclose(video.decode(noisy), video.decode(z), atol=1e-6)


def test_black():
  video = _video(space_factor=4)
  black = video.black(9, 16, 8)
  assert black.shape == video.latent_shape(9, 16, 8) and black.dtype == jnp.float32
  np.testing.assert_allclose(black, video.encode(np.full((1, 9, 16, 8, 3), -1.0))[0], atol=1e-5)
  np.testing.assert_allclose(video.decode(black[None]), -1, atol=1e-5)
  np.testing.assert_allclose(
    black, video.encode(np.zeros((1, 9, 16, 8, 3), np.uint8))[0], atol=1e-5
  )


def test_video_bytes_and_range():
  video = _video()
  pixels = np.random.default_rng(0).integers(0, 256, (1, 5, 8, 8, 3), np.uint8)
  np.testing.assert_allclose(video.encode(pixels), video.encode(pixels / 127.5 - 1.0), atol=1e-5)
  out = video.decode(100 * video.encode(pixels))
  assert out.dtype == jnp.float32 and out.min() == -1 and out.max() == 1


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'space_factor': 3}, 'space_factor is 3'),
    ({'channels': 193}, '1 to 192'),
  ],
)
def test_video_config_teaches(fields, message):
  with pytest.raises(ValueError, match=message):
    _video(**fields)


# Audio.


@pytest.mark.parametrize('ears', [1, 2])
@pytest.mark.parametrize('n', [1, 31, 64, 997, 1024])
def test_audio_with_all_bands_is_lossless(n, ears):
  audio = _audio(hop=64, bands=64, audio_channels=ears)
  x = _samples(2, n, ears)
  assert audio.encode(x).shape == (2, audio.latent_length(n), 64 * ears)
  assert _relative(audio.decode(audio.encode(x), samples=n), x) <= 1e-6


def test_audio_default_and_44k():
  audio = _audio()
  assert (audio.channels, audio.rate, audio.latent_length(81_000)) == (128, 62.5, 317)
  assert [audio.latent_length(n) for n in (1, 256, 257, 512)] == [1, 1, 2, 2]
  mono = _audio(sample_rate=44_100, audio_channels=1, hop=1024, bands=128)
  assert (mono.channels, mono.rate) == (128, 44_100 / 1024)
  tone = np.float32(0.5 * np.sin(2 * np.pi * 440 / 44_100 * np.arange(44_100)))[None, :, None]
  assert _relative(mono.decode(mono.encode(tone), samples=44_100), tone) < 0.01


def test_lap_and_bands_are_orthonormal():
  x = _samples(2, 5, 64, 2)
  lapped = mdct._lap(x, +1)
  np.testing.assert_allclose(np.sum(lapped**2), np.sum(x**2), rtol=1e-5)
  np.testing.assert_allclose(mdct._lap(lapped, -1), x, atol=1e-6)
  analysis, synthesis, _ = mdct._mdct_weights(mdct.MdctConfig(hop=64, bands=64))
  np.testing.assert_allclose(analysis.T @ synthesis, np.eye(64), atol=1e-6)
  np.testing.assert_allclose(analysis * 32, synthesis, atol=1e-6)
  np.testing.assert_allclose(mdct._mid_side(mdct._mid_side(x)), x, atol=1e-6)
  np.testing.assert_allclose(np.sum(mdct._mid_side(x) ** 2), np.sum(x**2), rtol=1e-5)


def test_bands_are_the_mdct():
  """Folded and transformed = the sum over 2 hops, windowed, of the textbook."""
  hop, k = 16, np.arange(16)
  x = _samples(1, 3 * hop, 1)
  analysis, _, _ = mdct._mdct_weights(mdct.MdctConfig(hop=hop, bands=hop, audio_channels=1))
  got = mdct._lap(x.reshape(1, 3, hop, 1), +1)[0, 1, :, 0] @ analysis
  i = np.arange(2 * hop)[:, None]  # From half a hop before the middle block.
  window = np.sin(np.pi / (2 * hop) * (i + 0.5))
  wave = np.cos(np.pi / hop * (i + 0.5 - hop / 2) * (k + 0.5))
  want = x[0, hop // 2 : hop // 2 + 2 * hop, 0] @ (window * wave) * 2 / hop
  np.testing.assert_allclose(got, want, atol=1e-6)


def test_audio_looks_half_a_hop_ahead():
  audio = _audio(hop=16, bands=8, audio_channels=1)
  jacobian = jax.jacrev(lambda x: jnp.sum(audio.encode(x), axis=(0, 2)))(_samples(1, 64, 1))
  seen = np.abs(jacobian[:, 0, :, 0]) > 0  # [l, n]
  for i in range(4):
    assert np.flatnonzero(seen[i]).min() == max(0, 16 * i - 8)
    assert np.flatnonzero(seen[i]).max() == min(63, 16 * i + 16 + 8 - 1)


def test_companding():
  x = np.float32(np.concatenate([-np.geomspace(1, 1e-7, 50), [0], np.geomspace(1e-7, 4, 50)]))
  y = mdct._compand(x, 1e-3)
  np.testing.assert_allclose(mdct._expand(y, 1e-3), x, rtol=2e-6, atol=0)
  assert (np.diff(y) > 0).all()
  np.testing.assert_allclose(mdct._compand(np.float32(0.25), 1e-3), 0.5, rtol=1e-4)
  slope = jax.grad(mdct._compand)(0.0, 1e-3)
  np.testing.assert_allclose(slope, 1e-3**-0.5, rtol=1e-5)
  np.testing.assert_allclose(slope * jax.grad(mdct._expand)(0.0, 1e-3), 1, rtol=1e-5)


def test_silence_is_zero_with_finite_gradients():
  audio = _audio(hop=32, bands=16)
  silence = jnp.zeros((1, 100, 2))
  np.testing.assert_array_equal(audio.encode(silence), 0)
  round_trip = lambda x: jnp.sum(audio.decode(audio.encode(x), samples=100) * _samples(1, 100, 2))
  gradient = jax.grad(round_trip)(silence)
  assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


@pytest.mark.parametrize(
  'call, message',
  [
    (lambda: _audio(hop=7), 'hop is 7.*even'),
    (lambda: _audio(bands=300), '1 to 256'),
    (lambda: _audio(audio_channels=6), 'audio_channels is 6'),
    (lambda: _audio(floor=0.0), 'floor is 0.0'),
    (lambda: _audio().latent_length(0), 'at least 1'),
    (lambda: _audio().encode(jnp.zeros((1, 300, 1))), r'\[b n 2\]'),
    (lambda: _audio().decode(jnp.zeros((1, 3, 64))), r'\[b l 128\]'),
    (lambda: _audio().decode(jnp.zeros((1, 3, 128)), samples=512), '513 to 768'),
    (lambda: _video().encode(jnp.zeros((5, 8, 8, 3))), r'\[b T H W 3\]'),
    (lambda: _video().encode(jnp.zeros((1, 6, 8, 8, 3))), 'frames is 6.*: 5 or 9'),
    (lambda: _video().decode(jnp.zeros((1, 2, 2, 2, 16))), r'\[b t h w 32\]'),
    (lambda: codec.build_video({'name': 'wam'}), "name='wam' is not among dct, wan2.1, wan2.2"),
    (lambda: codec.build_audio({}), 'name=None is not among mdct, mmaudio'),
    (lambda: _video(chanels=3), "has no 'chanels'; did you mean 'channels'"),
  ],
)
def test_errors_teach(call, message):
  with pytest.raises(ValueError, match=message):
    call()


# Both.


@pytest.mark.parametrize(
  'make, data',
  [
    (lambda: _video(), _frames(3, 2, 5, 8, 8)),
    (lambda: _audio(hop=32, bands=16), _samples(3, 2, 100, 2)),
  ],
)
def test_jit_and_vmap(make, data):
  """A codec passes through jit as an argument, equal codecs share what was compiled."""
  there_and_back = jax.jit(lambda c, x: c.decode(c.encode(x)))
  plain = make().decode(make().encode(data[0]))
  np.testing.assert_allclose(there_and_back(make(), data[0]), plain, atol=1e-5)
  there_and_back(make(), data[0])
  assert there_and_back._cache_size() == 1
  each = jax.vmap(lambda x: make().decode(make().encode(x)))(data)
  np.testing.assert_allclose(each[0], plain, atol=1e-5)


def test_layout_of_the_batch_survives():
  """Under an Explicit mesh latents keep the batch's layout."""
  with jax.set_mesh(jax.make_mesh((jax.device_count(),), ('data',))):
    rows = jax.P('data')
    for c, x in ((_video(), _frames(8, 5, 8, 8)), (_audio(hop=32, bands=16), _samples(8, 96, 2))):
      z = jax.jit(c.encode)(jax.device_put(x, rows))
      assert jax.typeof(z).sharding.spec[0] == 'data'
      back = jax.jit(c.decode)(z)
      assert jax.typeof(back).sharding.spec[0] == 'data' and back.shape == x.shape
