"""MMAudio's VAE and vocoder: the names of diffusers' classes."""

import numpy as np

from sr4.convert import rules
from sr4.models import audio_vae
from sr4.models import mel
from sr4.models import vocoder

# The front end's window and filter bank, and the vocoder's filters, are no weights (`constants`).
UNUSED = ('mel_converter.*', '*.filter')


def vae(config: audio_vae.Config) -> rules.Table:
  """Names of `MMAudioVAE`, of what AudioVAE has beside its vocoder."""
  found = {'mean': 'vae.data_mean', 'std': 'vae.data_std'}
  last = len(config.multiples) - 1
  for side, levels, change in (('encoder', 'down', 'downsample'), ('decoder', 'up', 'upsample')):
    theirs = f'vae.{side}'
    found |= {
      side: theirs,
      f'{side}.head.conv': f'{theirs}.conv_out',
      f'{side}.head.gain': f'{theirs}.learnable_gain',
      f'{side}.middle.before': f'{theirs}.mid.block_1',
      f'{side}.middle.attention': f'{theirs}.mid.attn_1',
      f'{side}.middle.after': f'{theirs}.mid.block_2',
    }
    for i in range(len(config.multiples)):
      at = i if side == 'encoder' else last - i
      found[f'{side}.levels.{i}.change'] = f'{theirs}.{levels}.{at}.{change}'
      for j in range(config.blocks + 1):
        found[f'{side}.levels.{i}.blocks.{j}'] = f'{theirs}.{levels}.{at}.block.{j}'
  words = {'kernel': 'weight', 'shortcut': 'nin_shortcut', 'proj': 'proj_out'}
  names = rules.Names(found, words)

  def table(name: str, shape: tuple[int, ...]) -> rules.Tensor:
    if name in ('mean', 'std'):
      return rules.Tensor(names.name(name), (1, *shape, 1), (0, 1, 2))
    return names(name, shape)

  return table


def bigvgan(config: vocoder.Config) -> rules.Table:
  """Names of `MMAudioVocoder`."""
  n = len(config.windows)
  found = {
    'conv_in': 'conv_pre',
    'conv_out': 'conv_post',
    'snake_out': 'activation_post.act',
  }
  for i in range(len(config.rates)):
    found[f'stages.{i}.up'] = f'ups.{i}.0'
    for j in range(n):
      ours, theirs = f'stages.{i}.blocks.{j}', f'resblocks.{i * n + j}'
      found |= {f'{ours}.wide': f'{theirs}.convs1', f'{ours}.narrow': f'{theirs}.convs2'}
      for k in range(2 * len(config.dilations)):
        found[f'{ours}.snakes.{k}'] = f'{theirs}.activations.{k}.act'
  names = rules.Names(found, {'kernel': 'weight'})

  def table(name: str, shape: tuple[int, ...]) -> rules.Tensor:
    if name.endswith('.up.kernel'):  # Transposed ones are [in out window].
      window, inputs, outputs = shape
      return rules.Tensor(names.name(name), (inputs, outputs, window), (2, 0, 1))
    return names(name, shape)

  return table


def constants(config: audio_vae.Config) -> tuple[dict, dict]:
  """What the files of `MMAudioVAE` and of `MMAudioVocoder` have beside weights."""
  spectra = {
    'mel_converter.mel_basis': np.float32(mel.filters(config.sample_rate, config.bands)),
    'mel_converter.hann_window': np.float32(mel.window()),
  }
  v = config.vocoder
  blocks = range(len(v.rates) * len(v.windows))
  snakes = [f'resblocks.{i}.activations.{k}' for i in blocks for k in range(2 * len(v.dilations))]
  filters = ('upsample.filter', 'downsample.lowpass.filter')
  taps = np.float32(vocoder.lowpass())[None, None]
  return spectra, {f'{at}.{name}': taps for at in [*snakes, 'activation_post'] for name in filters}


def pages(config: audio_vae.Config) -> tuple[dict, dict]:
  """Fields of `MMAudioVAE` and of `MMAudioVocoder`."""
  v = config.vocoder
  vae_fields = dict(
    mel_bins=config.bands,
    latent_channels=config.channels,
    hidden_channels=config.width,
    channel_multipliers=list(config.multiples),
    layers_per_block=config.blocks,
    sample_rate=config.sample_rate,
    n_fft=mel.WINDOW,
    hop_length=mel.HOP,
    scaling_factor=config.scale,
  )
  voice_fields = dict(
    num_mels=v.bands,
    upsample_initial_channel=v.width,
    upsample_rates=list(v.rates),
    upsample_kernel_sizes=[2 * rate for rate in v.rates],
    resblock_kernel_sizes=list(v.windows),
    resblock_dilation_sizes=[list(v.dilations)] * len(v.windows),
  )
  return vae_fields, voice_fields
