"""SR4-World: text to video with sound, from nothing, without a download.

  python -m data_pipelines.world --out out/data --count 4096 --simple
  sr4 train --config configs/world.py --workdir out/world

`:demo` is what `make demo` trains in minutes on two cores.
"""
import ml_collections


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  if arg not in ('', 'demo'):
    raise ValueError(f'configs/world.py:{arg}: the variants are "" and "demo"')
  demo = arg == 'demo'
  return ml_collections.ConfigDict(dict(
      model=dict(size='tiny', width=128, heads=2, dual_layers=1, single_layers=3,
                 dtype='float32', remat='none'),
      video_codec=dict(name='dct', space_factor=4, channels=32),
      audio_codec=dict(name='mdct', sample_rate=16000, audio_channels=2, hop=256, bands=64),
      text=dict(name='bytes', width=64, tokens=16),
      data=dict(
          buckets=(dict(name='t2av', records=('train',), frames=17, height=32,
                        width=32, fps=16.0, rows=16),),
          root='out/demo/data', threads=1),
      flow=dict(drop=dict(text=0.1)),
      optimizer=dict(learning_rate=2e-3, warmup=50, decay='cosine', b2=0.99),
      step=dict(ema=0.995),
      train=dict(steps=2000, save_every=500, log_every=10),
      preview=dict(every=0, prompts=()),
      sample=dict(num_inference_steps=25, video_guidance_scale=3.0, audio_guidance_scale=3.0),
      mesh=dict(),
  ))
