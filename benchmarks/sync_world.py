"""Is time aligned across modalities?  The loss of one, where the other is given early or late.

  python benchmarks/sync_world.py --checkpoint out/tasks/checkpoints [--clips 512] [--time 0.3]

Of held-out clips that ring.  It is least without a shift if the model reads time as it is, and
greater with the picture, or the sound, of another clip by as much as it has learnt of both.
"""

import argparse
import dataclasses
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines import records
from data_pipelines import world
from sr4 import pipeline
from sr4.core import prng
from sr4.core import sharding
from sr4.core.av import AV
from sr4.flow import conditioning
from sr4.flow import loss as flow_loss
from sr4.training import data

SEED = 1_000_000  # of the world of held-out clips
ROWS = 64
SHIFTS = (-8, -4, -2, 0, 2, 4, 8)  # frames
RINGS = 0.05  # of the largest sample there can be


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--checkpoint', required=True)
  parser.add_argument('--step', type=int)
  parser.add_argument('--clips', type=int, default=512)
  parser.add_argument('--time', type=float, default=0.3, help='of flow: 0 is noise, 1 data')
  args = parser.parse_args()
  print(f'| made | {" | ".join(f"{x:+d}" for x in SHIFTS)} | of another clip |')
  print('|---|' + '---|' * (len(SHIFTS) + 1))
  with sharding.default_mesh(), tempfile.TemporaryDirectory() as folder:
    system, model, trained = pipeline.load(args.checkpoint, args.step)
    size = pipeline.size_of(system, trained)
    write(folder, system, size, args.clips)
    for name, task in (('sound', 'v2a'), ('picture', 'a2v')):
      found = losses(system, model, size, folder, task, args)
      print(f'| {name} | {" | ".join(f"{x:.4f}" for x in found)} |', flush=True)


def write(folder: str, system, size, count: int):
  """Records FOLDER/clips of the held-out world."""
  audio = system.codecs.audio
  drawn = world.World(
    world.Config.simple(
      **dict(height=size.height, width=size.width, frames=size.frames, fps=size.fps),
      **dict(sample_rate=audio.sample_rate, channels=audio.audio_channels, samples=size.samples),
    ),
    SEED,
  )
  found = (drawn[i] for i in range(count))
  records.write(
    f'{folder}/clips',
    (
      records.Record(str(i), x.frames, size.fps, x.samples, audio.sample_rate, x.captions)
      for i, x in enumerate(found)
    ),
  )


def losses(system, model, size, folder: str, task: str, args) -> list[float]:
  """Means over clips that ring: of each of SHIFTS, then with another clip's."""
  sides = dict(frames=size.frames, height=size.height, width=size.width, fps=size.fps)
  bucket = dict(records=('clips',), rows=ROWS, tasks={task: 1}) | sides
  config = {'data': {'root': folder, 'buckets': {'clips': bucket}, 'threads': 1}}
  load = data.make_held_out(config, system, 0, folder, args.clips // ROWS)
  none = conditioning.DropConfig(text=0.0, references=0.0, modality=0.0)
  flow = flow_loss.Config(drop=none)

  @jax.jit
  def per_row(system, model, key, clips):
    batch = conditioning.encode(system.codecs, size, system.config.patch, system.embedded(clips))
    t, noise, cond = flow_loss.draw(key, batch, flow)
    t = AV(*(jnp.where(clean, 1.0, args.time) for clean in batch.clean))
    found = flow_loss.per_example(model, batch, (t, noise, cond))
    return found.audio if task == 'v2a' else found.video

  sums, count = np.zeros(len(SHIFTS) + 1), 0
  for step, _, clips in load(0, load.schedule.cycle):
    rings = np.abs(clips.samples).max((1, 2)) > RINGS
    count += rings.sum()
    given = [shifted(clips, task, frames, size) for frames in SHIFTS] + [another(clips, task)]
    key = prng.named(jax.random.key(0), 'step', step)  # The same noise for all.
    for i, one in enumerate(given):
      sums[i] += np.asarray(per_row(system, model, key, sharding.rows(one)))[rings].sum()
  return list(sums / count)


def shifted(clips, task: str, frames: int, size):
  """The given modality so many frames late; what it begins, or ends, with stays as long."""
  if task == 'v2a':
    at = np.clip(np.arange(size.frames) - frames, 0, size.frames - 1)
    return dataclasses.replace(clips, frames=np.asarray(clips.frames)[:, at])
  at = np.arange(size.samples) - round(frames * size.samples / size.frames)
  heard = np.asarray(clips.samples)[:, np.clip(at, 0, size.samples - 1)]
  there = (at >= 0) & (at < size.samples)
  return dataclasses.replace(clips, samples=np.where(there[:, None], heard, 0))


def another(clips, task: str):
  name = 'frames' if task == 'v2a' else 'samples'
  return dataclasses.replace(clips, **{name: np.roll(np.asarray(getattr(clips, name)), 1, 0)})


if __name__ == '__main__':
  main()
