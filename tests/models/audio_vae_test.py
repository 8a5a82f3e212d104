"""sr4/models/audio_vae.py, vocoder.py and mel.py against diffusers' and librosa's."""

import diffusers
from flax import nnx
import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
import torch

from sr4.convert import mmaudio
from sr4.convert import rules
from sr4.core import tree
from sr4.models import audio_vae
from sr4.models import mel
from sr4.models import vocoder
from tests.models import reference

TINY_VOCODER = dict(width=64, rates=(8, 8, 4, 2))
TINY = dict(width=16, channels=8, vocoder=vocoder.Config(**TINY_VOCODER))


channels = reference.channels_last


def theirs(c: audio_vae.Config):
  fields, voice = mmaudio.pages(c)
  vae, sound = diffusers.MMAudioVAE(**fields), diffusers.MMAudioVocoder(**voice)
  torch.manual_seed(1)
  vae.vae.data_mean.copy_(torch.randn_like(vae.vae.data_mean) - 4)
  vae.vae.data_std.copy_(torch.rand_like(vae.vae.data_std) + 1)
  with torch.no_grad():  # A layer of a released file keeps the mean square.
    for x in vae.vae.parameters():
      if x.ndim:
        x.copy_(torch.randn_like(x) * x[0].numel() ** -0.5)
  return reference.randomized(vae), reference.randomized(sound)


def shapes(**fields) -> audio_vae.AudioVAE:
  config = audio_vae.Config(**fields)
  return tree.abstract(lambda: audio_vae.AudioVAE(config, rngs=nnx.Rngs(0)))


def pair(**fields):
  like = shapes(**fields)
  refs = theirs(like.config)
  return load(like, *refs), *refs


def load(model, vae, sound):
  """As sr4/models/codec.py does from files."""
  c, flat = model.config, tree.to_flat(model)
  own = {name: x for name, x in flat.items() if not name.startswith('vocoder.')}
  own = rules.load(own, mmaudio.vae(c), reference.State(vae), mmaudio.UNUSED)
  voice = rules.load(
    model.vocoder, mmaudio.bigvgan(c.vocoder), reference.State(sound), mmaudio.UNUSED
  )
  voice = {f'vocoder.{name}': x for name, x in tree.to_flat(voice).items()}
  return tree.from_flat(model, own | voice)


def sound_of(rows, samples, seed=0):
  random = np.random.default_rng(seed)
  t = np.arange(samples) / 44_100
  tones = sum(np.sin(2 * np.pi * f * t + p) for f, p in zip((220, 1370, 9000), random.random(3)))
  return np.float32(0.2 * tones + 0.05 * random.standard_normal((rows, samples)))


@pytest.mark.parametrize('rate, bands', [(44_100, 128), (16_000, 80)])
def test_filters_are_librosas(rate, bands):
  wanted = librosa.filters.mel(sr=rate, n_fft=2048, n_mels=bands, dtype=np.float64)
  np.testing.assert_allclose(mel.filters(rate, bands), wanted, atol=1e-9)


@pytest.mark.parametrize('samples', [2048, 5000, 44_100])
def test_mel_is_the_reference(samples, relative):
  x = sound_of(2, samples)
  front = diffusers.MMAudioVAE(hidden_channels=8).mel_converter
  wanted = reference.channels_last(front(torch.from_numpy(x)))
  found = jax.jit(mel.spectrum, static_argnums=(1, 2))(x, 44_100, 128)
  assert found.shape == (2, samples // 512, 128) and relative(found, wanted) < 1e-5


posterior = jax.jit(lambda model, x: model.posterior(x))
decode = jax.jit(lambda model, z: model.decode(z))


@pytest.mark.parametrize('samples', [2048, 512 * 37 + 5])
def test_is_the_reference(samples, relative):
  """An even and an odd number of spectra."""
  model, vae, sound = pair(**TINY)
  x = sound_of(2, samples)
  with torch.no_grad():
    wanted = vae.encode(torch.from_numpy(x)).latent_dist
    mean, log_variance = posterior(model, x[..., None])
    assert mean.shape == (2, model.latent_length(samples), 8)
    assert relative(mean, reference.channels_last(wanted.mean)) < 1e-5
    assert relative(log_variance, reference.channels_last(wanted.logvar)) < 1e-5
    spectra = vae.decode(wanted.mean).sample
    assert relative(jax.jit(lambda m, z: m.mel(z))(model, mean), channels(spectra)) < 1e-5
    assert relative(decode(model, mean), channels(sound(spectra).sample)) < 1e-5


def test_the_full_size_is_the_reference(relative):
  model, vae, sound = pair()
  count = lambda module: sum(x.numel() for x in module.parameters())
  assert tree.count(model.vocoder) == count(sound) == pytest.approx(122.2e6, rel=1e-3)
  own = tree.count(model) - tree.count(model.vocoder) - 2 * model.config.bands  # Not mean and std.
  assert own == count(vae) == pytest.approx(305.5e6, rel=1e-3)
  x = sound_of(1, 512 * 5)
  with torch.no_grad():
    wanted = vae.encode(torch.from_numpy(x)).latent_dist.mean
    mean, _ = posterior(model, x[..., None])
    assert relative(mean, channels(wanted)) < 1e-5
    assert relative(decode(model, mean), channels(sound(vae.decode(wanted).sample).sample)) < 1e-5


def test_the_clip_of_the_paper():
  """81 frames at 16 fps are 223,256 samples and 218 latents (SPEC: 43.066 Hz)."""
  model = shapes()
  assert model.latent_length(223_256) == 218 and model.rate == pytest.approx(43.066, abs=1e-3)
  tiny = reference.drawn(shapes(**TINY))
  z = jax.jit(lambda m, x: m.encode(x))(tiny, sound_of(1, 223_256)[..., None])
  assert z.shape == (1, 218, 8)
  shape = jax.eval_shape(lambda z: tiny.decode(z, samples=223_256), z).shape
  assert shape == (1, 223_256, 1)


@pytest.mark.parametrize(
  'call, told',
  [
    (lambda m: m.encode(jnp.zeros((1, 4096, 2))), 'of one channel'),
    (lambda m: m.encode(jnp.zeros((1, 1000, 1))), '1000 samples are less than the 1024'),
    (lambda m: m.decode(jnp.zeros((1, 4, 5))), r'must be \[b l 8\]'),
  ],
)
def test_wrong_input(call, told):
  with pytest.raises(ValueError, match=told):
    call(reference.drawn(shapes(**TINY)))


@pytest.mark.parametrize(
  'make, told',
  [
    (lambda: audio_vae.Config(bands=80), '512 samples of 128 bands; this VAE has 512 of 80'),
    (lambda: audio_vae.Config(multiples=(1, 0)), 'two levels or more, each at least 1'),
    (lambda: audio_vae.Config(scale=0), 'scale=0 must be above 0'),
    (lambda: vocoder.Config(rates=(8, -8, -8)), r'rates=\(8, -8, -8\) must be .* at least 2'),
    (lambda: vocoder.Config(width=100), 'width=100 cannot be halved 6 times'),
  ],
)
def test_wrong_config(make, told):
  with pytest.raises(ValueError, match=told):
    make()
