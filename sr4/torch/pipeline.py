"""Sampling with PyTorch from a folder that `sr4 export` wrote, in the ways of diffusers.

  pipe = SkyReelsV4Pipeline.from_pretrained('exported', torch_dtype=torch.bfloat16).to('cuda')
  out = pipe('a red circle bounces', num_frames=81, height=480, width=832)
  out.frames, out.audio

Offload, quantisation and attention backends are those of diffusers.  The numbers are sr4.pipeline's
from the same noise.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses

import numpy as np
import torch

from data_pipelines import media as media_lib
from sr4 import extension as extension_lib
from sr4.core.av import AV
from sr4.core.batch import Latents
from sr4.flow import segments
from sr4.torch import guidance
from sr4.torch import media
from sr4.torch import rules
from sr4.torch import sampler
from sr4.torch.sampler import SkyReelsV4Output


class SkyReelsV4Pipeline(sampler.Sampler):
  """Text, pictures, clips, masks and sounds to a clip and its sound.

  With the transformer of a Refiner, `refine` makes such clips larger; `extend` goes on from one.
  """

  @torch.no_grad()
  def __call__(
    self,
    prompt: str | Sequence[str] | None = None,
    negative_prompt: str | Sequence[str] | None = None,
    audio_negative_prompt: str | Sequence[str] | None = None,
    *,
    num_frames: int = 81,
    height: int = 480,
    width: int = 832,
    fps: float = 16.0,
    seconds: float = 0.0,
    sound: bool = True,
    num_keyframes: int = 0,
    keyframe_scale: int = 2,
    image=None,
    last_image=None,
    mid_images: Mapping | None = None,
    video=None,
    mask_video=None,
    audio=None,
    mask_audio=None,
    ref_images: Sequence = (),
    ref_video=None,
    ref_audio=None,
    num_inference_steps: int | None = None,
    video_guidance_scale: float | None = None,
    audio_guidance_scale: float | None = None,
    modality_scale: float | None = None,
    reference_scale: float | None = None,
    guidance_rescale: float | None = None,
    prompt_embeds: tuple | None = None,
    negative_prompt_embeds: tuple | None = None,
    audio_negative_prompt_embeds: tuple | None = None,
    generator: torch.Generator | None = None,
    latents: AV | None = None,
    output_type: str = 'np',
    callback_on_step_end: Callable | None = None,
  ) -> SkyReelsV4Output:
    """One clip for each prompt, all with the same media: uint8 [H W 3] and [T H W 3] of its size.

    What is given comes back as it was.

    Args:
      num_frames: 0 is a sound alone, of so many `seconds`.
      num_keyframes: frames that are made once more, `keyframe_scale` times as high and wide, for a
        Refiner.  Pictures and frames that are given must then be as large as these.
      image, last_image: the first and the last frame; mid_images: {frame: picture} between them.
      video, mask_video: a clip, and [T H W] that is not 0 where it changes; without a mask it
        stays, and its sound is made.
      audio, mask_audio: float32 [n channels] in [-1, 1], and [n] that is not 0 where it changes,
        all but a beginning or an end; without a mask it stays, and the picture is made.
      ref_images: pictures, ref_video: a clip of any length 1 + 4 n, ref_audio: a sound
        [n channels]: what the prompt names.
      audio_negative_prompt: for the sound; as negative_prompt where it is not given.
      num_inference_steps, scales, guidance_rescale: where not given, as the training samples.
      prompt_embeds: (embeddings [b m e], bool [b m]) in place of the prompt; so the negative ones.
      latents: AV of tuples of noise in place of the generator's: ([b t h w c],) and ([b l c],), and
        [b k h*scale w*scale c] of keyframes behind the clip's.
      output_type: 'np', or 'latent'.
      callback_on_step_end: called with (pipeline, step, timestep, {'latents': AV}) after each step;
        what it returns as 'latents' goes on.  It may set `pipeline.interrupt`.
    Raises:
      ValueError: arguments that do not go together, or media of another size.
    """
    rules.check(rules.of_output(output_type))
    how = self.sampling(
      num_inference_steps=num_inference_steps,
      video_guidance_scale=video_guidance_scale,
      audio_guidance_scale=audio_guidance_scale,
      modality_scale=modality_scale,
      reference_scale=reference_scale,
      guidance_rescale=guidance_rescale,
    )
    given = media.Given(
      *(image, last_image, mid_images or {}, video, mask_video, audio, mask_audio),
      *(ref_images, ref_video, ref_audio),
    )
    size = self.size(num_frames, height, width, fps, seconds, sound, num_keyframes, keyframe_scale)
    at = segments.keyframes_at(size, self.codecs.video.time_factor)
    cond, clips = self._told(prompt, prompt_embeds, given, size, at)
    away = self.negative('negative_prompt', cond, negative_prompt, negative_prompt_embeds)
    heard = audio_negative_prompt, audio_negative_prompt_embeds
    if any(told is not None for told in heard):
      heard = self.negative('audio_negative_prompt', cond, *heard)
    else:
      heard = away
    alone, bare = guidance.alone(cond), guidance.bare(cond)
    conditions = (
      (AV(how['video_guidance_scale'], how['audio_guidance_scale']), AV(away, heard)),
      (AV(*[how['modality_scale']] * 2), AV(alone, alone)),
      (AV(*[how['reference_scale']] * 2), AV(bare, bare)),
    )
    velocity = guidance.guided(self.transformer, cond, conditions, how['guidance_rescale'])
    x = self._noise(cond, size, generator, latents)
    x, velocity = self._begun(x, velocity, given, clips)
    count = how['num_inference_steps']
    x = self._denoised(velocity, x, count, given.clean, callback_on_step_end)
    if not given.clean.video:
      x = guidance.kept(cond, x)
    return self._output(x, size, clips, given, output_type)

  @torch.no_grad()
  def refine(
    self,
    prompt: str | Sequence[str] | None = None,
    negative_prompt: str | Sequence[str] | None = None,
    *,
    video_latents: torch.Tensor,
    num_frames: int,
    height: int,
    width: int,
    fps: float = 32.0,
    keyframe_latents: torch.Tensor | None = None,
    keyframes_at: Sequence[int] = (),
    image=None,
    last_image=None,
    mid_images: Mapping | None = None,
    video=None,
    mask_video=None,
    ref_images: Sequence = (),
    ref_video=None,
    num_inference_steps: int | None = None,
    strength: float | None = None,
    video_guidance_scale: float | None = None,
    reference_scale: float | None = None,
    prompt_embeds: tuple | None = None,
    negative_prompt_embeds: tuple | None = None,
    generator: torch.Generator | None = None,
    latents: AV | None = None,
    output_type: str = 'np',
    callback_on_step_end: Callable | None = None,
  ) -> SkyReelsV4Output:
    """Clips of a base model, larger and smoother, with the transformer of a Refiner.

    Args:
      video_latents: [b t h w c] of the base model's clips; keyframe_latents: [b k h w c], of its
        frames `keyframes_at`, which are spread evenly where none are named.
      num_frames, height, width, fps: of what is made, and of what is given of it.
      strength: of the noise it begins with; below 1 the enlarged clip is in it.
      num_inference_steps, scales, strength: where not given, as the training samples.
    """
    rules.check(rules.of_output(output_type))
    how = self.sampling(
      num_inference_steps=num_inference_steps,
      strength=strength,
      video_guidance_scale=video_guidance_scale,
      reference_scale=reference_scale,
    )
    given = media.Given(
      *(image, last_image, mid_images or {}, video, mask_video),
      ref_images=ref_images,
      ref_video=ref_video,
    )
    size = self.size(num_frames, height, width, fps, sound=False)
    low, at = self._low(size, video_latents, keyframe_latents, keyframes_at)
    size = dataclasses.replace(size, low=low)
    here = lambda z: None if z is None else torch.as_tensor(z).cpu()
    has = Latents(low=here(video_latents), keyframes=here(keyframe_latents))
    cond, clips = self._told(prompt, prompt_embeds, given, size, at, has)
    away = self.negative('negative_prompt', cond, negative_prompt, negative_prompt_embeds)
    bare = guidance.bare(cond)
    conditions = (
      (AV(how['video_guidance_scale'], 1.0), AV(away, away)),
      (AV(how['reference_scale'], 1.0), AV(bare, bare)),
    )
    velocity = guidance.guided(self.transformer, cond, conditions)
    x = self._noise(cond, size, generator, latents)
    known, strength = cond.segments.video[-1].known, how['strength']
    x = x._replace(video=((1 - strength) * known + strength * x.video[0],))
    count = how['num_inference_steps']
    x = self._denoised(velocity, x, count, given.clean, callback_on_step_end, strength)
    return self._output(guidance.kept(cond, x), size, clips, given, output_type)

  def extend(
    self,
    prompt: str | Sequence[str] | None = None,
    *,
    video,
    audio=None,
    back: bool = False,
    num_frames: int = 81,
    fps: float = 16.0,
    **asked,
  ) -> SkyReelsV4Output:
    """A clip with what comes after it, or before: a quarter of the new one is known from it.

    Args:
      video: uint8 [T H W 3] at `fps`; audio: float32 [n channels], its sound.
      num_frames: of the new clip; asked: as for a call.
    Returns:
      Both in one, frames and sound; the latents are those of the new clip.
    """
    rules.check(rules.of_frames('video', video))
    codec, (height, width) = self.codecs.audio, np.shape(video)[1:3]
    size = self.size(num_frames, height, width, fps, sound=asked.get('sound', True))
    length = media_lib.audio_length(len(video), fps, codec.sample_rate)
    silent = self.transformer.audio is None
    rules.check(rules.of_extension(length, audio, size, codec, silent))
    if audio is not None:  # As long as the picture.
      audio = media.fitted(audio, length)
    source = media_lib.Clip(np.asarray(video), fps, audio, codec.sample_rate)
    extension = extension_lib.Extension('video', back)
    known = extension.known(size, self.codecs.video.time_factor)
    if len(video) < known.sum():
      raise ValueError(
        f'video has {len(video)} frames, and a clip of {num_frames} goes on from {known.sum()}; '
        'give a longer one, or ask for a shorter'
      )
    changes = np.broadcast_to(~known[:, None, None], (num_frames, height, width))
    given = dict(video=extension.shown(source, known), mask_video=changes)
    if audio is not None and size.samples:
      samples, heard = extension.heard(source, size, known)
      given |= dict(audio=samples, mask_audio=~heard)
    sides = dict(num_frames=num_frames, height=height, width=width, fps=fps)
    out = self(prompt, **sides, **given, **asked)
    if out.frames is None:
      return out
    each = out.audio if out.audio is not None else [None] * len(out.frames)
    made = [media_lib.Clip(x, fps, y, codec.sample_rate) for x, y in zip(out.frames, each)]
    whole = [extension.joined(source, clip, known) for clip in made]
    out.frames = np.stack([clip.frames for clip in whole])
    if out.audio is not None:
      out.audio = np.stack([clip.samples for clip in whole])
    return out
