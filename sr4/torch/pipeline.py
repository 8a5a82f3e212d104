"""Sampling with PyTorch from a folder that `sr4 export` wrote, in the ways of diffusers.

  pipe = SkyReelsV4Pipeline.from_pretrained('exported', torch_dtype=torch.bfloat16).to('cuda')
  out = pipe('a red circle bounces', num_frames=81, height=480, width=832)
  out.frames, out.audio

Offload, quantisation and attention backends are those of diffusers.  The numbers are sr4.pipeline's
from the same noise.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
from typing import ClassVar

import diffusers
from diffusers import utils
import numpy as np
import torch

from sr4.core.av import AV
from sr4.core.batch import Condition
from sr4.core.prompt import Prompt
from sr4.models.text import encoder
from sr4.torch import codecs
from sr4.torch import conditioning
from sr4.torch import guidance
from sr4.torch import media
from sr4.torch.mmdit import MMDiT


@dataclasses.dataclass
class SkyReelsV4Output(utils.BaseOutput):
  """What was made; None where the model makes none of it, or latents were asked for."""

  frames: np.ndarray | None  # uint8 [b T H W 3]
  audio: np.ndarray | None  # float32 [b n channels]
  video_latents: torch.Tensor | None  # fp32 [b t h w c]
  audio_latents: torch.Tensor | None  # fp32 [b l c]


class SkyReelsV4Pipeline(diffusers.DiffusionPipeline):
  """Text, pictures, clips, masks and sounds to a clip and its sound; of a Refiner, `refine`.

  Args:
    vae, audio_vae, vocoder: of codecs that have weights.
    sr4: the sections `video_codec`, `audio_codec` and `text` of the config of the training.
  """

  _optional_components: ClassVar = ['vae', 'audio_vae', 'vocoder']
  model_cpu_offload_seq = 'transformer->vae->audio_vae->vocoder'

  def __init__(
    self,
    transformer: MMDiT,
    scheduler: diffusers.FlowMatchEulerDiscreteScheduler,
    audio_scheduler: diffusers.FlowMatchEulerDiscreteScheduler,
    vae: diffusers.AutoencoderKLWan | None = None,
    audio_vae: diffusers.MMAudioVAE | None = None,
    vocoder: diffusers.MMAudioVocoder | None = None,
    sr4: dict | None = None,
  ):
    super().__init__()
    self.register_modules(
      transformer=transformer,
      scheduler=scheduler,
      audio_scheduler=audio_scheduler,
      vae=vae,
      audio_vae=audio_vae,
      vocoder=vocoder,
    )
    self.register_to_config(sr4=sr4)
    self.interrupt = False  # Set by a callback, it ends the sampling.

  @property
  def codecs(self) -> AV:
    told, device = self.config.sr4, self._execution_device
    return AV(
      codecs.video(self.vae, told, device),
      codecs.audio(self.audio_vae, self.vocoder, told, device),
    )

  @torch.no_grad()
  def __call__(
    self,
    prompt: str | Sequence[str] | None = None,
    negative_prompt: str | Sequence[str] | None = None,
    *,
    num_frames: int = 81,
    height: int = 480,
    width: int = 832,
    fps: float = 16.0,
    seconds: float = 0.0,
    sound: bool = True,
    image=None,
    last_image=None,
    video=None,
    mask_video=None,
    audio=None,
    ref_images: Sequence = (),
    ref_audio=None,
    num_inference_steps: int = 30,
    video_guidance_scale: float = 4.0,
    audio_guidance_scale: float = 4.0,
    modality_scale: float = 1.0,
    reference_scale: float = 1.0,
    prompt_embeds: tuple | None = None,
    negative_prompt_embeds: tuple | None = None,
    generator: torch.Generator | None = None,
    latents: AV | None = None,
    output_type: str = 'np',
    callback_on_step_end: Callable | None = None,
  ) -> SkyReelsV4Output:
    """One clip for each prompt.  Pictures and frames are uint8 [H W 3], [T H W 3], of its size.

    Args:
      num_frames: 0 is a sound alone, of so many `seconds`.
      image, last_image: the first and the last frame.
      video, mask_video: a clip, and [T H W] that is not 0 where it changes; without a mask it
        stays, and its sound is made.
      audio: float32 [n channels] in [-1, 1]: stays, and the picture is made.
      ref_images: pictures, ref_audio: a sound [n channels], that the prompt names.
      prompt_embeds: (embeddings [b m e], bool [b m]) in place of the prompt; so the negative.
      latents: AV of noise, [b t h w c] and [b l c], in place of the generator's.
      output_type: 'np', or 'latent'.
      callback_on_step_end: called with (pipeline, step, timestep, {'latents': AV}) after each step;
        what it returns as 'latents' goes on.  It may set `pipeline.interrupt`.
    Raises:
      ValueError: arguments that do not go together, or media of another size.
    """
    text, text_valid = prompt_embeds or self.encode_prompt(prompt)
    rows, (seen, heard), patch = len(text), self.codecs, self.transformer.patch
    sides, seconds = (num_frames, height, width), seconds or num_frames / fps
    samples = round(seconds * heard.sample_rate) if sound else 0
    media.check(self, sides, samples, image, last_image, video, mask_video, audio)
    frames, known = media.given(sides, rows, image, last_image, video, mask_video)
    sounds = media.fitted(audio, samples).expand(rows, -1, -1) if audio is not None else None
    whole = AV(video is not None and mask_video is None, audio is not None)
    clips = voices = ()
    if num_frames:
      if ref_images:
        clips = (conditioning.pictures(seen, media.pixels(np.stack(ref_images)), fps, patch, rows),)
      clips += (
        conditioning.clip(seen, sides, fps, patch, rows, frames, None if whole.video else known),
      )
    if sound:
      if ref_audio is not None:
        voices = (conditioning.voice(heard, media.tensor(ref_audio), rows),)
      voices += (conditioning.sound(heard, samples, rows),)
    there = torch.ones(rows, dtype=torch.bool)
    segments = AV(clips or None, voices or None)
    cond = self.placed(Condition(segments, text, text_valid, AV(there, there)))
    shapes = AV(
      clips[-1].known.shape[1:] if clips else None,
      (heard.latent_length(samples), heard.channels) if sound else None,
    )
    x = self.noise(rows, shapes, generator, latents)
    data = AV(
      seen.encode(frames) if whole.video else None,
      heard.encode(sounds) if whole.audio else None,
    )
    conditions = (
      (
        AV(video_guidance_scale, audio_guidance_scale),
        self.negative(cond, negative_prompt, negative_prompt_embeds),
      ),
      (AV(modality_scale, modality_scale), guidance.alone(cond)),
      (AV(reference_scale, reference_scale), guidance.bare(cond)),
    )
    velocity = guidance.guided(self.transformer, cond, conditions)
    x = self.denoise(velocity, x, num_inference_steps, data, callback_on_step_end)
    if clips and not whole.video:
      x = guidance.kept(cond, x)
    out = SkyReelsV4Output(None, None, *x)
    if output_type != 'latent':
      if num_frames:
        out.frames = media.to_uint8(seen.decode(x.video))
      if known is not None:
        out.frames = np.where(known[..., None].numpy(), media.to_uint8(frames), out.frames)
      if sound:
        made = heard.decode(x.audio, samples) if sounds is None else sounds
        out.audio = made.cpu().numpy()
    self.maybe_free_model_hooks()
    return out

  @torch.no_grad()
  def refine(
    self,
    prompt: str | Sequence[str] | None = None,
    *,
    video_latents: torch.Tensor,
    num_frames: int,
    height: int,
    width: int,
    fps: float = 32.0,
    keyframe_latents: torch.Tensor | None = None,
    keyframes_at: Sequence[int] = (),
    num_inference_steps: int = 8,
    strength: float = 1.0,
    video_guidance_scale: float = 1.0,
    prompt_embeds: tuple | None = None,
    generator: torch.Generator | None = None,
    latents: torch.Tensor | None = None,
    output_type: str = 'np',
    callback_on_step_end: Callable | None = None,
  ) -> SkyReelsV4Output:
    """Clips of a base model, larger and smoother, with the transformer of a Refiner.

    Args:
      video_latents: [b t h w c] of the base model's clips; keyframe_latents: [b k h w c], of its
        frames `keyframes_at`.
      num_frames, height, width, fps: of what is made.
      strength: of the noise it begins with; below 1 the enlarged clip is in it.
    """
    seen, low = self.codecs.video, video_latents.float().cpu()
    frames = 1 + (low.shape[1] - 1) * seen.time_factor
    if num_frames != 1 and (frames == 1 or (num_frames - 1) % (frames - 1)):
      raise ValueError(f'num_frames={num_frames} must be 1 + n * {frames - 1}, those of the clip')
    stride = (num_frames - 1) // max(frames - 1, 1)
    keys = None if keyframe_latents is None else keyframe_latents.float().cpu()
    picture = conditioning.refined(
      *(seen, (num_frames, height, width), fps, self.transformer.patch, low, keys),
      *(keyframes_at if keys is not None else None, stride),
    )
    text, text_valid = prompt_embeds or self.encode_prompt(prompt)
    there = torch.ones(len(text), dtype=torch.bool)
    cond = self.placed(Condition(AV((picture,), None), text, text_valid, AV(there, there)))
    x = self.noise(len(text), AV(picture.known.shape[1:], None), generator, AV(latents, None))
    known = cond.segments.video[0].known
    x = x._replace(video=(1 - strength) * known + strength * x.video)
    scale = video_guidance_scale
    velocity = guidance.guided(self.transformer, cond, ((AV(scale, scale), self.negative(cond)),))
    none = AV(None, None)
    x = self.denoise(velocity, x, num_inference_steps, none, callback_on_step_end, strength)
    x = guidance.kept(cond, x)
    frames = None if output_type == 'latent' else media.to_uint8(seen.decode(x.video))
    self.maybe_free_model_hooks()
    return SkyReelsV4Output(frames, None, x.video, None)

  def encode_prompt(self, prompt) -> tuple[torch.Tensor, torch.Tensor]:
    """(embeddings [b m e], bool [b m]) by the text encoder of the training.

    Raises:
      ValueError: no prompt; or the encoder has weights, which an export only refers to.
    """
    if prompt is None:
      raise ValueError('neither prompt nor prompt_embeds; give one of them')
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    text = encoder.bare(encoder.build_text(codecs.needed(self.config.sr4, 'text')))
    read, valid = text.read([Prompt(one) for one in prompts], None)
    if not isinstance(read, np.ndarray):
      raise ValueError(
        f'the text encoder {self.config.sr4["text"]["name"]!r} has weights, which are not in the '
        'folder: give prompt_embeds, such as sr4.models.text or transformers make them'
      )
    return torch.from_numpy(read), torch.from_numpy(valid)

  def negative(self, cond: Condition, prompt=None, embeds=None) -> Condition:
    """The condition with another prompt, or with none."""
    if prompt is None and embeds is None:
      return dataclasses.replace(cond, text_valid=torch.zeros_like(cond.text_valid))
    text, valid = embeds or self.encode_prompt(prompt)
    rows = len(cond.text)
    told = lambda x: x.expand(rows, *x.shape[1:]).to(cond.text.device)
    return dataclasses.replace(cond, text=told(text), text_valid=told(valid))

  def placed(self, x):
    """A tree of dataclasses, tuples and tensors, on the device of the transformer."""
    if isinstance(x, torch.Tensor):
      return x.to(self._execution_device)
    if isinstance(x, AV):
      return AV(*map(self.placed, x))
    if isinstance(x, tuple):
      return tuple(map(self.placed, x))
    if dataclasses.is_dataclass(x):
      fields = {f.name: self.placed(getattr(x, f.name)) for f in dataclasses.fields(x)}
      return dataclasses.replace(x, **fields)
    return x

  def noise(self, rows: int, shapes: AV, generator, latents: AV | None) -> AV:
    """fp32, the generator's where none is given."""

    def of(shape, given):
      if shape is None:
        return None
      if given is None:
        device = generator.device if generator else 'cpu'
        given = torch.randn(rows, *shape, generator=generator, device=device)
      if given.shape != (rows, *shape):
        raise ValueError(f'latents are {tuple(given.shape)}; here they must be {(rows, *shape)}')
      return given.float().to(self._execution_device)

    return AV(*map(of, shapes, latents or AV(None, None)))

  def denoise(self, velocity, x: AV, steps: int, data: AV, callback, strength: float = 1.0) -> AV:
    """From noise to data; a modality that is in `data` stays at t = 1.

    A scheduler's sigma is 1 - t, and the output it takes is minus our velocity.
    """
    schedulers, device = AV(self.scheduler, self.audio_scheduler), self._execution_device
    for scheduler in schedulers:
      scheduler.set_timesteps(sigmas=np.linspace(1, 0, steps + 1)[:-1], device=device)
      scheduler.sigmas = scheduler.sigmas * strength
      scheduler.timesteps = scheduler.timesteps * strength
    made = [m for m in range(2) if x[m] is not None and data[m] is None]
    x = AV(*(x[m] if data[m] is None else data[m].to(x[m].device) for m in range(2)))
    rows = len(next(z for z in x if z is not None))
    self.interrupt = False
    with self.progress_bar(total=steps) as bar:
      for i in range(steps):
        t = torch.ones(2, rows, device=device)
        for m in made:
          t[m] = 1 - schedulers[m].sigmas[i]
        v, later = velocity(x, AV(*t)), list(x)
        for m in made:
          at = schedulers[m].timesteps[i]
          (later[m],) = schedulers[m].step(-v[m], at, x[m], return_dict=False)
        x = AV(*later)
        if callback:
          told = callback(self, i, self.scheduler.timesteps[i], {'latents': x})
          x = (told or {}).get('latents', x)
        bar.update()
        if self.interrupt:
          break
    return x
