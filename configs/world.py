"""SR4-World: text to video with sound, learnt from nothing, without a download.

  python -m data_pipelines.world --simple --count 100000 --out out/world/data/world \
      --frames 33 --height 64 --width 64 --fps 16
  sr4 train --config configs/world.py --workdir out/world

`:demo` is what `make demo` trains in minutes on two cores: 17 frames of 32x32.  `:demo,real` mixes
in the records of real clips in data.root/real.
"""

import ml_collections


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  variants = set(filter(None, arg.split(',')))
  if variants - {'demo', 'real'}:
    raise ValueError(f"configs/world.py:{arg}: the variants are 'demo' and 'demo,real'")
  config = ml_collections.ConfigDict(
    dict(
      model=dict(size='tiny', dtype='bfloat16', remat='full'),
      video_codec=dict(name='dct', space_factor=4, channels=32),
      audio_codec=dict(name='mdct', sample_rate=16000, audio_channels=2, hop=256, bands=64),
      text=dict(name='bytes', width=128, tokens=16),
      data=dict(root='out/world/data', buckets=dict(world=bucket('world', 33, 64, 32))),
      flow=dict(drop=dict(text=0.1)),
      optimizer=dict(learning_rate=5e-4, warmup=1000, decay='cosine', b2=0.99),
      step=dict(ema=0.999),
      train=dict(steps=100_000, save_every=2000, log_every=50),
      preview=dict(every=10_000, prompts=('a red circle bounces', 'a blue square bounces')),
      sample=dict(num_inference_steps=50, video_guidance_scale=3.0, audio_guidance_scale=3.0),
      mesh=dict(),
    )
  )
  if 'demo' in variants:
    demo(config)
  if 'real' in variants:
    config.data.buckets.real = bucket('real', 17, 32, 16, 0.02)
  return config


def bucket(folder: str, frames: int, side: int, rows: int, weight: float = 1.0) -> dict:
  return dict(
    records=(folder,),
    frames=frames,
    height=side,
    width=side,
    fps=16.0,
    rows=rows,
    weight=weight,
  )


def demo(config: ml_collections.ConfigDict):
  config.model.update(width=128, heads=2, dual_layers=1, single_layers=3, dtype='float32')
  config.model.remat = 'none'
  config.video_codec.channels = 16
  config.audio_codec.audio_channels = 1
  config.text.update(width=64, tokens=8)
  config.data.root = 'out/demo/data'
  config.data.buckets.world = bucket('world', 17, 32, 16)
  config.optimizer.update(learning_rate=2e-3, warmup=50)
  config.step.ema = 0.995
  config.train.update(steps=2600, save_every=500, keep=6, log_every=20, max_seconds=600)
  config.preview.every = 0
  config.sample.num_inference_steps = 25
