"""Makes clips with sound from prompts.

  sr4 sample --checkpoint out/demo/checkpoints --prompt 'a red circle bounces' --out out/clips

Writes clip-000.mp4 (H.264 and AAC), or a .png or .wav where the model makes pictures or sounds
alone, its keyframes as clip-000-keyframe-00.png and so on, and clip-000.safetensors (the latents),
for each prompt.  The same seed gives the same bytes.
With --refine DIR, the checkpoints of a Refiner, it makes them larger and smoother, keyframes and
sound and all.
"""

import sys

SAMPLING = (
  'num_inference_steps',
  'video_guidance_scale',
  'audio_guidance_scale',
  'modality_scale',
  'shift',
  'audio_shift',
  'solver',
)
KEY = 'SR4_CHAT_KEY'
SIZE = ('frames', 'height', 'width', 'fps')


def arguments(parser):
  parser.add_argument('--checkpoint', required=True, metavar='DIR', help='WORKDIR/checkpoints')
  parser.add_argument('--out', required=True, metavar='DIR')
  parser.add_argument('--prompt', action='append', default=[], help='may be given again and again')
  parser.add_argument('--prompts', metavar='FILE', help='a text file, one prompt a line')
  parser.add_argument(
    '--prompt_optimizer',
    default='off',
    metavar='off|rules|URL#MODEL',
    help='write prompts as structured captions first, by rules or by a chat model behind an '
    'OpenAI-compatible URL such as http://localhost:8000/v1 (its key in $SR4_CHAT_KEY, if any)',
  )
  parser.add_argument('--seed', type=int, default=0, help='of the first clip; the next adds 1')
  parser.add_argument('--step', type=int, help='of the checkpoint; the latest by default')
  parser.add_argument('--raw', action='store_true', help='the weights, not their moving average')
  parser.add_argument('--refine', metavar='DIR', help='WORKDIR/checkpoints of a Refiner')
  parser.add_argument('--refine_steps', type=int, help='of the Refiner; as it was trained to')
  parser.add_argument('--strength', type=float, help='of its noise, at most 1: below, few steps do')
  for name in SIZE:
    parser.add_argument(f'--{name}', type=float if name == 'fps' else int)
  for name in SAMPLING:
    kind = {'num_inference_steps': int, 'solver': str}.get(name, float)
    parser.add_argument(f'--{name}', type=kind)


def given(args, names) -> dict:
  return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def main(args):
  import os

  from safetensors import numpy as safetensors

  from sr4 import pipeline
  from sr4.core import config
  from sr4.core import errors
  from sr4.core import files
  from sr4.core import sharding

  prompts = list(args.prompt)
  if args.prompts:
    with open(args.prompts) as f:
      prompts += [line.strip() for line in f if line.strip()]
  if not prompts:
    raise errors.UserError("no prompt: give --prompt 'a red circle bounces' or --prompts FILE")
  optimize = optimizer(args.prompt_optimizer)
  os.makedirs(args.out, exist_ok=True)
  with sharding.default_mesh():
    system, model, trained = pipeline.load(args.checkpoint, args.step, ema=not args.raw)
    size = pipeline.size_of(system, trained, **given(args, SIZE))
    fields = dict(trained['sample']) | given(args, SAMPLING)
    sampler = pipeline.Pipeline(
      system, model, size, config.build(pipeline.Config, fields, 'sample')
    )
    told = dict(seconds=size.samples / system.codecs.audio.sample_rate, sound=size.samples > 0)
    prompts = [optimize(prompt, references=(), **told) for prompt in prompts]
    seeds = range(args.seed, args.seed + len(prompts))
    clips = sampler(prompts, seeds)
    if args.refine:
      refiner = load_refiner(args, system, size)
      clips, size = refiner(prompts, seeds, clips), refiner.size
  rate = system.codecs.audio.sample_rate
  for i, clip in enumerate(clips):
    path = os.path.join(args.out, f'clip-{i:03d}')
    written = write(path, clip, size.fps, rate)
    files.save(f'{path}.safetensors', safetensors.save(clip.latents))
    print(f'{written}  {clip.prompt}')


def load_refiner(args, base, size):
  """The Pipeline of --refine for the base system's clips of this size."""
  from sr4 import pipeline
  from sr4.core import config

  system, model, trained = pipeline.load(args.refine, ema=not args.raw)
  told = given(args, ('strength', 'refine_steps'))
  fields = {{'refine_steps': 'num_inference_steps'}.get(k, k): v for k, v in told.items()}
  asked = config.build(pipeline.Config, dict(trained['sample']) | fields, 'sample')
  large = pipeline.refined_size(system, trained, base, size)
  return pipeline.Pipeline(system, model, large, asked)


def write(path: str, clip, fps: float, rate: int) -> str:
  """The media of a clip in the files that fit it; the name of the first."""
  from data_pipelines import mp4
  from data_pipelines import stills
  from data_pipelines import wav
  from sr4.core import files

  for k, picture in enumerate(() if clip.keyframes is None else clip.keyframes):
    files.save(f'{path}-keyframe-{k:02d}.png', stills.to_png(picture))
  if clip.frames is None:
    files.save(f'{path}.wav', wav.to_bytes(clip.samples, rate))
    return f'{path}.wav'
  if clip.samples is None and len(clip.frames) == 1:
    files.save(f'{path}.png', stills.to_png(clip.frames[0]))
    return f'{path}.png'
  mp4.write(f'{path}.mp4', clip.frames, fps, clip.samples, rate, metadata={'comment': clip.prompt})
  return f'{path}.mp4'


def optimizer(choice: str):
  """The prompt enhancer of --prompt_optimizer."""
  import os

  from sr4.core import errors
  from sr4.prompt import chat
  from sr4.prompt import rules

  if choice == 'off':
    return lambda prompt, **_: prompt
  if choice == 'rules':
    return rules.RuleBased()
  url, _, model = choice.partition('#')
  if not model:
    raise errors.UserError(
      f'--prompt_optimizer={choice}: give off, rules, or URL#MODEL as http://localhost:8000/v1#some'
    )
  return chat.ChatEnhancer(url, model, key=KEY if os.environ.get(KEY) else None)


if __name__ == '__main__':
  from sr4 import cli

  cli.run(sys.modules[__name__])
