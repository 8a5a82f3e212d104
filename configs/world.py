"""SR4-World: text to video with sound, learnt from nothing, without a download.

  python -m data_pipelines.world --simple --count 100000 --out out/world/data/world \\
      --frames 17 --height 32 --width 32 --fps 16 --sample_rate 16000 --channels 1
  sr4 train --config configs/world.py --workdir out/world
  sr4 evaluate --checkpoint out/world/checkpoints --out out/world

A night on two cores: 100,000 steps at 4 a second.  docs/world.md has its trend so far.
`:demo` is the same model as `make demo` trains it in minutes; `:demo,real` mixes in the records of
real clips in data.root/real.  `:tasks` learns all that a model may be given: frames, a region, a
sound, a picture of the object.  The cascade of section 4.5 is `:low`, which makes small clips with
two large keyframes, and `:refiner`, which makes these twice as large and twice as fast.  That is
dense, since sparse attention saves nothing on a CPU; `:refiner,sparse` goes on from it.

  python -m data_pipelines.world --config configs/world.py:low --count 8192    # and each variant
  sr4 train --config configs/world.py:low --workdir out/low
  sr4 sample --checkpoint out/low/checkpoints --refine out/refiner/checkpoints --prompt ... --out o
"""

import ml_collections


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  variants = set(filter(None, arg.split(',')))
  if variants - {'demo', 'real', 'tasks', 'low', 'refiner', 'sparse'}:
    raise ValueError(
      "the variants of configs/world.py are '', 'demo', 'demo,real', 'tasks', 'low', 'refiner' and "
      "'refiner,sparse'"
    )
  config = ml_collections.ConfigDict(
    dict(
      model=dict(
        size='tiny',
        width=128,
        heads=2,
        dual_layers=1,
        single_layers=3,
        dtype='float32',
        remat='none',
      ),
      # A token should have fewer numbers than the model is wide: a velocity passes through whole.
      video_codec=dict(name='dct', space_factor=4, channels=16),
      audio_codec=dict(name='mdct', sample_rate=16000, audio_channels=1, hop=256, bands=64),
      text=dict(name='bytes', width=64, tokens=8),
      data=dict(root='out/world/data', buckets=dict(world=bucket('world', 16)), threads=1),
      flow=dict(drop=dict(text=0.1, modality=0.1), independent_times=0.3),
      optimizer=dict(learning_rate=1e-3, warmup=500, decay='cosine', b2=0.99),
      step=dict(ema=0.999),
      train=dict(steps=100_000, save_every=2000, keep=60, log_every=50),
      preview=dict(every=10_000, prompts=('a red circle bounces', 'a blue square bounces')),
      sample=dict(
        num_inference_steps=40,
        video_guidance_scale=3.0,
        audio_guidance_scale=1.0,  # A prompt does not tell when it rings; the video does.
        modality_scale=4.0,
      ),
      mesh=dict(),
    )
  )
  if 'demo' in variants:
    demo(config)
  if 'real' in variants:
    config.data.buckets.real = bucket('real', 16, weight=0.02)
  if 'tasks' in variants:
    every_task(config)
  if 'low' in variants:
    low(config)
  if 'refiner' in variants:
    refiner(config)
  if 'sparse' in variants:
    sparse(config)
  return config


def bucket(folder: str, rows: int, weight: float = 1.0) -> dict:
  return dict(records=(folder,), frames=17, height=32, width=32, fps=16.0, rows=rows, weight=weight)


def every_task(config: ml_collections.ConfigDict):
  given = dict(i2v=2, start_end=1, keyframes=2, extend=3, extend_back=1, inpaint=1, a2v=10, v2a=20)
  small = dict(height=16, width=16)  # A token of 4 x 4 pixels, whose shapes the codec keeps.
  clip = lambda kind, weight, **fields: bucket(f'{kind}/17x16x16', 16, weight) | small | fields
  config.video_codec.update(space_factor=2, channels=12)
  config.text.tokens = 16  # An edit tells what to change, and what there is then.
  config.data.root = 'out/tasks/data'
  config.data.buckets = dict(
    clips=clip('clips', 6, tasks=dict(t2av=2) | given),
    edits=clip('edits', 1, tasks=dict(edit=1)),
    references=clip('image_ref', 1, tasks=dict(image_ref=1), reference_images=1),
  )
  config.optimizer.learning_rate = 2e-3
  config.train.update(steps=16_000, save_every=1000, keep=6)
  config.sample.modality_scale = 2.0
  config.preview.every = 0


# Each pixel's own latents: between them, as between a VAE's, one may interpolate.  A token is 2 x 2
# pixels: with 4 x 4, of larger clips, a Refiner did not reach interpolation (docs/refiner.md).
CASCADE = dict(video_codec=dict(space_factor=1, channels=8), model=dict(patch=(1, 2, 2)))


def low(config: ml_collections.ConfigDict):
  size = dict(frames=17, height=8, width=8, fps=16.0, keyframes=2, keyframe_scale=2)
  config.update(CASCADE)
  config.data.buckets = dict(low=size | dict(records=('clips/17x16x16',), rows=16))
  config.data.root = 'out/low/data'
  config.preview.every = 0


def refiner(config: ml_collections.ConfigDict):
  low = dict(frames=17, height=8, width=8, keyframes=2, degrade=0.25)
  large = dict(records=('clips/33x16x16',), frames=33, height=16, width=16, fps=32.0, sound=False)
  tasks = dict(t2v=0.85, i2v=0.05, inpaint=0.05, edit=0.05)
  config.update(CASCADE)
  config.model.update(audio=False, video_rate=8.0)  # One unit of rotary time a latent, of 32 fps.
  config.data.buckets = dict(refiner=large | dict(rows=8, low=low, tasks=tasks))
  config.data.root = 'out/refiner/data'
  # Near noise is where the low clip is all that tells of the large one.
  config.flow = dict(drop=dict(text=0.1), video_time=dict(shift=5.0))
  config.optimizer.update(learning_rate=2e-3, warmup=200)
  config.train.update(steps=5000, save_every=500, keep=6)
  config.validate = dict(every=500, batches=16, root='out/refiner/data/held_out')
  config.preview.every = 0


def sparse(config: ml_collections.ConfigDict):
  config.model.sparse = dict(tile=(1, 8, 8))  # A latent of time each: 9 without padding.
  config.init = dict(refiner=dict(checkpoints='../refiner/checkpoints', names=r'^(?!.*\.gate\.)'))
  config.optimizer.update(learning_rate=3e-4, warmup=50)
  config.step.update(sparsify=0.03, sparsify_every=5)  # From dense: all in 110 steps.
  config.train.steps = 1000
  config.validate.every = 250


def demo(config: ml_collections.ConfigDict):
  config.data.root = 'out/demo/data'
  config.flow = dict(drop=dict(text=0.1))
  config.optimizer.update(learning_rate=4e-3, warmup=50)
  config.step.ema = 0.995
  config.train.update(steps=2600, save_every=500, keep=6, log_every=20, max_seconds=600)
  config.preview.every = 0
  config.sample = dict(num_inference_steps=25, video_guidance_scale=3.0, audio_guidance_scale=3.0)
