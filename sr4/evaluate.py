"""Measures a model on SR4-World, where what a clip should show and sound like is known.

  sr4 evaluate --checkpoint out/demo/checkpoints --out out/demo

It makes clips of held-out captions and asks: has the object the colour and the shape that the
caption names, and does it ring when it bounces?  The same questions about the world's own clips,
plain and through the codecs, say how much can be reached; chance and shuffled sounds, how little.
Writes metrics.json, and for `sr4 report` clips.json, config.json and clips/.
"""

import sys

from sr4 import sample as sample_verb

SHOWN = 16  # Clips that are kept to be looked at.
SEEDS = 8  # Clips of one prompt, from which the diversity is measured.
PIXELS = 256  # Small clips are enlarged to about this height, so that players do not blur them.


def arguments(parser):
  parser.add_argument('--checkpoint', required=True, metavar='DIR', help='WORKDIR/checkpoints')
  parser.add_argument('--out', required=True, metavar='DIR')
  parser.add_argument('--count', type=int, default=64, help='captions')
  parser.add_argument(
    '--seed', type=int, default=1_000_000, help='of the world of held-out captions'
  )
  parser.add_argument('--step', type=int, help='of the checkpoint; the latest by default')
  sample_verb.add_storage(parser)
  parser.add_argument('--batch', type=int, default=16, help='clips at a time')
  parser.add_argument(
    '--began',
    type=float,
    metavar='EPOCH_SECONDS',
    help='since when to count `seconds`; by default since now',
  )
  for name in sample_verb.SAMPLING:
    parser.add_argument(f'--{name}', type=sample_verb.SAMPLING[name])


def main(args):
  import os
  import time

  from sr4 import pipeline
  from sr4.core import config
  from sr4.core import errors
  from sr4.core import sharding
  from sr4.training import checkpoint

  began = time.time() if args.began is None else args.began
  for name, least in (('count', 1), ('batch', 1), ('seed', 0)):
    if getattr(args, name) < least:
      raise errors.UserError(f'--{name}={getattr(args, name)} must be at least {least}')
  step, _ = checkpoint.page(args.checkpoint, args.step)
  os.makedirs(os.path.join(args.out, 'clips'), exist_ok=True)  # An error now, not after the clips.
  with sharding.default_mesh():
    system, model, trained = sample_verb.load(args.checkpoint, step, args)
    size = pipeline.size_of(system, trained)
    if not (size.frames and size.samples):
      raise errors.UserError(
        f'{args.checkpoint} makes no {"sound" if size.frames else "picture"}, and SR4-World is '
        'seen and heard; `sr4 sample` shows what it makes'
      )
    fields = dict(trained.get('sample', {})) | sample_verb.given(args, sample_verb.SAMPLING)
    sampling = config.build(pipeline.Config, fields, 'sample')
    truth, alike = held_out(size, system.codecs.audio, args.seed, args.count)
    prompts = [sample.captions['short'] for sample in truth]
    sampler = pipeline.Pipeline(system, model, size, sampling)
    made = generate(sampler, prompts + prompts[:1] * SEEDS, args.batch)
  made, variants = made[: args.count], made[args.count :]
  figures, clips = measure(size, system.codecs, truth, made)
  figures = (
    {
      'steps': step,
      'seconds': None,
      'seconds_since': 'evaluation' if args.began is None else 'began',
      'count': args.count,
    }
    | figures
    | {
      'diversity': diversity(variants),
      'truth_diversity': diversity(alike),
      'world_seed': args.seed,
      'weights': 'raw' if args.raw else 'ema',
      'sampling': fields,
    }
  )
  for i, pair in enumerate(zip(made[:SHOWN], truth)):
    path = os.path.join(args.out, 'clips', f'{i:03d}')
    save_pair(path, prompts[i], *pair, size, system.codecs.audio)
  write_json(os.path.join(args.out, 'clips.json'), clips)
  write_json(os.path.join(args.out, 'config.json'), trained)
  figures['seconds'] = round(time.time() - began, 1)
  write_json(os.path.join(args.out, 'metrics.json'), figures)
  print(table(figures))


def held_out(size, audio, seed: int, count: int):
  """(samples 0 .. count - 1 of the world of this seed, SEEDS more of the kind of the first)."""
  from data_pipelines import world
  from sr4.core import errors

  try:
    config = world.Config.simple(
      frames=size.frames,
      height=size.height,
      width=size.width,
      fps=size.fps,
      sample_rate=audio.sample_rate,
      channels=audio.audio_channels,
      samples=size.samples,
    )
  except ValueError as error:
    raise errors.UserError(f'SR4-World has no clips like those of this model: {error}') from error
  source = world.World(config, seed)
  truth, alike, index = [source[i] for i in range(count)], [], count
  while len(alike) < SEEDS:
    sample = source[index]
    if sample.truth.objects[0].name == truth[0].truth.objects[0].name:
      alike.append(sample)
    index += 1
  return truth, alike


def generate(sampler, prompts, batch: int) -> list:
  """A clip for each prompt, from the seeds 0, 1, ...; always `batch` at a time: one compilation."""
  import tqdm

  clips, extra = [], -len(prompts) % batch
  padded = list(prompts) + [''] * extra
  for i in tqdm.trange(0, len(padded), batch, desc='clips', disable=None):
    clips += sampler(padded[i : i + batch], range(i, i + batch))
  return clips[: len(prompts)]


def measure(size, codecs, truth, made) -> tuple[dict, list[dict]]:
  """(all figures, one row for each clip): of what was made, of the truth, of the truth as coded."""
  from data_pipelines import world

  coded = round_trip(codecs, truth)
  kinds = {'': made, 'truth_': truth, 'codec_': coded}
  found = {
    prefix: look_and_listen(clips, size, codecs.audio.sample_rate)
    for prefix, clips in kinds.items()
  }
  objects = [sample.truth.objects[0] for sample in truth]
  figures = {}
  for prefix, rows in found.items():
    figures |= {prefix + name: value for name, value in scores(rows, objects).items()}
  figures |= {
    'chance_color_accuracy': 1 / len(world.COLORS),
    'chance_shape_accuracy': 1 / len(world.SHAPES),
  } | fidelity(coded, truth)
  clips = [
    {'prompt': sample.captions['short'], 'wanted': thing.name, 'made': row, 'truth': real}
    for sample, thing, row, real in zip(truth, objects, found[''], found['truth_'])
  ]
  return figures, clips


def round_trip(codecs, clips) -> list:
  """The same frames and samples through the codecs: what is lost before a model is asked."""
  import types

  import jax
  import numpy as np

  @jax.jit
  def coded(frames, samples):
    video, audio = codecs.video.encode(frames[None]), codecs.audio.encode(samples[None])
    return codecs.video.decode(video)[0], codecs.audio.decode(audio, len(samples))[0]

  def to_uint8(x):
    return np.clip(np.round((np.asarray(x) + 1) * 127.5), 0, 255).astype(np.uint8)

  pairs = [coded(clip.frames, clip.samples) for clip in clips]
  return [
    types.SimpleNamespace(frames=to_uint8(frames), samples=np.asarray(samples))
    for frames, samples in pairs
  ]


def look_and_listen(clips, size, sample_rate: int) -> list[dict]:
  """For each clip what is seen and heard: color, shape, rings and bounces (seconds)."""
  from data_pipelines import world
  from sr4.metrics import instruction
  from sr4.metrics import sync

  shapes = instruction.gallery({shape: silhouette(shape) for shape in world.SHAPES})
  rows = []
  for clip in clips:
    color, shape = instruction.attributes(clip.frames, world.COLORS, shapes)
    rings, bounces = sync.rings_and_bounces(clip.frames, size.fps, clip.samples, sample_rate)
    rows.append(
      {'color': color, 'shape': shape, 'rings': rings.tolist(), 'bounces': bounces.tolist()}
    )
  return rows


def silhouette(shape: str, pixels: int = 96):
  """How much of each pixel a shape covers, float [pixels pixels], from the world's own portrait."""
  import numpy as np

  from data_pipelines import world
  from data_pipelines.world import picture

  white = world.Object('white', shape, 0.1, 0, np.zeros(1), np.zeros((1, 2)))
  grey = picture.portrait(white, pixels, pixels).mean(-1)
  return (grey - grey.min()) / (grey.max() - grey.min())


def scores(rows, objects) -> dict:
  """Shares of right colours and shapes, and errors in ms, from what was seen and heard."""
  import numpy as np

  from sr4.metrics import sync

  pairs = [(row['rings'], row['bounces']) for row in rows]
  right = {
    name: [row[name] == getattr(thing, name) for row, thing in zip(rows, objects)]
    for name in ('color', 'shape')
  }
  return {
    'color_accuracy': float(np.mean(right['color'])),
    'shape_accuracy': float(np.mean(right['shape'])),
    'onset_error_ms': 1000 * sync.median_error(pairs),
    'onset_error_shuffled_ms': 1000 * sync.median_error(sync.shuffled(pairs)),
    'onset_clips': sum(bool(rings or bounces) for rings, bounces in pairs),
  }


def fidelity(coded, truth) -> dict:
  """Medians over the clips; silent clips have no distortion ratio."""
  import numpy as np

  from sr4.metrics import fidelity as lib

  heard = [lib.si_sdr(a.samples, b.samples) for a, b in zip(coded, truth) if b.samples.any()]
  return {
    'codec_psnr_db': float(np.median([lib.psnr(a.frames, b.frames) for a, b in zip(coded, truth)])),
    'codec_si_sdr_db': float(np.median(heard)) if heard else None,
  }


def diversity(clips) -> float:
  """How far clips of one prompt differ: a pixel's standard deviation over them, of 255, mean."""
  import numpy as np

  return float(np.stack([clip.frames for clip in clips]).astype(np.float32).std(0).mean())


def save_pair(path: str, prompt: str, made, truth, size, audio):
  """PATH.mp4, PATH.truth.mp4, and PATH.npz with the pixels and samples of both."""
  import io

  import numpy as np

  from data_pipelines import mp4
  from sr4 import provenance
  from sr4.core import files

  large = max(1, round(PIXELS / size.height))
  for name, clip in (('', made), ('.truth', truth)):
    frames = clip.frames.repeat(large, 1).repeat(large, 2)
    tags = provenance.Origin(prompt).tags() if clip is made else {}
    mp4.write(f'{path}{name}.mp4', frames, size.fps, clip.samples, audio.sample_rate, metadata=tags)
  packed = io.BytesIO()
  np.savez_compressed(
    packed,
    frames=made.frames,
    truth_frames=truth.frames,
    fps=size.fps,
    samples=np.float16(made.samples),
    truth_samples=np.float16(truth.samples),
    sample_rate=audio.sample_rate,
  )
  files.save(f'{path}.npz', packed.getvalue())


def write_json(path: str, content):
  """Whole or not at all; what is not a number is null, so that every reader takes it."""
  import json
  import math

  from sr4.core import files

  def plain(x):
    if isinstance(x, dict):
      return {key: plain(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
      return [plain(value) for value in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x

  files.save(path, json.dumps(plain(content), indent=2, allow_nan=False).encode() + b'\n')


def table(figures: dict) -> str:
  """The figures beside what they are to be read against."""

  def cell(name):
    value = figures.get(name)
    if value is None or isinstance(value, int):
      return '' if value is None else str(value)
    return f'{value:.3f}' if 'accuracy' in name else f'{value:.1f}'

  rows = [('', 'model', 'codec', 'truth', 'no skill')]
  for words, name, least in (
    ('colour accuracy', 'color_accuracy', 'chance_color_accuracy'),
    ('shape accuracy', 'shape_accuracy', 'chance_shape_accuracy'),
    ('onset error, ms', 'onset_error_ms', 'onset_error_shuffled_ms'),
    ('  of so many clips', 'onset_clips', None),
    ('diversity', 'diversity', None),
  ):
    rows.append((words, *(cell(prefix + name) for prefix in ('', 'codec_', 'truth_')), cell(least)))
  lines = [f'{row[0]:<18}' + ''.join(f'{value:>10}' for value in row[1:]) for row in rows]
  return '\n'.join(
    lines + [f'step {figures["steps"]}, {figures["count"]} clips, {figures["seconds"]:.0f} s']
  )


if __name__ == '__main__':
  from sr4 import cli

  cli.run(sys.modules[__name__])
