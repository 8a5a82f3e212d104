"""Every task of a model on SR4-World: what is given is kept, and what is made follows it.

  python -m data_pipelines.world --config configs/world.py:tasks --count 16384
  sr4 train --config configs/world.py:tasks --workdir out/tasks
  python benchmarks/tasks_world.py --checkpoint out/tasks/checkpoints [--clips 32] [--sheet FILE]

Prompts and clips are held out.  PSNR is of pictures as they leave the decoder, before what is given
is laid over them.  `at best` is the true clip, through the codecs; `no skill` is chance, another
clip, or the same request without what is given.
"""

import argparse
import dataclasses
import os

import numpy as np

from data_pipelines import media
from data_pipelines import mp4
from data_pipelines import stills
from data_pipelines import world
from data_pipelines.tasks import Row
from data_pipelines.world import kinds
from sr4 import evaluate
from sr4 import pipeline
from sr4 import sample as sample_verb
from sr4.core import config as config_lib
from sr4.core import sharding
from sr4.core.av import AV
from sr4.extension import Extension

SEED = 1_000_000  # of the world of held-out clips
BATCH = 16
TIMED = (6, 13)  # frames that are given in the middle
# Sound at a joint, in seconds: spectra are so far apart, and so near ones belong to it.
HOP, AROUND = 0.004, 0.03
FLOOR = 1e-4  # of power: what is quieter is silence


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--checkpoint', required=True)
  parser.add_argument('--step', type=int)
  parser.add_argument('--clips', type=int, default=32)
  for name in sample_verb.SAMPLING:
    parser.add_argument(f'--{name}', type=sample_verb.SAMPLING[name])
  parser.add_argument('--sheet', help='a PNG: frames of a clip of each task, a task in a row')
  args = parser.parse_args()
  print('| task | | model | at best | no skill |\n|---|---|---|---|---|')
  with sharding.default_mesh():
    bench = Bench(args)
    for task in (first_frame, timed_frames, extension, edit, reference, sound, picture, file):
      for figure in task(bench):
        values = ('' if x is None else f'{x:.3g}' for x in figure[1:])
        print(
          f'| {task.__name__.replace("_", " ")} | {" | ".join([figure[0], *values])} |', flush=True
        )
  if args.sheet:
    with open(args.sheet, 'wb') as f:
      f.write(stills.to_png(np.concatenate(bench.sheet)))


class Bench:
  """A model, and held-out clips of its size."""

  def __init__(self, args):
    self.system, self.model, self.trained = pipeline.load(args.checkpoint, args.step)
    fields = dict(self.trained['sample']) | sample_verb.given(args, sample_verb.SAMPLING)
    self.config = config_lib.build(pipeline.Config, fields, 'sample')
    self.size = size = pipeline.size_of(self.system, self.trained)
    self.codecs, self.rate = self.system.codecs, self.system.codecs.audio.sample_rate
    self.drawn = world.Config.simple(
      **dict(height=size.height, width=size.width, frames=size.frames, fps=size.fps),
      **dict(
        sample_rate=self.rate, channels=self.codecs.audio.audio_channels, samples=size.samples
      ),
    )
    self.world = world.World(self.drawn, SEED)
    self.truth = [self.world[i] for i in range(args.clips)]
    self.coded = evaluate.round_trip(self.codecs, self.truth)
    self.sheet = []

  def made(self, rows, **changes):
    """(Clips of rows, their frames [b T H W 3] as the decoder leaves them)."""
    size = pipeline.size_of(self.system, self.trained, **changes)
    sampler, clips = pipeline.Pipeline(self.system, self.model, size, self.config), []
    for i in range(0, len(rows), BATCH):
      some = rows[i : i + BATCH]
      clips += sampler(some, range(i, i + len(some)))
    latents = np.stack([clip.latents['video'] for clip in clips])
    self.sheet.append(np.concatenate(clips[0].frames[::2], 1))
    return clips, np.asarray(pipeline.pixels_uint8(self.codecs.video, latents))

  def seen(self, clips, wanted=None) -> dict:
    """evaluate's scores of clips, against true ones."""
    rows = evaluate.look_and_listen(clips, self.size, self.rate)
    return evaluate.scores(rows, [x.truth.objects[0] for x in wanted or self.truth])


def psnr(frames, truth, where=None) -> float:
  """dB, mean over clips, of the pixels of these frames where a mask is true."""
  error = np.mean((np.asarray(frames, np.float64) - truth) ** 2, -1)
  error = [
    e[w].mean() for e, w in zip(error, np.ones(error.shape, bool) if where is None else where)
  ]
  return float(np.mean(10 * np.log10(255**2 / np.maximum(error, 1e-3))))


def stacked(clips) -> np.ndarray:
  return np.stack([clip.frames for clip in clips])


def given(sample, at, caption=None) -> Row:
  """A row in which the frames at these places are known."""
  known = np.isin(np.arange(len(sample.frames)), at)[:, None, None]
  caption = sample.captions['short'] if caption is None else caption
  return Row(sample.frames, known=known, caption=caption)


def first_frame(b):
  """Without a prompt: the frame alone tells what moves."""
  clips, seen = b.made([given(sample, [0], caption='') for sample in b.truth])
  truth = stacked(b.truth)
  kinds = seen, stacked(b.coded), np.roll(truth, 1, 0)
  yield 'its PSNR, dB', *(psnr(x[:, :1], truth[:, :1]) for x in kinds)
  yield from looks(b, clips)


def looks(b, clips, without=None):
  """Colour and shape, beside those through the codecs."""
  ours, best = b.seen(clips), b.seen(b.coded)
  chance = dict(color_accuracy=1 / len(world.COLORS), shape_accuracy=1 / len(world.SHAPES))
  least = b.seen(without) if without else chance
  for name in chance:
    yield name.replace('_', ' ').replace('color', 'colour'), ours[name], best[name], least[name]


def timed_frames(b):
  _, seen = b.made([given(sample, TIMED) for sample in b.truth])
  truth, at = stacked(b.truth), list(TIMED)
  kinds = seen, stacked(b.coded), np.roll(truth, 1, 0)
  yield 'their PSNR, dB', *(psnr(x[:, at], truth[:, at]) for x in kinds)

  def on_time(frames):
    """Share of the given frames to which the one in their place is the nearest of all."""
    far = np.square(frames[:, :, None].astype(float) - truth[:, None, at]).mean((3, 4, 5))
    return np.mean(far.argmin(1) == at)

  yield 'share nearest at their time', on_time(seen), on_time(kinds[1]), 1 / b.size.frames


def extension(b):
  """Of the true clips; at best is what truly follows, no skill a hard cut to another clip."""
  on = Extension('')
  known = on.known(b.size, b.codecs.video.time_factor)
  sources = [media.Clip(x.frames, b.size.fps, x.samples, b.rate) for x in b.truth]
  rows = []
  for source, sample in zip(sources, b.truth):
    samples, heard = on.heard(source, b.size, known)
    frames, caption = on.shown(source, known), sample.captions['short']
    shown = known[:, None, None]
    rows.append(Row(frames, samples, shown, heard, caption=caption))
  clips, seen = b.made(rows)
  overlap = stacked(b.truth)[:, -known.sum() :]
  best = stacked(b.coded)[:, -known.sum() :]
  kinds = seen[:, known], best, np.roll(overlap, 1, 0)
  yield 'PSNR of the overlap, dB', *(psnr(x, overlap) for x in kinds)
  joined = [on.joined(source, clip, known) for source, clip in zip(sources, clips)]
  length = len(joined[0].frames)
  more = dataclasses.replace(
    b.drawn, frames=length, samples=media.audio_length(length, b.size.fps, b.rate)
  )
  longer = [world.World(more, SEED)[i] for i in range(len(b.truth))]
  others = [dataclasses.replace(c, **cut(c, o, b)) for c, o in zip(joined, np.roll(joined, 1))]
  kinds = joined, longer, others
  # Frame by frame, and every HOP of the sound: what happens where the source ends, and elsewhere.
  end, hop = len(sources[0].samples), round(HOP * b.rate)
  moved = lambda clip: smooth(changes(clip.frames), b.size.frames - 1, 0)
  quiet = lambda clip: smooth(flux(clip.samples, hop), end // hop, round(AROUND / HOP))
  for figure, good in (
    ('share of joints no larger a change of the picture than another', moved),
    ('share of joints without a click', quiet),
  ):
    yield figure, *(np.mean([good(clip) for clip in of]) for of in kinds)


def cut(clip, other, b) -> dict:
  """The frames and sound of a clip, and after it those of another."""
  frames, samples = b.size.frames, b.size.samples
  return dict(
    frames=np.concatenate([clip.frames[:frames], other.frames[frames:]]),
    samples=np.concatenate([clip.samples[:samples], other.samples[samples:]]),
  )


def changes(frames) -> np.ndarray:
  """[T - 1]: mean square of what changes from each frame to the next."""
  return np.square(np.diff(frames.astype(float), axis=0)).mean((1, 2, 3))


def flux(samples, hop: int) -> np.ndarray:
  """[windows]: how much louder, dB over all bands, each window is than the one before."""
  view = np.lib.stride_tricks.sliding_window_view(samples.mean(1), 4 * hop)[::hop]
  power = np.abs(np.fft.rfft(view * np.hanning(4 * hop))) ** 2
  rise = np.diff(10 * np.log10(power + FLOOR), axis=0)
  return np.maximum(rise, 0).mean(1)


def smooth(series, at: int, reach: int) -> bool:
  """Is what happens within reach of a place no more than what happens elsewhere?"""
  near = np.abs(np.arange(len(series)) - at) <= reach
  return bool(series[near].max() <= series[~near].max())


def edit(b):
  """The object is to have another colour; at best is the target, no skill the source."""
  sources, targets, masks, told = zip(*(b.world.edit(i, 'recolor') for i in range(len(b.truth))))
  rows = [
    Row(source.frames, known=~mask, caption=kinds.instructed(target.captions, words)['short'])
    for source, target, mask, words in zip(sources, targets, masks, told)
  ]
  clips, seen = b.made(rows)
  source, target, mask = stacked(sources), stacked(targets), np.stack(masks)
  coded = evaluate.round_trip(b.codecs, targets)
  best = stacked(coded)
  yield (
    'outside, PSNR to the source, dB',
    *(psnr(x, source, ~mask) for x in (seen, best, np.roll(source, 1, 0))),
  )
  changed = np.any(stacked(clips) != source, -1) & ~mask
  yield 'outside, share of pixels changed in the file', changed.mean(), 0.0, None
  yield 'inside, PSNR to the target, dB', *(psnr(x, target, mask) for x in (seen, best, source))
  accuracy = lambda of: b.seen(of, targets)['color_accuracy']
  yield 'colour accuracy', accuracy(clips), accuracy(coded), accuracy(sources)


def reference(b):
  """The prompt names the object only as @image_1; no skill is the prompt alone."""
  records = [kinds.make(b.world, i, 'image_ref') for i in range(len(b.truth))]
  rows = [Row(caption=record.captions['short']) for record in records]
  shown = [
    dataclasses.replace(row, images=(record.references[0].frames[0],))
    for row, record in zip(rows, records)
  ]
  clips, _ = b.made(shown, reference_images=1)
  yield from looks(b, clips, b.made(rows)[0])


def sound(b):
  """Made for the true picture; no skill is the sound of another clip."""
  whole = AV(video=True, audio=False)
  rows = [Row(x.frames, clean=whole, caption=x.captions['short']) for x in b.truth]
  yield from onsets(b, b.made(rows)[0])


def picture(b):
  """Made for the true sound."""
  whole = AV(video=False, audio=True)
  rows = [Row(samples=x.samples, clean=whole, caption=x.captions['short']) for x in b.truth]
  yield from onsets(b, b.made(rows)[0])


def file(b):
  """True clips written as MP4 and read back."""
  rate, fps = b.rate, b.size.fps
  like = dict(height=b.size.height, width=b.size.width, fps=fps, frames=b.size.frames)
  like |= dict(sample_rate=rate, channels=b.codecs.audio.audio_channels)
  read = [media.read(mp4.write(None, x.frames, fps, x.samples, rate), **like) for x in b.truth]
  yield from onsets(b, read)
  late = [lag(x.samples, y.samples) / rate for x, y in zip(read, b.truth) if y.samples.any()]
  yield 'most that a sound is moved, ms', 1000 * max(map(abs, late)), 0.0, None


def onsets(b, clips):
  """Between rings and bounces, paired; those of other clips are the least."""
  ours = b.seen(clips)
  best = b.seen(b.truth)['onset_error_ms']
  yield 'onset error, ms', ours['onset_error_ms'], best, ours['onset_error_shuffled_ms']


def lag(a, b) -> int:
  """Samples by which a is b later, where their correlation is largest."""
  a, b = a.mean(1), b.mean(1)
  spectrum = np.fft.rfft(a, 2 * len(a)) * np.fft.rfft(b, 2 * len(b)).conj()
  found = int(np.fft.irfft(spectrum).argmax())
  return found - 2 * len(a) if found > len(a) else found


if __name__ == '__main__':
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  main()
