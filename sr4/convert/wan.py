"""The Wan video VAEs: diffusers' names, and those of the original release."""

from sr4.convert import files
from sr4.convert import rules
from sr4.models import video_vae


def table(config: video_vae.Config, source: files.Source) -> rules.Table:
  """Of the names that a source has."""
  return original(config) if 'encoder.conv1.weight' in source.places else diffusers(config)


# Convolutions of single frames have no time axis there.
WINDOWS = {r'\.change\.space\.kernel$|\.attention\.(qkv|proj)\.kernel$': 2}
VECTORS = {r'attention\.norm\.gamma$': 2, r'\.gamma$': 3}


def diffusers(config: video_vae.Config) -> rules.Table:
  """Names of `AutoencoderKLWan`."""
  found = {
    'encoder.moments': 'quant_conv',
    'decoder.latents': 'post_quant_conv',
    **{
      f'{side}.middle.{ours}': f'{side}.mid_block.{theirs}'
      for side in ('encoder', 'decoder')
      for ours, theirs in (
        ('before', 'resnets.0'),
        ('attention', 'attentions.0'),
        ('attention.qkv', 'attentions.0.to_qkv'),
        ('after', 'resnets.1'),
      )
    },
    'encoder': 'encoder',
    'decoder': 'decoder',
  }
  n = config.blocks + 1
  for i in range(len(config.multiples)):
    for j in range(n):
      down = f'{i}.resnets.{j}' if config.shortcuts else str(i * n + j)
      found[f'encoder.stages.{i}.blocks.{j}'] = f'encoder.down_blocks.{down}'
      found[f'decoder.stages.{i}.blocks.{j}'] = f'decoder.up_blocks.{i}.resnets.{j}'
    down = f'{i}.downsampler' if config.shortcuts else str(i * n + config.blocks)
    up = f'{i}.upsampler' if config.shortcuts else f'{i}.upsamplers.0'
    found |= change(f'encoder.stages.{i}.change', f'encoder.down_blocks.{down}')
    found |= change(f'decoder.stages.{i}.change', f'decoder.up_blocks.{up}')
  return rules.Names(found, {'kernel': 'weight', 'shortcut': 'conv_shortcut'}, WINDOWS, VECTORS)


def original(config: video_vae.Config) -> rules.Table:
  """Names of the release of Wan2.1 (Wan2.1_VAE, as safetensors)."""
  if config.shortcuts:
    raise rules.ConvertError(
      "the original names are known of Wan2.1 alone; give diffusers' folder of Wan2.2's VAE"
    )
  found = {'encoder.moments': 'conv1', 'decoder.latents': 'conv2'}
  inside = {'norm1': 0, 'conv1': 2, 'norm2': 3, 'conv2': 6}

  def residual(ours: str, theirs: str):
    found.update({f'{ours}.{name}': f'{theirs}.residual.{i}' for name, i in inside.items()})
    found[f'{ours}.shortcut'] = f'{theirs}.shortcut'

  for side in ('encoder', 'decoder'):
    found[f'{side}.conv_in'] = f'{side}.conv1'
    found[f'{side}.norm_out'], found[f'{side}.conv_out'] = f'{side}.head.0', f'{side}.head.2'
    residual(f'{side}.middle.before', f'{side}.middle.0')
    residual(f'{side}.middle.after', f'{side}.middle.2')
    found[f'{side}.middle.attention'] = f'{side}.middle.1'
    found[f'{side}.middle.attention.qkv'] = f'{side}.middle.1.to_qkv'
    down = side == 'encoder'
    blocks, name = config.blocks + (not down), 'downsamples' if down else 'upsamples'
    for i in range(len(config.multiples)):
      for j in range(blocks):
        residual(f'{side}.stages.{i}.blocks.{j}', f'{side}.{name}.{i * (blocks + 1) + j}')
      at = f'{side}.{name}.{i * (blocks + 1) + blocks}'
      found |= change(f'{side}.stages.{i}.change', at)
  return rules.Names(found, {'kernel': 'weight'}, WINDOWS, VECTORS)


def change(ours: str, theirs: str) -> dict[str, str]:
  return {f'{ours}.space': f'{theirs}.resample.1', f'{ours}.time': f'{theirs}.time_conv'}


def page(config: video_vae.Config) -> dict:
  """Fields of `AutoencoderKLWan`."""
  cells = 3 * config.patch**2
  return dict(
    base_dim=config.width,
    decoder_base_dim=config.decoder_width or None,
    z_dim=config.channels,
    dim_mult=list(config.multiples),
    num_res_blocks=config.blocks,
    temperal_downsample=list(config.halved),
    latents_mean=list(config.mean or (0.0,) * config.channels),
    latents_std=list(config.std or (1.0,) * config.channels),
    is_residual=config.shortcuts,
    in_channels=cells,
    out_channels=cells,
    patch_size=config.patch if config.patch > 1 else None,
    scale_factor_temporal=config.time_factor,
    scale_factor_spatial=config.space_factor,
  )
