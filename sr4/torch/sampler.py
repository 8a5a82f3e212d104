"""How clips are made in torch, whatever is asked (sr4/torch/pipeline.py)."""

import dataclasses
from typing import ClassVar

import diffusers
from diffusers import utils
import numpy as np
import torch

from sr4 import extension
from sr4 import steps as steps_lib
from sr4.core.av import AV
from sr4.core.batch import Clips
from sr4.core.batch import Condition
from sr4.core.batch import Latents
from sr4.core.batch import Low
from sr4.core.batch import Size
from sr4.core.prompt import Prompt
from sr4.flow import segments
from sr4.models.text import encoder
from sr4.torch import codecs
from sr4.torch import conditioning
from sr4.torch import guidance
from sr4.torch import media
from sr4.torch import rules
from sr4.torch import steps
from sr4.torch.mmdit import MMDiT


@dataclasses.dataclass
class SkyReelsV4Output(utils.BaseOutput):
  """What was made; None where the model makes none of it, or latents were asked for."""

  frames: np.ndarray | None = None  # uint8 [b T H W 3]
  audio: np.ndarray | None = None  # float32 [b n channels]
  keyframes: np.ndarray | None = None  # uint8 [b k H*scale W*scale 3]
  video_latents: torch.Tensor | None = None  # fp32 [b t h w c]
  audio_latents: torch.Tensor | None = None  # fp32 [b l c]
  keyframe_latents: torch.Tensor | None = None  # fp32 [b k h*scale w*scale c]


class Sampler(diffusers.DiffusionPipeline):
  """The components of a folder, and the way from what is given to what is made.

  Args:
    vae, audio_vae, vocoder: of codecs that have weights.
    sr4: the sections `video_codec`, `audio_codec`, `text` and `sample` of the config of the
      training.
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

  def size(
    self,
    frames: int,
    height: int,
    width: int,
    fps: float,
    seconds: float = 0.0,
    sound: bool = True,
    keyframes: int = 0,
    keyframe_scale: int = 1,
  ) -> Size:
    """The static shape of a clip, as sr4.models.system.System.size."""
    samples, codecs = 0, self.codecs
    if sound and self.transformer.audio is not None:
      length = frames / fps if frames and fps else seconds
      samples = round(length * codecs.audio.sample_rate)
    scale = keyframe_scale if keyframes else 1
    size = Size(frames, height, width, fps, samples, keyframes, scale)
    rules.check(rules.of_size(size, seconds, codecs, self.transformer.patch))
    return size

  def sampling(self, **asked) -> dict:
    """How to sample; what is None is as the training samples."""
    trained = dataclasses.asdict(steps_lib.Config()) | (self.config.sr4 or {}).get('sample', {})
    return {name: trained[name] if x is None else x for name, x in asked.items()}

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

  def negative(self, name: str, cond: Condition, prompt=None, embeds=None) -> Condition:
    """The condition with another prompt, or with none; `name`: of its argument."""
    if prompt is None and embeds is None:
      return guidance.untold(cond)
    text, valid = self._read(name, prompt, embeds)
    rows = len(cond.text)
    if len(text) not in (1, rows):
      raise ValueError(f'{len(text)} of {name} for {rows} prompts; give one, or one for each')
    told = lambda x: x.expand(rows, *x.shape[1:]).to(cond.text.device)
    return dataclasses.replace(cond, text=told(text), text_valid=told(valid))

  def _read(self, name: str, prompt, embeds) -> tuple[torch.Tensor, torch.Tensor]:
    """(embeddings [b m e], bool [b m]) of prompts, or as they are given."""
    rules.check(rules.of_text(name, prompt, embeds, self.transformer.config.text_width))
    text, valid = embeds if embeds is not None else self.encode_prompt(prompt)
    return torch.as_tensor(text), torch.as_tensor(valid).bool()

  def _told(self, prompt, embeds, given: media.Given, size: Size, at, has: Latents = Latents()):
    """(what the model is told, on its device; what was given, as one row)."""
    codecs, patch, silent = self.codecs, self.transformer.patch, self.transformer.audio is None
    rules.check(rules.of_given(given, size, codecs, silent))
    text, valid = self._read('prompt', prompt, embeds)
    rules.check(rules.of_references(prompt, given))
    if has.low is not None and len(has.low) not in (1, len(text)):
      raise ValueError(f'video_latents are of {len(has.low)} clips, and {len(text)} prompts given')
    clips = given.clips(size, at, text, valid, has)
    cond = conditioning.condition(codecs, size, patch, clips)
    return steps.placed(cond, self._execution_device), clips

  def _low(self, size: Size, latents, keyframes, at) -> tuple[Low, tuple[int, ...] | None]:
    """The low clip of a Refiner, and which of its frames are keyframes; None: none is."""
    codec, silent = self.codecs.video, self.transformer.audio is None
    rules.check(rules.of_low(latents, keyframes, at, size, codec, silent))
    _, t, h, w, _ = latents.shape
    frames = 1 + (t - 1) * codec.time_factor
    low = Low(frames, h * codec.space_factor, w * codec.space_factor)
    if keyframes is None:
      return low, None
    like = dataclasses.replace(size, frames=frames, keyframes=keyframes.shape[1])
    return low, tuple(at) or segments.keyframes_at(like, codec.time_factor)

  def _noise(self, cond: Condition, size: Size, generator, given: AV | None) -> AV:
    heard = self.codecs.audio
    sound = (heard.latent_length(size.samples), heard.channels) if size.samples else None
    x = steps.noise(len(cond.text), steps.shapes(cond, sound), generator, given)
    return steps.placed(x, self._execution_device)

  def _begun(self, x: AV, velocity, given: media.Given, clips: Clips):
    """(latents, velocity) where a modality is given whole, or a part of the sound is."""
    seen, heard = self.codecs
    rows, device = len(clips.text), self._execution_device
    own = lambda z: z.to(device).expand(rows, *z.shape[1:])
    if given.clean.video:
      x = x._replace(video=(own(seen.encode(media.pixels(clips.frames))),))
    if clips.samples is None:
      return x, velocity
    data = own(heard.encode(clips.samples))
    if given.clean.audio:
      return x._replace(audio=(data,)), velocity
    where, there = steps_lib.holding(heard, clips.heard, data, x.audio[0])

    def held(x: AV, t: AV) -> AV:
      v = velocity(x, t)
      return v._replace(audio=(torch.where(where.to(device), there, v.audio[0]),))

    return x, held

  def _denoised(self, velocity, x: AV, count: int, clean: AV, callback, strength=1.0) -> AV:
    schedulers = AV(self.scheduler, self.audio_scheduler)
    steps.begin(schedulers, count, strength, self._execution_device)
    self.interrupt = False
    self.transformer._reset_stateful_cache()  # Of a call that an error ended.
    shapes = AV(*(z and tuple(tuple(part.shape) for part in z) for z in x))
    with self.progress_bar(total=count) as bar:
      for i in range(count):
        x = steps.advance(velocity, schedulers, i, x, clean)
        if callback:
          told = callback(self, i, self.scheduler.timesteps[i], {'latents': x}) or {}
          x = steps.placed(steps.checked(told.get('latents', x), shapes), self._execution_device)
        bar.update()
        if self.interrupt:
          break
    return x

  def _output(self, x: AV, size: Size, clips: Clips, given: media.Given, output_type: str):
    """What was made, and over it what was given."""
    latents = dict(zip(('video_latents', 'keyframe_latents'), x.video or ()))
    latents |= dict(zip(('audio_latents',), x.audio or ()))
    shown = {} if output_type == 'latent' else self._decoded(size, **latents)
    if 'frames' in shown and clips.frames is not None:
      known = True if clips.known is None else clips.known[..., None].numpy()
      shown['frames'] = np.where(known, clips.frames.numpy(), shown['frames'])
    if 'audio' in shown and clips.samples is not None:
      sound = clips.samples[0].numpy()
      if given.clean.audio:
        shown['audio'] = np.broadcast_to(sound, shown['audio'].shape)
      else:
        heard, rate = clips.heard[0].numpy(), self.codecs.audio.sample_rate
        shown['audio'] = extension.faded(sound, shown['audio'], heard, rate)
    self.maybe_free_model_hooks()
    return SkyReelsV4Output(**shown, **latents)

  def _decoded(self, size: Size, video_latents=None, keyframe_latents=None, audio_latents=None):
    """The media of latents, by the names of the output."""
    (seen, heard), shown = self.codecs, {}
    if video_latents is not None:
      shown['frames'] = media.to_uint8(seen.decode(video_latents))
    if keyframe_latents is not None:
      pictures = [seen.decode(z[:, None]) for z in keyframe_latents.unbind(1)]
      shown['keyframes'] = media.to_uint8(torch.cat(pictures, 1))
    if audio_latents is not None:
      shown['audio'] = heard.decode(audio_latents, size.samples).cpu().numpy()
    return shown
