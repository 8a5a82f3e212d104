"""sr4/pipeline.py: what is given of a clip is told to the model and comes back as it was."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.tasks import Row
from sr4 import extension
from sr4 import pipeline
from sr4 import steps
from sr4.core import sharding
from sr4.core.av import AV
from sr4.core.batch import Latents
from sr4.flow import segments
from sr4.models import reuse
from sr4.models import system as system_lib
from sr4.models import tiles
from tests import small_run

RANDOM = np.random.default_rng(0)
FRAMES = RANDOM.integers(0, 256, (5, 16, 16, 3), np.uint8)
SAMPLES = RANDOM.uniform(-1, 1, (5000, 1)).astype(np.float32)
BOX = np.ones((5, 16, 16), bool)
BOX[:, 4:12, 6:12] = False
FIRST = np.arange(5)[:, None, None] == 0


def build(**model):
  """(system, a model whose every weight says something)."""
  config = small_run.config('/nowhere')
  config.model.update(model)
  system = system_lib.build(config)
  return system, small_run.model(system)


@pytest.fixture(scope='module')
def base():
  return build()


def sampled(made, rows, seeds=None, **size):
  system, model = made
  size = system.size(**(dict(frames=5, height=16, width=16, fps=8.0) | size))
  once = pipeline.Config(num_inference_steps=2)
  return pipeline.Pipeline(system, model, size, once)(rows, seeds or range(len(rows)))


def test_an_edit_changes_what_it_may_and_does_not_see_what_it_hides(base):
  row = Row(FRAMES, known=BOX, caption='a red circle')
  other = FRAMES.copy()
  other[~BOX] = 255 - other[~BOX]
  free = Row(FRAMES, known=~BOX & False, caption='a red circle')
  clips = sampled(base, [row, dataclasses.replace(row, frames=other), free], [3, 3, 3])
  np.testing.assert_array_equal(clips[0].frames[BOX], FRAMES[BOX])
  assert np.mean(clips[0].frames[~BOX] != FRAMES[~BOX]) > 0.9
  np.testing.assert_array_equal(clips[0].frames, clips[1].frames)
  assert np.mean(clips[2].frames[BOX] != FRAMES[BOX]) > 0.9


def test_a_first_frame_is_kept_and_told(base):
  row = Row(FRAMES, known=FIRST, caption='a red circle')
  dark = dataclasses.replace(row, frames=FRAMES // 8)
  (clip, darker), (free,) = (
    sampled(base, rows, [3] * len(rows)) for rows in ([row, dark], ['a red circle'])
  )
  np.testing.assert_array_equal(clip.frames[0], FRAMES[0])
  codec = base[0].codecs.video
  wanted = np.asarray(codec.encode(FRAMES[None, :1]))[0]
  np.testing.assert_allclose(clip.latents['video'][:1], wanted, atol=1e-5)
  assert np.any(clip.latents['video'][1] != darker.latents['video'][1])
  assert np.any(clip.frames[1:] != free.frames[1:])


@pytest.mark.parametrize('given', ['audio', 'video'])
def test_a_modality_that_is_given_stays_and_is_heard_or_seen(base, given):
  clean = AV(given == 'video', given == 'audio')
  row = Row(FRAMES, SAMPLES, clean=clean, caption='a red circle')
  quiet = dataclasses.replace(row, frames=FRAMES // 8, samples=SAMPLES / 8)
  one, two = sampled(base, [row, quiet], [3, 3])
  kept, made = ('samples', 'frames') if given == 'audio' else ('frames', 'samples')
  np.testing.assert_array_equal(getattr(one, kept), getattr(row, kept))
  np.testing.assert_array_equal(getattr(two, kept), getattr(quiet, kept))
  assert np.any(getattr(one, made) != getattr(two, made))
  assert np.any(getattr(one, made) != getattr(row, made))
  with pytest.raises(ValueError, match='sample these apart'):
    sampled(base, [row, 'a red circle'])


@pytest.mark.parametrize('solver', ['euler', 'unipc'])
def test_a_sound_goes_on_from_what_is_heard(base, solver):
  system, model = base
  config = pipeline.Config(num_inference_steps=3, solver=solver)
  sampler = pipeline.Pipeline(system, model, system.size(5, 16, 16, 8.0), config)
  heard = np.arange(5000) < 2000
  row = Row(samples=SAMPLES * heard[:, None], heard=heard, caption='a red circle')
  other = dataclasses.replace(row, samples=-row.samples)
  one, two = sampler([row, other], [3, 3])
  np.testing.assert_array_equal(one.samples[:1840], SAMPLES[:1840])  # 20 ms before the end
  assert np.any(one.samples[2000:] != two.samples[2000:])
  wanted = np.asarray(system.codecs.audio.encode(row.samples[None]))[0]
  whole = int(2000 // (8000 / system.codecs.audio.rate))
  np.testing.assert_allclose(one.latents['audio'][:whole], wanted[:whole], atol=1e-4)
  assert np.abs(one.latents['audio'][whole:] - wanted[whole:]).min() > 0


def test_a_fade_lies_within_what_is_heard():
  given, made = np.ones((6, 1), np.float32), np.zeros((6, 1), np.float32)
  share = lambda heard: extension.faded(given, made, heard, 100)[:, 0]  # over two samples
  np.testing.assert_allclose(share(np.arange(6) < 4), [1, 1, 1, 0.5, 0, 0])
  np.testing.assert_allclose(share(np.arange(6) >= 2), [0, 0, 0.5, 1, 1, 1])


def test_references_are_looked_at_and_listened_to(base):
  slots = dict(reference_images=1, reference_frames=5, reference_seconds=0.25)
  row = Row(
    images=(FRAMES[0],), clip=FRAMES, sound=SAMPLES[:2000], caption='@image_1 @video_1 @audio_1'
  )
  others = [
    row,
    dataclasses.replace(row, images=(FRAMES[1],)),
    dataclasses.replace(row, clip=FRAMES[::-1]),
    dataclasses.replace(row, sound=SAMPLES[2000:4000]),
  ]
  one, *rest = sampled(base, others, [3] * 4, **slots)
  for clip in rest:
    assert np.any(clip.frames != one.frames) and np.any(clip.samples != one.samples)


def test_prompts_to_be_guided_away_from(base):
  """A row without one is as if nobody had one; each modality may have its own."""
  system, model = base
  sampler = pipeline.Pipeline(
    system, model, system.size(5, 16, 16, 8.0), pipeline.Config(num_inference_steps=2)
  )
  prompts, none = ['a red circle'] * 3, sampler(['a red circle'], [3])[0]
  plain, away, loud = sampler(
    prompts, [3] * 3, [AV('', ''), AV('a blue square', 'a blue square'), AV('', 'a blue square')]
  )
  np.testing.assert_array_equal(plain.frames, none.frames)
  assert np.any(away.frames != none.frames) and np.any(loud.samples != none.samples)
  same = sampler(prompts[:1], [3], [AV('a blue square', 'a blue square')])[0]
  np.testing.assert_allclose(same.latents['audio'], away.latents['audio'], atol=1e-4)


def test_no_negative_prompt_has_no_tokens_whatever_the_encoder_makes_of_nothing(base):
  class Template:
    """As an encoder whose chat template has words of its own."""

    def read(self, prompts, size):
      return np.zeros((len(prompts), 3, 32), np.float32), np.ones((len(prompts), 3), bool)

  system, model = base
  system = dataclasses.replace(system, text=Template())
  sampler = pipeline.Pipeline(system, model, system.size(5, 16, 16, 8.0))
  (_, seen), (_, heard) = sampler._negative([AV('', 'a bell'), AV('a cat', 'a bell')])
  np.testing.assert_array_equal(seen, [[False] * 3, [True] * 3])
  assert heard.all() and sampler._negative([AV('', '')]) == AV(None, None)


@pytest.fixture(scope='module')
def refiner():
  return build(audio=False, sparse=dict(tile=(64,)))


def test_a_refiner_keeps_the_source_and_sees_references(refiner):
  """Inpainting at the size of the large clip, with the low clip's latents."""
  low = RANDOM.normal(size=(2, 2, 2, 16)).astype(np.float32)
  keys = RANDOM.normal(size=(1, 4, 4, 16)).astype(np.float32)
  frames = RANDOM.integers(0, 256, (9, 16, 16, 3), np.uint8)
  known = np.repeat(BOX[:1], 9, 0)
  row = Row(
    frames,
    SAMPLES,
    known,
    images=(FRAMES[0],),
    latents=Latents(low=low, keyframes=keys),
    caption='@image_1',
  )
  size = dict(frames=9, sound=False, reference_images=1, low=dict(frames=5, height=8, width=8))
  size['low']['keyframes'] = 1
  rows = [
    row,
    dataclasses.replace(row, images=(FRAMES[1],)),
    dataclasses.replace(row, latents=Latents(low=-low, keyframes=keys)),
    dataclasses.replace(row, latents=Latents(low=low, keyframes=-keys)),
  ]
  one, *rest = sampled(refiner, rows, [3] * 4, **size)
  np.testing.assert_array_equal(one.frames[known], frames[known])
  np.testing.assert_array_equal(one.samples, SAMPLES)
  assert np.mean(one.frames[~known] != frames[~known]) > 0.9
  for clip in rest:
    assert np.any(clip.frames[~known] != one.frames[~known])
  with pytest.raises(ValueError, match='without a low clip'):
    sampled(refiner, [Row(frames, known=known, images=(FRAMES[0],))], [3], **size)


def test_keyframes_of_a_refiner_are_those_of_the_low_clip(base):
  size = base[0].size(
    9, 16, 16, 16.0, low=dict(frames=5, height=8, width=8, keyframes=2), sound=False
  )
  assert pipeline.keyframes_at(base[0], size) == (0, 4)


@pytest.mark.parametrize('shape, tile', [((2, 8, 12), 4), ((2, 7, 5), 4), ((3, 4, 9), 5)])
def test_tiles_put_together_on_the_host_are_those_of_one_program(shape, tile):
  """`f` looks about itself, so a tile's border differs from the whole frame."""
  z = jnp.asarray(RANDOM.uniform(-1, 1, (2, *shape, 3)).astype(np.float32))
  blur = lambda x: (x + jnp.pad(x, ((0, 0),) * 3 + ((1, 0), (0, 0)))[..., :-1, :]) / 2
  f = jax.jit(lambda z: jnp.repeat(jnp.repeat(blur(z), 4, 2), 4, 3))
  one = tiles.tiled(f, z, tile, 1)
  made = tiles.on_host(lambda z: np.asarray(f(z)), z, tile, 4)
  assert np.abs(made - np.asarray((one + 1) * 127.5)).max() < 0.501
  assert np.abs(made - np.asarray((f(z) + 1) * 127.5)).max() > 1


def test_a_clip_decoded_in_tiles_is_the_clip(base):
  """The codec looks no further than a latent, so tiles do not show."""
  system, model = base
  size = system.size(5, 16, 16, 8.0)
  whole, parts = (
    pipeline.Pipeline(system, model, size, pipeline.Config(num_inference_steps=1, decode_tile=tile))
    for tile in (0, 8)
  )
  one, two = whole(['x'], [3])[0], parts(['x'], [3])[0]
  assert np.abs(one.frames.astype(int) - two.frames).max() <= 1
  assert np.mean(one.frames == two.frames) > 0.99


def test_keyframes_are_decoded_in_tiles_too(base, monkeypatch):
  """A clip that fits a tile is decoded whole beside them."""
  system, seen, decoded = base[0], [], pipeline.pixels
  size = system.size(5, 8, 8, 8.0, sound=False, keyframes=2, keyframe_scale=2)
  shapes = segments.latent_shapes(system.codecs, size).video
  latents = sharding.rows(
    AV(tuple(RANDOM.normal(size=(1, *x)).astype(np.float32) for x in shapes), None)
  )

  def watched(codec, z, each):
    seen.append((z.shape[1:4], each))
    return decoded(codec, z, each)

  monkeypatch.setattr(pipeline, 'pixels', watched)
  whole, parts = (pipeline.decode(system, size, latents, tile) for tile in (0, 8))
  assert set(seen) == {((2, 2, 2), True)} and len(seen) == 9
  np.testing.assert_array_equal(parts['frames'], whole['frames'])
  assert np.abs(parts['keyframes'].astype(int) - whole['keyframes']).max() <= 1


def test_a_mesh_makes_the_same_clips(base, relative):
  """All that can be given at once, three rows over two devices and tokens over two more."""
  slots = dict(reference_images=1, reference_frames=5)
  heard = np.arange(5000) < 2000
  row = Row(
    FRAMES,
    SAMPLES * heard[:, None],
    BOX,
    heard,
    images=(FRAMES[0],),
    clip=FRAMES,
    caption='@image_1 @video_1',
  )
  away = AV('a blue square', 'a bell')
  config = pipeline.Config(
    num_inference_steps=2, solver='unipc', reference_scale=2.0, decode_tile=8
  )

  def made(made_of):
    system, model = made_of
    sampler = pipeline.Pipeline(system, model, system.size(5, 16, 16, 8.0, **slots), config)
    return sampler([row] * 3, [1, 2, 3], [away] * 3)

  one = made(base)
  with jax.set_mesh(sharding.make_mesh(jax.devices()[:4], fsdp=2, seq=2)):
    several = made(build())
    assert len(one) == len(several) == 3
    for clip, other in zip(one, several):
      for name, latents in clip.latents.items():
        assert relative(other.latents[name], latents) < 1e-5
      assert np.mean(clip.frames == other.frames) > 0.99


@pytest.mark.parametrize('solver', ['euler', 'heun', 'unipc'])
def test_a_callback_sees_each_step_changes_and_ends_it(base, solver):
  system, model = base
  config = pipeline.Config(num_inference_steps=3, solver=solver)
  sampler = pipeline.Pipeline(system, model, system.size(5, 16, 16, 8.0), config)
  seen = []

  def watch(made, step, t, told):
    seen.append(
      (step, float(t.video), *(np.asarray(told[x].video[0]) for x in ('latents', 'data')))
    )

  (clip,) = sampler(['a red circle'], [3], callback_on_step_end=watch)
  assert [(step, round(t, 3)) for step, t, *_ in seen] == [(0, 0.333), (1, 0.667), (2, 1.0)]
  *_, latents, data = seen[-1]
  np.testing.assert_allclose(latents[0], clip.latents['video'], atol=1e-6)
  np.testing.assert_allclose(data, latents, atol=1e-6)
  # The first data lie where the first velocity leads: the noise is on the same line.
  *_, data = seen[0]
  (other,) = pipeline.Pipeline(
    system, model, sampler.size, dataclasses.replace(config, num_inference_steps=1, solver='euler')
  )(['a red circle'], [3])
  if solver != 'heun':  # Whose first step has the mean of two velocities.
    np.testing.assert_allclose(data[0], other.latents['video'], rtol=1e-3, atol=1e-3)

  def end(made, step, t, told):
    made.interrupt = step == 1
    return {'latents': jax.tree.map(lambda x: np.zeros(x.shape), told['latents'])}

  (clip,) = sampler(['a red circle'], [3], callback_on_step_end=end)
  assert not np.any(clip.latents['video']) and not np.any(clip.latents['audio'])


def test_a_solver_begins_anew_from_latents_that_a_callback_changes(base, relative):
  """UniPC's first and last steps are Euler's, and so is one from what it did not make."""
  system, model = base
  size = system.size(5, 16, 16, 8.0)

  def made(solver, by):
    config = pipeline.Config(num_inference_steps=3, solver=solver)
    change = lambda made, step, t, told: (
      {'latents': jax.tree.map(lambda x: x + by, told['latents'])} if step == 0 and by else {}
    )
    return pipeline.Pipeline(system, model, size, config)(['a'], [3], (), change)[0].latents

  for name, latents in made('euler', 3.0).items():
    assert relative(made('unipc', 3.0)[name], latents) < 1e-4
    assert relative(made('unipc', 0.0)[name], made('euler', 0.0)[name]) > 1e-3


def test_tokens_that_are_not_there_do_not_drift():
  """Padding and empty slots hardly change, and would hide what does."""
  now, before = jnp.array([[[3.0], [5.0], [9.0]]]), jnp.array([[[2.0], [5.0], [1.0]]])
  valid = jnp.array([[True, True, False]])
  assert reuse.change(now, before, valid) == pytest.approx(1 / 7)


def test_layers_are_not_run_again_while_nothing_drifts(base, relative):
  """A limit that is never reached, one that always is, and what lies between; sound has its own."""
  system, model = base
  size = system.size(5, 16, 16, 8.0)

  def made(limit, solver='euler'):
    config = pipeline.Config(num_inference_steps=8, cache_threshold=limit, solver=solver)
    states = []
    advance = steps.advance

    def watched(*args):
      carry, kept = advance(*args)
      states.append([float(state.drift.audio) for state in kept])
      return carry, kept

    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(steps, 'advance', watched)
      (clip,) = pipeline.Pipeline(system, model, size, config)(['a red circle'], [3])
    return clip.latents, states

  exact, none = made(0.0)
  assert none == [[]] * 8
  always, drifts = made(1e-9)
  assert drifts == [[0.0, 0.0]] * 8  # With the prompt and without.
  never, drifts = made(1e9)
  assert drifts[0] == [0.0, 0.0] and all(0 < a < b for a, b in zip(drifts[1][:1], drifts[-1]))
  some, drifts = made(3.0)
  ran = [drift == 0 for step in drifts for drift in step]
  assert 0 < sum(ran) < len(ran)
  assert max(drift for step in drifts for drift in step) < 3.0 / steps.SENSITIVE
  for name, latents in exact.items():
    assert relative(always[name], latents) < 1e-5
    assert 1e-4 < relative(some[name], latents) < relative(never[name], latents)
  assert relative(made(1e-9, 'unipc')[0]['video'], made(0.0, 'unipc')[0]['video']) < 1e-5
  with pytest.raises(ValueError, match="cache_threshold goes with solver='euler' or 'unipc'"):
    pipeline.Config(cache_threshold=0.1, solver='heun')
