"""Makes clips with sound from prompts, pictures, clips, masks and sounds.

  sr4 sample --checkpoint out/demo/checkpoints --prompt 'a red circle bounces' --out out/clips
  sr4 sample ... --prompt 'it turns around' --first_frame_image photo.jpg
  sr4 sample ... --prompt 'a red hat' --video clip.mp4 --mask_video mask.mp4
  sr4 sample ... --requests requests.jsonl

A line of the last is a request in JSON, with the fields of sr4/request.py, references among them.
Writes clip-000.mp4 (H.264 and AAC), or a .png or .wav where the model makes pictures or sounds
alone, its keyframes as clip-000-keyframe-00.png and so on, and clip-000.safetensors (the latents),
for each request.  The same seed gives the same bytes in a batch of as many clips.
Each file says that a model made it (sr4/provenance.py); with --c2pa_certificate it is signed, too.
With --refine DIR, the checkpoints of a Refiner, it makes them larger and smoother, keyframes and
sound and all; what is given of a clip is given to the Refiner too, as large as it makes it.
"""

import sys

SAMPLING = {
  'num_inference_steps': int,
  'video_guidance_scale': float,
  'audio_guidance_scale': float,
  'modality_scale': float,
  'reference_scale': float,
  'guidance_rescale': float,
  'shift': float,
  'audio_shift': float,
  'solver': str,
  'decode_tile': int,
  'cache_threshold': float,
}
KEY = 'SR4_CHAT_KEY'


def boolean(word: str) -> bool:
  if word not in ('true', 'false'):
    raise ValueError(word)
  return word == 'true'


SIZE = {
  'frames': int,
  'height': int,
  'width': int,
  'fps': float,
  'seconds': float,
  'sound': boolean,
  'duration': int,
  'resolution': str,
  'aspect_ratio': str,
}
BESIDE = ('negative_prompt', 'audio_negative_prompt', 'mode')
MEDIA = ('first_frame_image', 'end_frame_image', 'video', 'audio', 'mask_video', 'mask_image')


def arguments(parser):
  parser.add_argument('--checkpoint', required=True, metavar='DIR', help='WORKDIR/checkpoints')
  parser.add_argument('--out', required=True, metavar='DIR')
  parser.add_argument('--prompt', action='append', default=[], help='may be given again and again')
  parser.add_argument('--prompts', metavar='FILE', help='a text file, one prompt a line')
  parser.add_argument('--requests', metavar='FILE', help='one request in JSON a line')
  for name in MEDIA:
    parser.add_argument(f'--{name}', metavar='FILE', help='given with each prompt')
  for name in BESIDE:
    parser.add_argument(f'--{name}', help='of each prompt; as in sr4/request.py')
  parser.add_argument('--batch', type=int, default=8, help='clips at a time')
  parser.add_argument(
    '--preview_every', type=int, default=0, help='steps from one strip of frames to the next'
  )
  parser.add_argument(
    '--prompt_optimizer',
    default='off',
    metavar='off|rules|URL#MODEL',
    help='write prompts as structured captions first, by rules or by a chat model behind an '
    'OpenAI-compatible URL such as http://localhost:8000/v1 (its key in $SR4_CHAT_KEY, if any)',
  )
  parser.add_argument('--seed', type=int, default=0, help='of the first clip; the next adds 1')
  parser.add_argument('--step', type=int, help='of the checkpoint; the latest by default')
  add_storage(parser)
  parser.add_argument('--refine', metavar='DIR', help='WORKDIR/checkpoints of a Refiner')
  parser.add_argument('--refine_steps', type=int, help='of the Refiner; as it was trained to')
  parser.add_argument('--strength', type=float, help='of its noise, at most 1: below, few steps do')
  parser.add_argument('--c2pa_certificate', metavar='FILE', help='a chain, to sign with (PEM)')
  parser.add_argument('--c2pa_key', metavar='FILE', help='of the first certificate (PEM)')
  for name, kind in (SIZE | SAMPLING).items():
    parser.add_argument(f'--{name}', type=kind)


def add_storage(parser):
  """Which weights, and how they lie."""
  parser.add_argument('--raw', action='store_true', help='the weights, not their moving average')
  parser.add_argument(
    '--weights',
    default='float32',
    help="of the layers: float32, bfloat16 or float8, in a half and a quarter of float32's memory",
  )
  parser.add_argument(
    '--offload',
    action='store_true',
    help="the layers lie in the host's memory, and come to the device one at a time",
  )


def load(directory: str, step: int | None, args):
  """pipeline.load, as the flags of `add_storage` say."""
  from sr4 import pipeline
  from sr4.core import config
  from sr4.models import storage

  fields = dict(weights=args.weights, offload=args.offload)
  stored = config.build(storage.Config, fields, 'storage')
  return pipeline.load(directory, step, not args.raw, stored)


def given(args, names) -> dict:
  return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def main(args):
  import os

  from safetensors import numpy as safetensors

  from sr4 import pipeline
  from sr4 import provenance
  from sr4 import request_rules
  from sr4.core import errors
  from sr4.core import files
  from sr4.core import sharding

  if args.batch < 1 or args.preview_every < 0:
    raise errors.UserError(
      f'--batch={args.batch} must be at least 1, --preview_every={args.preview_every} at least 0'
    )
  for name in () if args.refine else given(args, ('strength', 'refine_steps')):
    raise errors.UserError(f'--{name} is of a Refiner; give --refine, too, or leave it out')
  asked, optimize, signer = requests(args), optimizer(args.prompt_optimizer), None
  if not 0 <= args.seed <= request_rules.SEEDS - len(asked):
    raise errors.UserError(
      f'--seed={args.seed}: one more for each of {len(asked)} requests, all in 0 to '
      f'{request_rules.SEEDS - 1}; give another'
    )
  if bool(args.c2pa_certificate) != bool(args.c2pa_key):
    raise errors.UserError('--c2pa_certificate and --c2pa_key: give both, or none')
  if args.c2pa_key:
    signer = provenance.Signer(args.c2pa_certificate, args.c2pa_key)
  os.makedirs(args.out, exist_ok=True)
  with sharding.default_mesh():
    system, model, trained = load(args.checkpoint, args.step, args)
    refiner = args.refine and Refiner(args, system)
    groups = list(batches(asked, system, trained, given(args, SAMPLING), args.batch))
    for _, size, _, _ in groups:
      if refiner and size.frames:  # What it cannot make is told before what takes long.
        pipeline.refined_size(refiner.system, refiner.trained, system, size)
    for some, size, sampling, extra in groups:
      rows = [optimized(one.row(system, size), size, system, optimize) for _, one in some]
      seeds = [args.seed + i if one.seed is None else one.seed for i, one in some]
      rows, seeds = rows + rows[:1] * extra, seeds + seeds[:1] * extra
      away = [one.negative() for _, one in some]
      away += away[:1] * extra
      sampler = pipeline.Pipeline(system, model, size, sampling)
      names = [os.path.join(args.out, f'clip-{i:03d}') for i, _ in some]
      with Watch(names, sampling.num_inference_steps, args.preview_every) as watch:
        clips = sampler(rows, seeds, away, watch)
      if refiner and size.frames:
        clips, size = refiner([one for _, one in some], clips[: len(some)], seeds, size)
      for (i, one), clip in zip(some, clips):
        clip = one.joined(clip, system, size)
        path = os.path.join(args.out, f'clip-{i:03d}')
        origin = provenance.Origin(clip.prompt, one.gives_media)
        rate = system.codecs.audio.sample_rate
        written = write(path, clip, size.fps, rate, origin, signer)
        files.save(f'{path}.safetensors', safetensors.save(clip.latents))
        print(f'{written}  {clip.prompt}', flush=True)


def requests(args) -> list:
  """The Requests of --requests, then of each prompt with the media that are given beside it."""
  import json

  from sr4 import request
  from sr4 import request_rules
  from sr4.core import captions
  from sr4.core import config
  from sr4.core import errors

  found, beside = [], given(args, (*SIZE, *MEDIA, *BESIDE))
  for i, line in enumerate(lines(args.requests), 1):
    where = f'{args.requests}, line {i}'
    if not line:
      continue
    try:
      fields = json.loads(line)
    except json.JSONDecodeError as error:
      raise errors.UserError(f'{where} is no JSON: {error}') from error
    if not isinstance(fields, dict) or 'prompt' not in fields:
      raise errors.UserError(f"{where}: {line} has no fields; give {{'prompt': ...}}")
    try:
      found.append(config.build(request.Request, beside | fields, where))
      found[-1].check_files()
      found[-1].caption()
    except (request_rules.RequestError, captions.CaptionError) as error:
      raise request_rules.RequestError(f'{where}: {error}') from error
  prompts = args.prompt + [line for line in lines(args.prompts) if line]
  of_flags = [request.Request(prompt, **beside) for prompt in prompts]
  for one in of_flags[:1]:  # All have the same media.
    one.check_files()
  for one in of_flags:
    one.caption()
  found += of_flags
  if not found:
    raise errors.UserError(
      "no prompt: give --prompt 'a red circle bounces', --prompts FILE or --requests FILE"
    )
  return found


def lines(path: str | None) -> list[str]:
  """Of a text file, if any, without the space about them."""
  from sr4.core import errors

  if not path:
    return []
  try:
    with open(path, encoding='utf-8-sig') as f:
      return [line.strip() for line in f]
  except UnicodeDecodeError as error:
    raise errors.UserError(f'{path} is not UTF-8 ({error.reason}); write it again so') from error


def batches(asked, system, trained, flags: dict, most: int):
  """([(number, Request)], Size, pipeline.Config, rows to add) of requests that one program makes.

  The last of several batches is filled up, so that it needs no program of its own.
  """
  from sr4 import pipeline
  from sr4.core import config

  alike = {}
  for i, one in enumerate(asked):
    fields = dict(trained.get('sample', {})) | one.sampling(flags)
    sampling = config.build(pipeline.Config, fields, f'request {i}')
    alike.setdefault((one.size(system, trained), sampling, one.kinds()), []).append((i, one))
  for (size, sampling, _), some in alike.items():
    for at in range(0, len(some), most):
      part = some[at : at + most]
      yield part, size, sampling, most - len(part) if at else 0


def optimized(row, size, system, optimize):
  """The row with its prompt as the optimizer writes it."""
  import dataclasses

  from sr4.core import captions

  seconds = size.frames / size.fps or size.samples / system.codecs.audio.sample_rate
  kinds = [kind for kind, _ in captions.references(row.caption)]
  told = dict(references=kinds, seconds=seconds, sound=size.samples > 0)
  return dataclasses.replace(row, caption=optimize(row.caption, **told))


class Watch:
  """Shows how far a batch is, and now and then what it comes to: a strip of five frames of each.

  Args:
    names: of the clips, without ending; every: so many steps there is a strip; 0: never.
  """

  def __init__(self, names: list[str], steps: int, every: int):
    import tqdm

    self.names, self.every = names, every
    self.bar = tqdm.tqdm(total=steps, desc='sampling', unit='step', leave=False)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.bar.close()

  def __call__(self, sampler, step: int, t, told):
    import jax

    jax.block_until_ready(told['latents'])  # A step is done, not only asked for.
    self.bar.update()
    if self.every and (step + 1) % self.every == 0 and sampler.size.frames:
      import numpy as np

      from data_pipelines import stills
      from sr4 import pipeline
      from sr4 import provenance
      from sr4.core import files

      size = sampler.size
      made = pipeline.decode(sampler.system, size, told['data'], sampler.config.decode_tile)
      at = np.linspace(0, size.frames - 1, min(5, size.frames)).round().astype(int)
      for name, frames in zip(self.names, made['frames']):
        strip = provenance.Origin('').png(stills.to_png(np.concatenate(frames[at], 1)))
        files.save(f'{name}-step-{step + 1:03d}.png', strip)


class Refiner:
  """Clips of the base system, made larger by the checkpoint of --refine."""

  def __init__(self, args, base):
    from sr4 import pipeline
    from sr4.core import config

    self.base = base
    self.system, self.model, self.trained = load(args.refine, None, args)
    told = given(args, ('strength', 'refine_steps', 'decode_tile'))
    own = {{'refine_steps': 'num_inference_steps'}.get(k, k): v for k, v in told.items()}
    fields = dict(self.trained.get('sample', {})) | own
    self.sampling = config.build(pipeline.Config, fields, 'sample')

  def __call__(self, asked, clips, seeds, size) -> tuple:
    """(clips, their Size) of Requests, of their clips, and of as many seeds or more."""
    import dataclasses

    from sr4 import pipeline

    large = pipeline.refined_size(self.system, self.trained, self.base, size)
    rows = [
      pipeline.to_refine(
        clip, dataclasses.replace(one.row(self.system, large), caption=clip.prompt)
      )
      for one, clip in zip(asked, clips)
    ]
    away, extra = [one.negative() for one in asked], len(seeds) - len(rows)
    rows, away = rows + rows[:1] * extra, away + away[:1] * extra
    sampler = pipeline.Pipeline(self.system, self.model, large, self.sampling)
    return sampler(rows, seeds, away), large


def write(path: str, clip, fps: float, rate: int, origin, signer=None) -> str:
  """The media of a clip in the files that fit it; the name of the first.

  Args:
    origin: provenance.Origin; signer: provenance.Signer, if any.
  """
  from data_pipelines import mp4
  from data_pipelines import stills
  from data_pipelines import wav
  from sr4.core import files

  def save(name: str, data: bytes) -> str:
    kind = name.rpartition('.')[2]
    files.save(name, signer(data, kind, origin) if signer else data)
    return name

  picture = lambda pixels: origin.png(stills.to_png(pixels))
  for k, frame in enumerate(() if clip.keyframes is None else clip.keyframes):
    save(f'{path}-keyframe-{k:02d}.png', picture(frame))
  if clip.frames is None:
    return save(f'{path}.wav', origin.wav(wav.to_bytes(clip.samples, rate)))
  if clip.samples is None and len(clip.frames) == 1:
    return save(f'{path}.png', picture(clip.frames[0]))
  tags = origin.tags()
  return save(f'{path}.mp4', mp4.write(None, clip.frames, fps, clip.samples, rate, metadata=tags))


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
