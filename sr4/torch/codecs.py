"""Codecs of an exported folder as the sampler sees them: channels last, latents normalised.

Those with weights are diffusers' classes; those without are ours, computed on the host.
"""

import dataclasses

import jax
import numpy as np
import torch

from sr4.models import codec
from sr4.models import frames as frames_lib


@dataclasses.dataclass(frozen=True)
class Wan:
  """`AutoencoderKLWan`: frames [b T H W 3] in [-1, 1] <-> latents [b t h w c]."""

  vae: torch.nn.Module
  device: torch.device  # where it computes; offloaded, its weights lie elsewhere

  @property
  def time_factor(self) -> int:
    return self.vae.config.scale_factor_temporal

  @property
  def space_factor(self) -> int:
    return self.vae.config.scale_factor_spatial

  @property
  def channels(self) -> int:
    return self.vae.config.z_dim

  def scale(self):
    """Mean and standard deviation of the latents of each channel."""
    c = self.vae.config
    return (torch.tensor(x, device=self.device) for x in (c.latents_mean, c.latents_std))

  def encode(self, frames):
    mean, std = self.scale()
    x = frames.to(self.device, self.vae.dtype).movedim(-1, 1)
    return (self.vae.encode(x).latent_dist.mode().float().movedim(1, -1) - mean) / std

  def decode(self, latents):
    mean, std = self.scale()
    z = (latents.to(self.device) * std + mean).movedim(-1, 1).to(self.vae.dtype)
    return self.vae.decode(z).sample.float().movedim(1, -1).clamp(-1, 1)


@dataclasses.dataclass(frozen=True)
class MMAudio:
  """`MMAudioVAE` and `MMAudioVocoder`: samples [b n 1] <-> latents [b l c]."""

  vae: torch.nn.Module
  vocoder: torch.nn.Module
  device: torch.device

  audio_channels = 1

  @property
  def channels(self) -> int:
    return self.vae.config.latent_channels

  @property
  def sample_rate(self) -> int:
    return self.vae.config.sample_rate

  @property
  def rate(self) -> float:
    return self.sample_rate / (2 * self.vae.config.hop_length)

  def latent_length(self, samples: int) -> int:
    return samples // self.vae.config.hop_length // 2

  def encode(self, samples):
    vae = self.vae.float()  # No spectrum is taken in half precision.
    z = vae.encode(samples[..., 0].to(self.device, torch.float32)).latent_dist.mode()
    return z.movedim(1, -1) * self.vae.config.scaling_factor

  def decode(self, latents, samples: int):
    z = (latents.to(self.device) / self.vae.config.scaling_factor).movedim(-1, 1)
    mel = self.vae.decode(z.to(self.vae.dtype)).sample.to(self.vocoder.dtype)
    x = self.vocoder(mel).sample.float().movedim(1, -1)
    return torch.nn.functional.pad(x, (0, 0, 0, max(0, samples - x.shape[1])))[:, :samples]


class Ours:
  """A codec of sr4 without weights, of this config."""

  def __init__(self, build, config: dict):
    self.codec = build(config)
    if jax.tree.leaves(self.codec):
      raise ValueError(f'{config["name"]} has weights, and the folder has no component with them')

  def __getattr__(self, name: str):
    if name == 'codec':
      raise AttributeError(name)
    return getattr(self.codec, name)

  def encode(self, media):
    return self.run(self.codec.encode, media)

  def decode(self, latents, samples: int | None = None):
    how = {} if samples is None else {'samples': samples}
    return self.run(lambda z: self.codec.decode(z, **how), latents)

  def run(self, function, x):
    with jax.default_device(jax.devices('cpu')[0]):
      found = jax.jit(function)(np.asarray(x.detach().float().cpu()))
    return torch.from_numpy(np.array(found)).to(x.device)


def video(vae, config: dict | None, device):
  if vae is not None:
    return Wan(vae, device)
  return Ours(codec.build_video, needed(config, 'video_codec'))


def audio(vae, vocoder, config: dict | None, device):
  if vae is not None:
    return MMAudio(vae, vocoder, device)
  return Ours(codec.build_audio, needed(config, 'audio_codec'))


def needed(config: dict | None, section: str) -> dict:
  if not config or section not in config:
    raise ValueError(
      f'neither a component nor sr4={{{section!r}: ...}}; load what `sr4 export` wrote'
    )
  return config[section]


def black(codec, frames: int, height: int, width: int):
  """Latents fp32 [t h w c] of black frames, which stand for unknown ones."""
  if isinstance(codec, Ours):
    return torch.from_numpy(np.array(codec.codec.black(frames, height, width)))
  return codec.encode(torch.full((1, frames, height, width, 3), frames_lib.BLACK))[0]
