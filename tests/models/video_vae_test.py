"""sr4/models/video_vae.py against diffusers' class, and itself in parts, in tiles and on meshes."""

import functools
import subprocess
import sys

import diffusers
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from sr4.convert import rules
from sr4.convert import wan
from sr4.core import sharding
from sr4.core import tree
from sr4.core.av import AV
from sr4.core.batch import Size
from sr4.flow import segments
from sr4.models import codec
from sr4.models import system as system_lib
from sr4.models import video_vae
from tests.models import reference as reference_lib

TINY = dict(channels=4, width=8, mean=(0.1, -0.2, 0.3, 0.0), std=(1.0, 2.0, 0.5, 1.5))
WAN22 = TINY | dict(decoder_width=16, patch=2, shortcuts=True)


def shapes(fields: dict, dtype='float32', **changes) -> video_vae.VideoVAE:
  config = video_vae.Config(**(fields | dict(dtype=dtype) | changes))
  return tree.abstract(lambda: video_vae.VideoVAE(config, rngs=nnx.Rngs(0)))


def ours(fields: dict, dtype='float32', **changes) -> video_vae.VideoVAE:
  return reference_lib.drawn(shapes(fields, dtype, **changes))


def theirs(c: video_vae.Config) -> diffusers.AutoencoderKLWan:
  """The reference of a config, with random weights."""
  model = diffusers.AutoencoderKLWan(**wan.page(c))
  return reference_lib.randomized(model)


def pair(fields: dict, **changes):
  like = shapes(fields, **changes)
  reference = theirs(like.config)
  return rules.load(like, wan.diffusers(like.config), reference_lib.State(reference)), reference


def frames_of(*shape, seed=0):
  return np.float32(np.random.default_rng(seed).uniform(-1, 1, (*shape, 3)))


first, last = reference_lib.channels_first, reference_lib.channels_last
encode = jax.jit(lambda model, x: model.encode(x))
posterior = jax.jit(lambda model, x: model.posterior(x))
decode = jax.jit(lambda model, z: model.decode(z))


@pytest.mark.parametrize('fields', [TINY, WAN22], ids=['wan2.1', 'wan2.2'])
@pytest.mark.parametrize('size', [(1, 32, 48), (5, 48, 32), (13, 32, 32)])
def test_is_the_reference(fields, size, relative):
  """One frame, few frames, several parts; sides that are no power of two."""
  model, reference = pair(fields)
  x = frames_of(2, *size)
  with torch.no_grad():
    wanted = reference.encode(first(x)).latent_dist
    mean, log_variance = posterior(model, x)
    assert relative(mean, last(wanted.mean)) < 1e-5
    assert relative(log_variance, last(wanted.logvar)) < 1e-5
    z = np.float32(np.random.default_rng(1).standard_normal(mean.shape))
    scaled = z * np.float32(model.config.std) + np.float32(model.config.mean)
    assert relative(decode(model, z), last(reference.decode(first(scaled)).sample)) < 1e-5


def test_the_full_size_is_the_reference(relative):
  model, reference = pair({})
  assert tree.count(model) == 126_892_531 == sum(x.numel() for x in reference.parameters())
  x = frames_of(1, 5, 24, 40)
  with torch.no_grad():
    wanted = reference.encode(first(x)).latent_dist.mean
    mean, _ = posterior(model, x)
    assert relative(mean, last(wanted)) < 1e-5
    made = last(reference.decode(wanted).sample)
  c = model.config
  z = (mean - np.float32(c.mean)) / np.float32(c.std)
  assert relative(decode(model, z), made) < 1e-5


def test_in_bfloat16_it_is_as_near_as_the_reference(relative):
  model, reference = pair(TINY)
  x = frames_of(1, 9, 32, 32)
  half, z = shapes(TINY, 'bfloat16'), encode(model, x)
  half = tree.from_flat(half, tree.to_flat(model))
  scaled = first(z * np.float32(model.config.std) + np.float32(model.config.mean))
  with torch.no_grad():
    exact = last(reference.encode(first(x)).latent_dist.mean), last(reference.decode(scaled).sample)
    reference.bfloat16()
    theirs = (
      last(reference.encode(first(x).bfloat16()).latent_dist.mean),
      last(reference.decode(scaled.bfloat16()).sample),
    )
  mine = posterior(half, x)[0], decode(half, z)
  for a, b, wanted in zip(mine, theirs, exact):
    assert relative(a, wanted) < 1.25 * relative(b, wanted)


@pytest.mark.parametrize('fields', [TINY, WAN22], ids=['wan2.1', 'wan2.2'])
def test_parts_are_one_pass(fields, relative):
  """Against all at once; in fp64, so that it is no matter of sums."""
  with jax.enable_x64(True):
    x = frames_of(1, 17, 16, 16)
    whole = ours(fields, 'float64', chunk=100)
    z = encode(whole, x)
    y = decode(whole, z)
    for chunk in (1, 3):  # 3 does not divide the 4 after the first: it is as 2.
      parts = tree.from_flat(shapes(fields, 'float64', chunk=chunk), tree.to_flat(whole))
      assert relative(encode(parts, x), z) < 1e-6
      assert relative(decode(parts, z), y) < 1e-6
    # 2 latents of the 3 after the first would be 8 of 12 frames, and 6 are no latents.
    parts = tree.from_flat(shapes(fields, 'float64', chunk=2), tree.to_flat(whole))
    assert relative(encode(parts, x[:, :13]), z[:, :4]) < 1e-6


def test_is_causal_by_gradient():
  """No latent depends on a later frame, no frame on a later latent, and each on its own."""
  model, size = ours(TINY, chunk=100), (13, 16, 16)
  x = frames_of(1, *size)

  def seen(f):
    gradient = jax.jit(jax.grad(lambda x, i: jnp.sum(jnp.sin(f(x)[:, i]))))
    return lambda x, i: np.abs(gradient(x, i)).sum((0, 2, 3, 4)) > 0

  sees = seen(model.encode)
  for i in (0, 1):
    at = sees(x, i)
    assert at[4 * i] and not at[4 * i + 1 :].any()
  z = np.float32(np.random.default_rng(0).standard_normal(model.latent_shape(*size)))[None]
  sees = seen(model.decode)
  for i in (4, 5):
    at = sees(z, i)
    assert at[-(-i // 4)] and not at[-(-i // 4) + 1 :].any()


def test_tiles_are_as_near_as_those_of_the_reference(relative):
  """A tile does not see what is beyond its border: with the same tiles both are off by it."""
  model, reference = pair(TINY)
  tiles = tree.from_flat(shapes(TINY, tile=64), tree.to_flat(model))
  x = frames_of(1, 5, 80, 112)
  with torch.no_grad():
    whole = reference.encode(first(x)).latent_dist.mean
    made = reference.decode(whole).sample
    reference.enable_tiling(64, 64, 48, 48)
    theirs = last(reference.encode(first(x)).latent_dist.mean), last(reference.decode(whole).sample)
  mean, std = np.float32(model.config.mean), np.float32(model.config.std)
  mine = posterior(tiles, x)[0], decode(tiles, (last(whole) - mean) / std)
  for a, b, wanted in zip(mine, theirs, (last(whole), last(made))):
    assert 1e-3 < relative(a, wanted) < 1.05 * relative(b, wanted)
  one = frames_of(1, 5, 64, 64)
  np.testing.assert_array_equal(encode(tiles, one), encode(model, one))


@pytest.mark.parametrize(
  'axes, sides',
  [
    (dict(seq=4), (64, 24)),  # height
    (dict(fsdp=1, seq=2, tensor=2), (40, 64)),  # width
    (dict(fsdp=1, seq=8), (24, 40)),  # of which no latents divide
  ],
)
def test_on_a_mesh(axes, sides, relative):
  """Rows over fsdp, a side over seq and tensor: the same numbers, and a share of the work."""
  x = frames_of(4, 5, *sides)
  model = ours(TINY)
  z = encode(model, x)
  y = decode(model, z)
  one = encode.lower(model, x).compile().cost_analysis()['flops'] / 4
  with jax.set_mesh(sharding.make_mesh(**axes)):
    there = ours(TINY)
    ways, rows = sharding.axis_size('seq', 'tensor'), 4 // sharding.axis_size('fsdp')
    given = there, sharding.rows(x)
    assert relative(encode_rows(*given), z) < 1e-5
    flops = encode_rows.lower(*given).compile().cost_analysis()['flops']
    # Borders are computed twice, uneven parts padded.
    assert flops / rows < (1.6 if max(sides) == 64 else 3) * one / ways
    assert relative(decode_rows(there, sharding.rows(np.asarray(z))), y) < 1e-5


encode_rows, decode_rows = jax.jit(segments.encoded), jax.jit(segments.decoded)


def test_black_frames_are_coded_once():
  """A step finds their latents among its arguments."""
  sound = codec.build_audio(dict(name='mdct', sample_rate=8000))
  sizes = [Size(5, 32, 48, 8.0, 0, keyframes=1, keyframe_scale=2), Size(1, 32, 32, 8.0, 0)]
  with jax.set_mesh(sharding.make_mesh(fsdp=2, seq=2, tensor=2)):
    system = system_lib.System(AV(ours(TINY), sound), None, None)
    made = system.remembering(sizes).codecs.video
  asked = [(5, 32, 48), (1, 32, 32), (1, 64, 96)]
  assert set(made.blacks) == {' '.join(map(str, size)) for size in asked}
  for size in asked:
    black = jax.jit(lambda model, size=size: model.black(*size))
    np.testing.assert_allclose(made.black(*size), black(ours(TINY)), atol=1e-5)
    assert not jax.make_jaxpr(lambda m, size=size: m.black(*size))(made).eqns
  assert made.latent_shape(5, 32, 48) == (2, 4, 6, 4) and made.channels == 4
  assert codec.remembering(sound, asked) is sound


@pytest.mark.parametrize('clip, tile', [('480p 15 s', 0), ('1080p 5 s', 512)])
@pytest.mark.parametrize('way', ['encode', 'decode'])
def test_long_and_large_clips_fit_one_chip(clip, tile, way):
  """Of 16 GiB, by the TPU compiler, which lays out the buffers of the whole program."""
  pytest.importorskip('libtpu')
  command = [sys.executable, 'benchmarks/codec_memory.py', '--one', clip, str(tile), way]
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  gib, _, capacity = done.stdout.strip().splitlines()[-1].partition(' | ')
  assert 1 < float(gib) < 0.6 * float(capacity)


def test_samples_of_the_posterior():
  model = ours(TINY)
  x = frames_of(1, 1, 16, 16)
  _, log_variance = posterior(model, x)
  keys = jax.random.split(jax.random.key(0), 2000)
  found = jax.jit(jax.vmap(functools.partial(model.encode, x)))(keys)
  std = np.exp(log_variance / 2) / np.float32(model.config.std)
  assert np.abs(found.mean(0) - encode(model, x)).max() < 0.1 * std.max()
  np.testing.assert_allclose(found.std(0), std, rtol=0.1)


def test_geometry_of_the_paper():
  model = shapes({})
  assert model.latent_shape(81, 480, 832) == (21, 60, 104, 16)
  assert model.latent_shape(241, 1088, 1920) == (61, 136, 240, 16)
  wan22 = video_vae.Config(**video_vae.WAN22)
  assert (wan22.time_factor, wan22.space_factor, wan22.channels) == (4, 16, 48)


@pytest.mark.parametrize(
  'call, told',
  [
    (lambda m: m.encode(jnp.zeros((1, 4, 16, 16, 3))), 'frames is 4.*multiple of 4'),
    (lambda m: m.encode(jnp.zeros((1, 5, 12, 16, 3))), 'height is 12.*multiple of 8'),
    (lambda m: m.encode(jnp.zeros((5, 16, 16, 3))), r'must be \[b T H W 3\]'),
    (lambda m: m.decode(jnp.zeros((1, 2, 2, 2, 5))), r'must be \[b t h w 4\]'),
  ],
)
def test_wrong_input(call, told):
  with pytest.raises(ValueError, match=told):
    call(ours(TINY))


@pytest.mark.parametrize(
  'fields, told',
  [
    (dict(halved=(True,)), 'one entry between each two of 4'),
    (dict(mean=(0.0,)), 'mean has 1 entries for channels=16'),
    (dict(chunk=0), 'chunk=0 must be at least 1'),
    (
      dict(multiples=(1, 2, 0, 4)),
      r'multiples=\(1, 2, 0, 4\) must be one or more, each at least 1',
    ),
    (dict(tile=100), 'tile=100 is not 0 or a multiple of 16'),
    (dict(tile=-16), 'tile=-16 is not 0 or a multiple of 16'),
  ],
)
def test_wrong_config(fields, told):
  with pytest.raises(ValueError, match=told):
    video_vae.Config(**fields)
