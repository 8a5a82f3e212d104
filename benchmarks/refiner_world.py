"""What a Refiner of SR4-World adds to linear interpolation: PSNR of held-out clips, in dB.

  python -m data_pipelines.world --config configs/world.py:refiner --count 8192
  sr4 train --config configs/world.py:refiner --workdir out/refiner
  python benchmarks/refiner_world.py --checkpoint out/refiner/checkpoints --steps 1 \\
      [--clips 32] [--picture docs/refiner.png]

The low clips are means of pixels and every other frame, not blurred and without noise.
`interpolated` is linear in pixels, in time and space.  Keyframes are the true frames; `others'
keyframes` are those of another clip, `none` is a Refiner that is given none.
"""

import argparse
import dataclasses
import os

import jax
import numpy as np

from data_pipelines import degrade
from data_pipelines import masks
from data_pipelines import records
from data_pipelines import stills
from data_pipelines.tasks import Row
from sr4 import pipeline
from sr4.core import sharding
from sr4.core.batch import Latents
from sr4.core.batch import Size
from sr4.flow import refining
from sr4.flow import segments


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--checkpoint', required=True)
  parser.add_argument('--clips', type=int, default=32)
  parser.add_argument('--steps', type=int, default=20)
  parser.add_argument('--picture', metavar='FILE')
  args = parser.parse_args()
  with sharding.default_mesh():
    measure(args)


def measure(args):
  system, model, trained = pipeline.load(args.checkpoint)
  bucket = next(b for b in trained['data']['buckets'].values() if b['frames'] > 1)
  fields = ('frames', 'height', 'width', 'fps', 'sound', 'low')
  size = system.size(**{name: bucket[name] for name in fields})
  source = records.open(bucket['records'][0], trained['validate']['root'])
  given = [source[i] for i in range(args.clips)]
  truth = np.stack([record.frames for record in given])
  clean = dataclasses.replace(size.low, degrade=0.0)
  low = np.stack([degrade.degraded(x, clean, np.random.default_rng(0)) for x in truth])
  linear = refining.enlarged(low.astype(np.float32), truth.shape[1:4])
  at = pipeline.keyframes_at(system, size)
  keys = truth[:, np.array(at) * refining.stride(size)]
  encode = jax.jit(lambda x: segments.encoded(system.codecs.video, x))
  each = jax.jit(lambda x: segments.encoded(system.codecs.video, x, each=True))
  latents, own = jax.device_get((encode(low), each(keys)))
  best = segments.to_uint8(segments.decoded(system.codecs.video, encode(truth)))

  def refined(keyframes):
    here = size if keyframes is not None else without_keyframes(size)
    rows = [
      Row(
        caption=record.captions['short'],
        latents=Latents(low=low, keyframes=None if keyframes is None else keyframes[i]),
      )
      for i, (record, low) in enumerate(zip(given, latents))
    ]
    return sampled(rows, here)

  def sampled(rows, size):
    config = pipeline.Config(num_inference_steps=args.steps, video_guidance_scale=1.0)
    made = pipeline.Pipeline(system, model, size, config)(rows, range(len(rows)))
    made = np.stack([clip.latents['video'] for clip in made])
    return np.asarray(segments.to_uint8(segments.decoded(system.codecs.video, made)))

  stride, keyed = refining.stride(size), np.zeros(size.frames, bool)
  keyed[np.array(at) * stride] = True
  made = refined(own)
  if args.picture:
    draw(args.picture, (truth, linear, made), np.flatnonzero(~keyed)[::3])
  inserted = np.arange(size.frames) % stride > 0
  print("| | all frames | at keyframes | the low clip's others | inserted |\n|---|---|---|---|---|")
  for name, frames in (
    ('the codec alone', best),
    ('interpolated', linear),
    ('refined', made),
    ("refined, others' keyframes", refined(np.roll(own, 1, 0))),
    ('refined, none', refined(None)),
  ):
    shown = psnr(np.asarray(frames, np.float64), truth)
    places = [shown, shown[:, keyed], shown[:, ~keyed & ~inserted], shown[:, inserted]]
    print(f'| {name} | ' + ' | '.join(f'{x.mean():.2f}' for x in places) + ' |', flush=True)
  known = [masks.around(np.random.default_rng(i), size, 4) for i in range(len(given))]
  rows = [
    Row(record.frames, known=mask, caption=record.captions['short'], latents=Latents(low=z))
    for record, mask, z in zip(given, known, latents)
  ]
  painted, known = sampled(rows, without_keyframes(size)), np.stack(known)
  print('\n| inpainting | known | not known |\n|---|---|---|')
  for name, frames in (('the codec alone', best), ('refined', painted), ('interpolated', linear)):
    error = np.mean((np.asarray(frames, np.float64) - truth) ** 2, -1)
    places = [10 * np.log10(255**2 / error[where].mean()) for where in (known, ~known)]
    print(f'| {name} | {places[0]:.2f} | {places[1]:.2f} |')


def draw(path: str, versions, at, clips: int = 4, enlarged: int = 4):
  """A row of the frames `at` for each version, [b T H W 3], of the first clips."""
  shown = np.stack(versions, 1)[:clips, :, at]  # [clip version frame H W 3]
  pixels = np.uint8(np.clip(np.rint(shown), 0, 255)).repeat(enlarged, 3).repeat(enlarged, 4)
  rows = [np.concatenate(frames, 1) for clip in pixels for frames in clip]
  with open(path, 'wb') as f:
    f.write(stills.to_png(np.concatenate(rows)))


def without_keyframes(size: Size) -> Size:
  return dataclasses.replace(size, low=dataclasses.replace(size.low, keyframes=0))


def psnr(frames, truth) -> np.ndarray:
  """dB of each frame [b T]."""
  error = np.mean((frames - truth) ** 2, (2, 3, 4))
  return 10 * np.log10(255**2 / np.maximum(error, 1e-3))


if __name__ == '__main__':
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  main()
