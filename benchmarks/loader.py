"""How fast the loader feeds a step, beside PyAV decoding the same bytes with the same threads.

  python benchmarks/loader.py    # About four minutes on two CPU cores.

Records are what a stage reads: 5 s of 192x336 at 16 fps with stereo sound, MP4 (H.264, AAC).  Bare
PyAV is a loop over the same bytes: open, decode, convert to rgb24, decode the sound; no crop, no
resampling, no schedule, no batch.  It drops each picture, or keeps a clip's in one array, or keeps
the same pixels as the loader: PyAV's quick conversion takes the nearest chroma and does not round,
which costs 2.4 dB here.  Rounds alternate, because cores are noisy.
"""

import collections
from concurrent import futures
import functools
import io
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time

import av
import numpy as np

from data_pipelines import loader
from data_pipelines import records
from data_pipelines import world
from data_pipelines.world import kinds
from sr4.core.batch import Size
from sr4.training import metrics

CLIPS, ROWS, THREADS, ROUNDS = 32, 4, 2, 9
SIZE = Size(81, 192, 336, 16.0, 81000)


def write(folder: str, size: Size, count: int, codec: str):
  make = world.Config.simple if codec == 'raw' else world.Config
  source = world.World(
    make(height=size.height, width=size.width, frames=size.frames, fps=size.fps, channels=2)
  )
  records.write(folder, (kinds.make(source, i, 'clips') for i in range(count)), codec=codec)


def text(prompts, size):
  return np.zeros((len(prompts), 1, 1), np.float32), np.ones((len(prompts), 1), bool)


def loading(root: str, size: Size, rows: int) -> loader.Loader:
  folders = ('clips',) * 16  # Shuffling is slow among very few, and no stage has so few.
  bucket = loader.BucketConfig(folders, rows, size.frames, size.height, size.width, size.fps)
  config = loader.Config({'clips': bucket}, root=root, threads=THREADS)
  return loader.Loader(config, {'clips': size}, text, 16000, 2, 4, seed=0)


def frames_of(data: bytes, accurate: bool):
  """Pictures as rgb24; the sound is decoded beside."""
  with av.open(io.BytesIO(data), format='mp4') as container:
    graph = accurate and converter(container.streams.video[0])
    for stream in container.streams:
      stream.thread_count = 1
    for frame in container.decode():
      if isinstance(frame, av.AudioFrame):
        frame.to_ndarray()
      elif accurate:
        graph.vpush(frame)
        yield graph.vpull().to_ndarray()
      else:
        yield frame.to_ndarray(format='rgb24')


def converter(stream):
  """A filter graph to the pixels that the loader gives."""
  graph = av.filter.Graph()
  flags = 'flags=bicubic+accurate_rnd+full_chroma_int'
  graph.link_nodes(
    graph.add_buffer(template=stream),
    graph.add('scale', flags),
    graph.add('format', 'rgb24'),
    graph.add('buffersink'),
  ).configure()
  return graph


def dropped(data: bytes) -> int:
  return sum(1 for _ in frames_of(data, accurate=False))


def kept(data: bytes, accurate: bool = False) -> int:
  return len(np.stack(list(frames_of(data, accurate))))


def same(data: bytes) -> int:
  return kept(data, accurate=True)


def media_of(source: records.Source) -> list[bytes]:
  """The MP4 inside each record, without what surrounds it."""
  import safetensors.numpy

  found = []
  for i in range(len(source)):
    _, data = source.read(i)
    (media,) = safetensors.numpy.load(data[4:]).values()
    found.append(media.tobytes())
  return found


def speed():
  with tempfile.TemporaryDirectory() as root:
    write(os.path.join(root, 'clips'), SIZE, CLIPS, 'mp4')
    load, files = loading(root, SIZE, ROWS), media_of(records.Source(os.path.join(root, 'clips')))
    steps, speeds = CLIPS // ROWS, collections.defaultdict(list)
    for turn in range(ROUNDS):
      batches = functools.partial(load, turn * steps, (turn + 1) * steps)
      for name, run in (
        ('bare PyAV, pictures dropped', functools.partial(parallel, dropped, files)),
        ('bare PyAV, clips kept', functools.partial(parallel, kept, files)),
        ('bare PyAV, the same pixels', functools.partial(parallel, same, files)),
        ('loader, whole batches', lambda batches=batches: collections.deque(batches(), 0)),
      ):
        began = time.monotonic()
        run()
        speeds[name].append(CLIPS / (time.monotonic() - began))
  ours = speeds['loader, whole batches']
  print(f'{THREADS} threads, median of {ROUNDS} rounds       clips/s   loader / this')
  for name, found in speeds.items():
    low, *_, high = ratios = sorted(a / b for a, b in zip(ours, found))
    told = f'{statistics.median(ratios):.2f} ({low:.2f} .. {high:.2f})'
    print(f'{name:<32} {statistics.median(found):8.1f}   {told}')


def parallel(decode, files):
  with futures.ThreadPoolExecutor(THREADS) as pool:
    assert set(pool.map(decode, files)) == {SIZE.frames}


def resident() -> float:
  """MiB of this process."""
  with open('/proc/self/status') as status:
    (line,) = [line for line in status if line.startswith('VmRSS')]
  return int(line.split()[1]) / 1024


def memory():
  size = Size(17, 32, 32, 16.0, 17000)
  with tempfile.TemporaryDirectory() as root:
    write(os.path.join(root, 'clips'), size, 500, 'raw')
    load, seen, peak = loading(root, size, 20), {}, 0.0
    for step, _, _ in load(0, 500):
      peak = max(peak, resident())
      if step + 1 in (50, 250, 500):
        seen[(step + 1) * 20] = peak
  told = ', '.join(f'{draws} draws {mib:.0f} MiB' for draws, mib in seen.items())
  print(f'peak memory after {told}')


def waiting():
  """The demo's step on this machine: how long it waits for its data."""
  with tempfile.TemporaryDirectory() as root:
    data = os.path.join(root, 'data', 'world')
    clip = '--frames 17 --height 32 --width 32 --sample_rate 16000 --channels 1'
    run = [sys.executable, '-m', 'data_pipelines.world', '--simple', '--count', '512']
    subprocess.run([*run, '--out', data, *clip.split()], check=True, stderr=subprocess.DEVNULL)
    train = [sys.executable, '-m', 'sr4', 'train', '--config', 'configs/world.py:demo']
    changes = [f'--config.data.root={root}/data', '--config.train.steps=120']
    subprocess.run([*train, '--workdir', root, *changes], check=True, capture_output=True)
    rows = itertools.islice(metrics.read(os.path.join(root, 'metrics.jsonl')), 1, None)
    waits, steps = zip(*((row['data_wait_seconds'], row['step_seconds']) for row in rows))
  print(f'a step of the demo waits {sum(waits) / sum(steps):.2%} of its {np.mean(steps):.3f} s')


if __name__ == '__main__':
  speed()
  memory()
  waiting()
