"""sr4/torch/pipeline.py beside sr4/pipeline.py: the same clips from the same noise."""

import dataclasses
import types

import accelerate
import diffusers
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
import torch

from data_pipelines.tasks import Row
from sr4 import cli
from sr4 import pipeline
from sr4.core import config as config_lib
from sr4.core import tree
from sr4.core.av import AV
from sr4.core.batch import Latents
from sr4.core.batch import Size
from sr4.flow import path as path_lib
from sr4.flow import segments
from sr4.models import system as system_lib
from sr4.torch import layers
from sr4.torch import media
from sr4.torch import MMDiT
from sr4.torch import rules
from sr4.torch import SkyReelsV4Pipeline
from sr4.training import checkpoint
from tests import small_run
from tests.pipeline_test import BOX
from tests.pipeline_test import FIRST
from tests.pipeline_test import FRAMES
from tests.pipeline_test import SAMPLES

pytestmark = pytest.mark.usefixtures('quick_compile')
PROMPT = 'a red circle bounces'
STEPS = 20
CLIP = dict(num_frames=5, height=16, width=16, fps=8.0)
FIRST = np.broadcast_to(FIRST, BOX.shape)
ENDS = FIRST | FIRST[::-1]
SHIFTS = dict(shift=3.0, audio_shift=2.0)
HEARD = np.arange(5000) < 1700
LARGE = FRAMES.repeat(2, 1).repeat(2, 2)
PICTURE = FRAMES[3, ::-1]
WORDS = torch.zeros(1, 8, 32), torch.ones(1, 8, dtype=torch.bool)


def exported(path, randomized, sample=SHIFTS, **model):
  """(system, model, the pipeline of its export)."""
  config = small_run.config(path)
  config.model.update(model)
  config.sample.update(sample)
  page = config_lib.to_json(config)
  system = system_lib.build(page)
  ours = randomized(tree.abstract(system.model, jax.random.key(0)), std=0.1)
  with checkpoint.Checkpoints(str(path / 'checkpoints')) as saves:
    saves.save(1, {'ema': ours}, {'config': page})
  cli.main(['export', '--checkpoint', str(path / 'checkpoints'), '--out', str(path / 'out')])
  pipe = SkyReelsV4Pipeline.from_pretrained(path / 'out')
  pipe.set_progress_bar_config(disable=True)
  return system, ours, pipe


@pytest.fixture(scope='module')
def made(tmp_path_factory, randomized):
  return exported(tmp_path_factory.mktemp('torch'), randomized)


def noise(system, size, seed=3) -> AV:
  shapes = segments.latent_shapes(system.codecs, size)
  like = AV(*(tuple(map(jnp.zeros, of)) or None for of in shapes))
  drawn = path_lib.noise_like(jax.random.key(seed), like)
  return AV(*(of and tuple(torch.from_numpy(np.array(z))[None] for z in of) for of in drawn))


TASKS = {
  'text': (
    Row(),
    {},
    dict(negative_prompt='a green square', audio_negative_prompt='a blue triangle'),
  ),
  'first frame': (Row(FRAMES, known=FIRST), {}, dict(image=FRAMES[0])),
  'both ends': (Row(FRAMES, known=ENDS), {}, dict(image=FRAMES[0], last_image=FRAMES[-1])),
  'edit': (Row(FRAMES, known=BOX), {}, dict(video=FRAMES, mask_video=~BOX)),
  'frames in between': (
    Row(FRAMES, known=np.isin(np.arange(5), (0, 3))[:, None, None]),
    {},
    dict(image=FRAMES[0], mid_images={3: FRAMES[3]}, guidance_rescale=0.7),
  ),
  'extension': (
    Row(FRAMES, SAMPLES, known=FIRST, heard=HEARD),
    {},
    dict(video=FRAMES, mask_video=~FIRST, audio=SAMPLES, mask_audio=~HEARD),
  ),
  'keyframes': (
    Row(FRAMES, known=FIRST, keyframes=LARGE[[0, 4]]),
    dict(keyframes=2, keyframe_scale=2),
    dict(image=LARGE[0], num_keyframes=2, keyframe_scale=2),
  ),
  'sound of a clip': (Row(FRAMES, SAMPLES, clean=AV(True, False)), {}, dict(video=FRAMES)),
  'picture of a sound': (Row(FRAMES, SAMPLES, clean=AV(False, True)), {}, dict(audio=SAMPLES)),
  'references': (
    Row(images=(PICTURE,), clip=FRAMES, sound=SAMPLES[:2048]),
    dict(reference_images=1, reference_frames=5, reference_seconds=2048 / 8000),
    dict(
      ref_images=[PICTURE],
      ref_video=FRAMES,
      ref_audio=SAMPLES[:2048],
      modality_scale=1.5,
      reference_scale=2.0,
    ),
  ),
  'picture alone': (Row(), dict(frames=1, sound=False), dict(num_frames=1, sound=False)),
  'sound alone': (
    Row(),
    dict(frames=0, height=0, width=0, seconds=0.5),
    dict(num_frames=0, seconds=0.5),
  ),
}


@pytest.mark.parametrize('task', TASKS)
def test_is_the_pipeline_of_ours(made, task, relative):
  """Final latents of 20 steps, guided by the text, the other modality and references."""
  system, model, pipe = made
  row, changes, asked = TASKS[task]
  size = system.size(**(dict(frames=5, height=16, width=16, fps=8.0) | changes))
  scales = dict(video_guidance_scale=3.0, audio_guidance_scale=2.0)
  guiding = ('modality_scale', 'reference_scale', 'guidance_rescale')
  scales |= {name: asked[name] for name in guiding if name in asked}
  config = pipeline.Config(num_inference_steps=STEPS, **SHIFTS, **scales)
  prompt = '@image_1 in @video_1, @audio_1 speaks' if task == 'references' else PROMPT
  away = ()
  if 'negative_prompt' in asked:
    away = [AV(asked['negative_prompt'], asked['audio_negative_prompt'])]
  rows = [dataclasses.replace(row, caption=prompt)]
  (clip,) = pipeline.Pipeline(system, model, size, config)(rows, [3], away)
  fields = CLIP | asked | scales | dict(num_inference_steps=STEPS, latents=noise(system, size))
  out = pipe(prompt, **fields)
  for name, found in (
    ('video', out.video_latents),
    ('keyframes', out.keyframe_latents),
    ('audio', out.audio_latents),
  ):
    assert (name in clip.latents) == (found is not None)
    if found is not None:
      assert relative(found[0].numpy(), clip.latents[name]) < 1e-3
  if clip.frames is not None:
    assert np.mean(out.frames[0] != clip.frames) < 0.01
    if clip.frames.shape == FRAMES.shape and row.known is not None:
      known = np.broadcast_to(row.known, FRAMES.shape[:3])
      np.testing.assert_array_equal(out.frames[0][known], FRAMES[known])
  if clip.keyframes is not None:
    assert np.mean(out.keyframes[0] != clip.keyframes) < 0.01
  if clip.samples is not None and out.audio is not None:
    assert relative(out.audio[0], clip.samples[: out.audio.shape[1]]) < 1e-3


def test_it_samples_as_the_training_does(tmp_path, randomized):
  """What is not asked for is the config's; a folder of before it was there has the defaults."""
  sample = dict(num_inference_steps=3, video_guidance_scale=2.0, modality_scale=1.5)
  _, _, pipe = exported(tmp_path, randomized, sample)
  latents = AV((torch.randn(1, 2, 4, 4, 16),), (torch.randn(1, 20, 32),))
  ask = dict(latents=latents, output_type='latent', **CLIP)
  found = pipe(PROMPT, **ask).video_latents
  torch.testing.assert_close(found, pipe(PROMPT, **ask, **sample).video_latents)
  pipe.register_to_config(sr4={n: x for n, x in pipe.config.sr4.items() if n != 'sample'})
  sample = dict(num_inference_steps=30, video_guidance_scale=4.0, modality_scale=1.0)
  other = pipe(PROMPT, **ask).video_latents
  torch.testing.assert_close(other, pipe(PROMPT, **ask, **sample).video_latents)
  assert not torch.allclose(other, found, atol=1e-2)


def test_two_prompts_are_two_clips(made):
  _, _, pipe = made
  latents = [torch.randn(2, *shape) for shape in ((2, 4, 4, 16), (20, 32))]
  both = pipe(
    [PROMPT, 'a green square'], num_inference_steps=2, latents=AV(*((z,) for z in latents)), **CLIP
  )
  second = AV(*((z[1:],) for z in latents))
  one = pipe('a green square', num_inference_steps=2, latents=second, **CLIP)
  np.testing.assert_allclose(both.video_latents[1], one.video_latents[0], atol=1e-5)
  assert both.frames.shape == (2, *FRAMES.shape) and both.audio.shape == (2, 5000, 1)


def test_a_callback_sees_changes_and_ends_it(made):
  _, _, pipe = made
  seen = []

  def callback(pipe, step, timestep, told):
    seen.append((step, float(timestep)))
    pipe.interrupt = step == 1
    return {'latents': AV(*((torch.zeros_like(z[0]),) for z in told['latents']))}

  generator = torch.Generator().manual_seed(0)
  out = pipe(
    PROMPT, num_inference_steps=4, generator=generator, callback_on_step_end=callback, **CLIP
  )
  assert [step for step, _ in seen] == [0, 1] and not torch.any(out.video_latents)


def test_a_refiner(tmp_path, randomized, relative):
  model = dict(audio=False, sparse=dict(tile=(4, 4, 4), sparsity=0.5), patch=(1, 1, 1))
  system, ours, pipe = exported(tmp_path, randomized, **model)
  random = np.random.default_rng(0)
  low = random.standard_normal((3, 4, 4, 16), np.float32)
  keys = random.standard_normal((2, 8, 8, 16), np.float32)
  told = dict(frames=9, height=16, width=16, keyframes=2)
  size = system.size(17, 32, 32, 16.0, sound=False, low=told)
  config = pipeline.Config(num_inference_steps=8, video_guidance_scale=2.0, strength=0.7, **SHIFTS)
  row = Row(caption=PROMPT, latents=Latents(low=low, keyframes=keys), at=(0, 8))
  (clip,) = pipeline.Pipeline(system, ours, size, config)([row], [3])
  out = pipe.refine(
    PROMPT,
    video_latents=torch.from_numpy(low)[None],
    keyframe_latents=torch.from_numpy(keys)[None],
    keyframes_at=(0, 8),
    num_frames=17,
    height=32,
    width=32,
    fps=16.0,
    num_inference_steps=8,
    video_guidance_scale=2.0,
    strength=0.7,
    latents=noise(system, size),
  )
  assert relative(out.video_latents[0].numpy(), clip.latents['video']) < 1e-3
  assert np.mean(out.frames[0] != clip.frames) < 0.01


def test_what_no_refiner_can_do_is_told(made, tmp_path, randomized):
  _, _, pipe = exported(tmp_path, randomized, audio=False, patch=(1, 1, 1))
  low = torch.zeros(1, 3, 4, 4, 16)
  keys = torch.zeros(1, 2, 8, 8, 16)
  ask = dict(video_latents=low, num_frames=17, height=32, width=32, num_inference_steps=1)
  for fields, told in (
    (
      dict(video_latents=low[0]),
      r'video_latents are \(3, 4, 4, 16\); they must be \(b, t, h, w, 16',
    ),
    (dict(num_frames=21), r'num_frames=21 must be 1 \+ n \* 8'),
    (dict(num_frames=1), r'num_frames=1 must be 1 \+ n \* 8'),
    (dict(height=8), 'height=8 is less than that of the clip, 16'),
    (dict(keyframes_at=(0,)), 'keyframes_at without keyframe_latents'),
    (dict(keyframe_latents=keys[:, :, :4]), r'keyframe_latents are .* must be \(1, k, 8, 8, 16\)'),
    (dict(keyframe_latents=keys, keyframes_at=(0,)), 'keyframes_at has 1 frames; keyframe_latents'),
    (dict(keyframe_latents=keys, keyframes_at=(0, 9)), 'must be frames of the clip, 0 to 8'),
    (dict(keyframe_latents=keys, keyframes_at=(3, 4)), 'two of them are under one latent'),
    (dict(video_latents=low.repeat(2, 1, 1, 1, 1)), 'are of 2 clips, and 1 prompts given'),
    (dict(video=np.zeros((17, 32, 32, 3), np.uint8)), 'video without mask_video, and no sound'),
    (dict(output_type='pil'), "output_type='pil'"),
  ):
    with pytest.raises(ValueError, match=told):
      pipe.refine(PROMPT, **(ask | fields))
  with pytest.raises(ValueError, match='audio, and the model makes no sound; leave it out'):
    pipe(PROMPT, **(CLIP | dict(audio=SAMPLES, num_inference_steps=1)))
  with pytest.raises(ValueError, match='this model makes sound, so it is no Refiner'):
    made[2].refine(PROMPT, **ask)


def test_a_refiner_is_given_a_source_and_references(tmp_path, randomized, relative):
  model = dict(audio=False, sparse=dict(tile=(4, 4, 4), sparsity=0.5), patch=(1, 1, 1))
  system, ours, pipe = exported(tmp_path, randomized, **model)
  low = np.random.default_rng(0).standard_normal((2, 4, 4, 16), np.float32)
  source = FRAMES.repeat(2, 1).repeat(2, 2)
  known = BOX.repeat(2, 1).repeat(2, 2)
  told = dict(frames=5, height=16, width=16)
  size = system.size(5, 32, 32, 16.0, sound=False, low=told, reference_images=1)
  scales = dict(video_guidance_scale=2.0, reference_scale=1.5)
  config = pipeline.Config(num_inference_steps=4, **SHIFTS, **scales)
  row = Row(source, known=known, images=(source[3],), latents=Latents(low=low))
  row = dataclasses.replace(row, caption='@image_1 bounces')
  away = [AV('a green square', 'a green square')]
  (clip,) = pipeline.Pipeline(system, ours, size, config)([row], [3], away)
  out = pipe.refine(
    '@image_1 bounces',
    'a green square',
    video_latents=torch.from_numpy(low)[None],
    **dict(num_frames=5, height=32, width=32, fps=16.0),
    **dict(video=source, mask_video=~known, ref_images=[source[3]]),
    **dict(num_inference_steps=4, latents=noise(system, size)),
    **scales,
  )
  assert relative(out.video_latents[0].numpy(), clip.latents['video']) < 1e-3
  np.testing.assert_array_equal(out.frames[0][known], source[known])
  assert np.mean(out.frames[0] != clip.frames) < 0.01


@pytest.mark.parametrize('back', [False, True])
def test_an_extension_is_joined_to_what_it_extends(made, back):
  """A clip of 9 frames and another of 9 that shares 5 of them, or 4 at its end."""
  _, _, pipe = made
  random = np.random.default_rng(1)
  video = random.integers(0, 256, (9, 16, 16, 3), np.uint8)
  audio = random.uniform(-1, 1, (9000, 1)).astype(np.float32)
  ask = dict(num_frames=17, fps=8.0, num_inference_steps=2)
  generator = lambda: torch.Generator().manual_seed(0)
  out = pipe.extend(PROMPT, video=video, audio=audio, back=back, generator=generator(), **ask)
  shared = 4 if back else 5
  assert out.frames.shape[1] == 9 + 17 - shared
  kept = out.frames[0][-9:] if back else out.frames[0][:9]
  np.testing.assert_array_equal(kept, video)
  heard = out.audio[0][-8800:] if back else out.audio[0][:8800]
  np.testing.assert_allclose(heard, audio[-8800:] if back else audio[:8800])
  assert out.audio.shape[1] == (9 + 17 - shared) * 1000
  longer = np.concatenate([audio, audio])
  same = pipe.extend(PROMPT, video=video, audio=longer, back=back, generator=generator(), **ask)
  np.testing.assert_array_equal(same.audio, out.audio)
  silent = pipe.extend(PROMPT, video=video, generator=generator(), back=back, **ask)
  assert torch.any(silent.video_latents != out.video_latents)  # It heard what came before.
  with pytest.raises(ValueError, match='video has 3 frames, and a clip of 17 goes on from'):
    pipe.extend(PROMPT, video=video[:3], **ask)
  for fields, told in (
    (dict(video=video / 255), 'video is float64; pixels are uint8'),
    (dict(video=video[0]), r'video is \(16, 16, 3\); frames are \[T H W 3\]'),
    (dict(audio=audio, sound=False), 'audio, and sound=False; leave out one of them'),
    (dict(audio=audio[:7000]), 'audio lasts 0.875 s, and the clip 1.125 s; give a longer one'),
    (dict(num_frames=1), 'num_frames=1 of a clip that goes on; give more'),
  ):
    with pytest.raises(ValueError, match=told):
      pipe.extend(PROMPT, **(ask | dict(video=video) | fields))


@pytest.mark.parametrize(
  'fields, told',
  [
    (dict(num_inference_steps=0), 'num_inference_steps=0 must be at least 1'),
    (dict(num_frames=6), r'num_frames=6 must be 1 \+ n \* 4'),
    (dict(width=20), 'width=20 must be a multiple of 8'),
    (dict(mask_video=BOX), 'mask_video without video'),
    (dict(video=FRAMES, image=FRAMES[0]), 'image, last_image or mid_images too'),
    (dict(mask_audio=HEARD), 'mask_audio without audio'),
    (
      dict(audio=SAMPLES, mask_audio=~HEARD[:9]),
      r'mask_audio is \(9,\); here it must be \(5000,\)',
    ),
    (dict(audio=SAMPLES, mask_audio=HEARD & HEARD[::-1]), 'over a beginning or an end'),
    (dict(mid_images={4: FRAMES[3]}), r'mid_images\[4\] must be a frame between 0 and 4'),
    (dict(mid_images={2.0: FRAMES[2]}), r'mid_images\[2.0\] must be .*, as an int'),
    (dict(num_frames=0, seconds=0.5, image=FRAMES[0]), 'num_frames=0 is a sound alone'),
    (dict(num_frames=0, seconds=0.5, ref_images=[FRAMES[0]]), 'num_frames=0 is a sound alone'),
    (dict(num_frames=1, image=FRAMES[0], last_image=FRAMES[4]), 'num_frames=1, and image and'),
    (dict(generator=[torch.Generator()]), 'generator is a list; give one torch.Generator'),
    (dict(negative_prompt=['x', 'y', 'z']), '3 of negative_prompt for 1 prompts; give one, or'),
    (dict(ref_video=FRAMES[:3]), r'ref_video is \(3, 16, 16, 3\); here it must be \(1 \+ n \* 4'),
    (dict(num_keyframes=3), 'num_keyframes=3: 5 frames have at most 2'),
    (dict(num_keyframes=1, image=FRAMES[0]), r'image is .*; here it must be \(32, 32, 3\)'),
    (dict(audio=SAMPLES, sound=False), 'sound=False'),
    (dict(num_frames=0, sound=False), 'num_frames=0 and no sound'),
    (dict(image=FRAMES[0, :8]), r'image is \(8, 16, 3\); here it must be \(16, 16, 3\)'),
    (dict(image=FRAMES[0] / 255), 'image is float64; pixels are uint8'),
    (dict(ref_images=[FRAMES[0].astype(np.float32)]), r'ref_images\[0\] is float32; pixels'),
    (dict(audio=(SAMPLES * 32767).astype(np.int16)), r'audio is int16 \(.*, 1\); sound is float'),
    (dict(ref_audio=SAMPLES[:, 0]), r'ref_audio is float32 \(.*,\); sound is float \[n channels\]'),
    (dict(prompt=None), 'neither prompt nor prompt_embeds'),
    (dict(prompt=[]), r'prompt is \[\]; give a string, or a list of them'),
    (dict(prompt_embeds=WORDS), 'prompt and prompt_embeds; give one of them'),
    (dict(prompt=None, prompt_embeds=WORDS[0]), r'prompt_embeds is a Tensor; give \(embeddings'),
    (dict(negative_prompt_embeds=(*WORDS[:1], WORDS[0])), 'negative_prompt_embeds are .* must be'),
    (dict(prompt='@image_1 bounces'), 'prompt: references: the prompt names @image_1'),
    (dict(ref_images=[PICTURE]), 'prompt: references: @image_1 is given, but the prompt does not'),
    (dict(ref_images=Image.fromarray(PICTURE)), 'ref_images is a Image; give a list of pictures'),
    (dict(mid_images=[PICTURE]), r'mid_images is a list; give \{frame: picture\}'),
    (dict(latents=AV((torch.zeros(1, 2, 4, 4, 3),), None)), r'latents are .*; here they must be'),
    (dict(latents=torch.zeros(1, 2, 4, 4, 16)), 'latents are Tensor; here they must be .*, AV of'),
    (dict(callback_on_step_end=lambda *_: {'latents': 0}), 'latents are int; here they must be'),
    (dict(output_type='pil'), "output_type='pil'; it is 'np' or 'latent'"),
    (dict(fps=0), 'fps=0 must be above 0'),
    (dict(seconds=1.0), r'seconds=1.0 is of a sound alone \(num_frames=0\)'),
    (dict(num_frames=0, seconds=-1.0), 'seconds=-1.0 must be 0 or above'),
    (dict(num_frames=5.0), 'num_frames=5.0 must be a whole number'),
    (dict(num_keyframes=-1), 'num_keyframes=-1 must be a whole number'),
    (dict(num_keyframes=1, keyframe_scale=0), 'keyframe_scale=0 must be a whole number, 1 or'),
    (dict(num_frames=0, seconds=0.5, num_keyframes=1), 'num_keyframes=1 of a sound alone'),
    (dict(video=LARGE, num_keyframes=2), 'num_keyframes; a clip that stays has none to make'),
    (dict(video=FRAMES, audio=SAMPLES), 'video without mask_video, and no sound to make'),
    (dict(video=FRAMES, sound=False), 'video without mask_video, and no sound to make'),
    (dict(num_frames=0, seconds=0.5, audio=SAMPLES), 'num_frames=0; nothing would be made'),
    (dict(video=FRAMES, mask_video=BOX & False), 'mask_video is the same everywhere'),
    (dict(ref_audio=SAMPLES, sound=False), 'ref_audio, and sound=False; leave out one of them'),
    (dict(audio=SAMPLES.repeat(2, 1)), r'audio is \(.*, 2\); its channels must be 1'),
    (dict(audio=SAMPLES[:4000]), 'audio lasts 0.5 s, and the clip 0.625 s; give a longer one'),
    (dict(audio=SAMPLES * np.nan), 'audio has samples that are no finite number'),
  ],
)
def test_what_does_not_go_together_is_told(made, fields, told):
  _, _, pipe = made
  with pytest.raises(ValueError, match=told):
    pipe(**(dict(prompt=PROMPT, num_inference_steps=1) | CLIP | fields))


def test_sounds_of_no_latent_are_told():
  """A codec that drops what is left over, as MMAudio's."""
  codec = types.SimpleNamespace(
    sample_rate=8000, audio_channels=1, latent_length=lambda samples: samples // 1024
  )
  size, codecs = Size(0, 0, 0, 8.0, 1000), AV(None, codec)
  with pytest.raises(ValueError, match='a sound of 1000 samples is shorter than one latent'):
    rules.check(rules.of_size(size, 0.125, codecs, (1, 1, 1)))
  with pytest.raises(ValueError, match='ref_audio has 1000 samples, which are less than one'):
    rules.check(rules.of_sounds(media.Given(ref_audio=SAMPLES[:1000]), size, codec))


def test_diffusers_saves_and_quantises_it(made, tmp_path):
  """The folder that it writes is one that it reads; layers are cast by diffusers' own hooks."""
  _, _, pipe = made
  pipe.save_pretrained(tmp_path)
  again = SkyReelsV4Pipeline.from_pretrained(tmp_path)
  assert again.config.sr4 == pipe.config.sr4
  again.set_progress_bar_config(disable=True)
  latents = AV((torch.randn(1, 2, 4, 4, 16),), (torch.randn(1, 20, 32),))
  ask = dict(num_inference_steps=2, latents=latents, output_type='latent')
  wanted = pipe(PROMPT, **ask, **CLIP).video_latents
  torch.testing.assert_close(again(PROMPT, **ask, **CLIP).video_latents, wanted)
  again.transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
  assert again.transformer.dual[0].video.tokens.qkv.weight.dtype == torch.float8_e4m3fn
  rough = again(PROMPT, **ask, **CLIP).video_latents
  assert 0 < float((rough - wanted).norm() / wanted.norm()) < 0.1
  assert isinstance(again.transformer, MMDiT)


def test_weights_come_as_they_are_needed(made, tmp_path):
  """What enable_sequential_cpu_offload does, which asks for a GPU."""
  _, _, pipe = made
  pipe.save_pretrained(tmp_path)
  again = SkyReelsV4Pipeline.from_pretrained(tmp_path)
  again.set_progress_bar_config(disable=True)
  accelerate.cpu_offload(again.transformer, 'cpu', offload_buffers=True)
  assert {w.device.type for w in again.transformer.parameters()} == {'meta'}
  latents = AV((torch.randn(1, 2, 4, 4, 16),), (torch.randn(1, 20, 32),))
  ask = dict(num_inference_steps=2, latents=latents, **CLIP)
  wanted, found = pipe(PROMPT, **ask), again(PROMPT, **ask)
  torch.testing.assert_close(found.video_latents, wanted.video_latents)
  torch.testing.assert_close(found.audio_latents, wanted.audio_latents)


def test_a_cache_of_diffusers_skips_layers(made, monkeypatch):
  """TaylorSeer of order 0: while layers rest, the velocity of each condition is its last."""
  _, _, pipe = made
  latents = AV((torch.randn(1, 2, 4, 4, 16),), (torch.randn(1, 20, 32),))
  ask = dict(num_inference_steps=9, latents=latents, output_type='latent', **CLIP)
  forward, calls, last = MMDiT.forward, [], {}

  def held(self, *args):
    step, condition = divmod(len(calls), 2)
    calls.append(step)
    if step in (0, 1, 2, 4, 7):  # The first three, and every third from 4 on.
      last[condition] = forward(self, *args)
    return last[condition]

  with monkeypatch.context() as patch:
    patch.setattr(MMDiT, 'forward', held)
    wanted = pipe(PROMPT, **ask)
  attend, ran = layers.Branch.self_attend, []
  monkeypatch.setattr(layers.Branch, 'self_attend', lambda *args: ran.append(1) or attend(*args))
  exact = pipe(PROMPT, **ask)
  full = len(ran)
  pipe.transformer.enable_cache(
    diffusers.TaylorSeerCacheConfig(
      cache_interval=3,
      max_order=0,
      taylor_factors_dtype=torch.float32,
      skip_predict_identifiers=[r'(dual|single)\.\d+'],
      cache_identifiers=[r'(video|audio)\.head'],
    )
  )
  for _ in range(2):  # The second call begins anew.
    ran.clear()
    cached = pipe(PROMPT, **ask)
    assert len(ran) == full * 5 // 9
    for name in ('video_latents', 'audio_latents'):
      torch.testing.assert_close(cached[name], wanted[name])
      assert not torch.allclose(cached[name], exact[name], atol=1e-2)
  pipe.transformer.disable_cache()
