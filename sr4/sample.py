"""Makes clips with sound from prompts.

  sr4 sample --checkpoint out/demo/checkpoints --prompt 'a red circle bounces' --out out/clips

Writes clip-000.mp4 (H.264 and AAC) and clip-000.safetensors (the latents) for each prompt.  The
same seed gives the same bytes.
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
SIZE = ('frames', 'height', 'width', 'fps')


def arguments(parser):
  parser.add_argument('--checkpoint', required=True, metavar='DIR', help='WORKDIR/checkpoints')
  parser.add_argument('--out', required=True, metavar='DIR')
  parser.add_argument('--prompt', action='append', default=[], help='may be given again and again')
  parser.add_argument('--prompts', metavar='FILE', help='a text file, one prompt a line')
  parser.add_argument('--seed', type=int, default=0, help='of the first clip; the next adds 1')
  parser.add_argument('--step', type=int, help='of the checkpoint; the latest by default')
  parser.add_argument('--raw', action='store_true', help='the weights, not their moving average')
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

  from data_pipelines import mp4
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
  os.makedirs(args.out, exist_ok=True)
  with sharding.default_mesh():
    system, model, trained = pipeline.load(args.checkpoint, args.step, ema=not args.raw)
    size = pipeline.size_of(system, trained, **given(args, SIZE))
    fields = dict(trained['sample']) | given(args, SAMPLING)
    sampler = pipeline.Pipeline(
      system, model, size, config.build(pipeline.Config, fields, 'sample')
    )
    clips = sampler(prompts, range(args.seed, args.seed + len(prompts)))
  for i, clip in enumerate(clips):
    path = os.path.join(args.out, f'clip-{i:03d}')
    mp4.write(
      f'{path}.mp4',
      clip.frames,
      size.fps,
      clip.samples,
      system.codecs.audio.sample_rate,
      metadata={'comment': clip.prompt},
    )
    files.save(f'{path}.safetensors', safetensors.save(clip.latents))
    print(f'{path}.mp4  {clip.prompt}')


if __name__ == '__main__':
  from sr4 import cli

  cli.run(sys.modules[__name__])
