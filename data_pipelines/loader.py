"""Records to batches: what a step sees is a function of (seed, step), on any number of hosts."""

from collections.abc import Callable
from collections.abc import Iterator
import dataclasses
import os
import threading

import grain
import numpy as np

from data_pipelines import buckets
from data_pipelines import records
from sr4.core import errors
from sr4.core.av import AV
from sr4.core.batch import Clips

ATTEMPTS = 4  # records that may stand in for a bad one before its row is left empty


class DataError(errors.UserError):
  """Data that cannot be trained on."""


@dataclasses.dataclass(frozen=True)
class BucketConfig:
  """One static shape and where its records lie."""

  records: tuple[str, ...]  # folders that data_pipelines wrote
  frames: int
  height: int
  width: int
  fps: float
  rows: int  # of the global batch
  weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class CaptionConfig:
  """Share of the draws that read each length of caption."""

  short: float = 1.0
  long: float = 0.0
  structured: float = 0.0


@dataclasses.dataclass(frozen=True)
class Config:
  buckets: dict[str, BucketConfig]
  root: str = ''  # folders of records are relative to it
  captions: CaptionConfig = CaptionConfig()
  threads: int = 2  # each reads a batch ahead; one of 256p clips is tens of megabytes
  bad_share: float = 0.02  # of the rows that may be unreadable before the run stops


class Folders:
  """Several folders of records as one sequence."""

  def __init__(self, name: str, root: str, folders: tuple[str, ...]):
    if not folders:
      raise DataError(f'bucket {name!r} names no folder of records')
    self.sources = [records.Source(os.path.join(root, folder)) for folder in folders]
    self.starts = np.cumsum([0] + [len(s) for s in self.sources])

  def __len__(self) -> int:
    return int(self.starts[-1])

  def __getitem__(self, index: int) -> records.Record:
    part = int(np.searchsorted(self.starts, index, 'right')) - 1
    return self.sources[part][index - int(self.starts[part])]


class Loader:
  """Iterates (step, bucket, Clips of this host's rows) from any step.

  Args:
    config: what to read.
    sizes: {name: core.batch.Size} of the buckets.
    text: list of captions -> (float32 [b m e], bool [b m]).
    sample_rate, channels: of the sound, in Hz, and 1 or 2.
  """

  def __init__(
    self,
    config: Config,
    sizes: dict,
    text: Callable,
    sample_rate: int,
    channels: int,
    *,
    seed: int,
    host: int = 0,
    hosts: int = 1,
  ):
    self.config, self.text, self.channels = config, text, channels
    self.host, self.hosts = host, hosts
    named = sorted(config.buckets.items())
    self.folders = [Folders(name, config.root, b.records) for name, b in named]
    for (name, _), folders in zip(named, self.folders):
      for source in folders.sources:
        check_fits(source, sizes[name], sample_rate)
    self.schedule = buckets.Schedule(
      seed,
      tuple(
        buckets.Bucket(name, sizes[name], b.rows, b.weight, len(f))
        for (name, b), f in zip(named, self.folders)
      ),
    )
    buckets.check_hosts(self.schedule, hosts)
    self.bad, self.seen, self.lock = 0, 0, threading.Lock()

  def __call__(self, start: int, stop: int) -> Iterator[tuple[int, int, Clips]]:
    """Batches of the steps [start, stop)."""
    steps = grain.MapDataset.range(start, stop).map(self.batch)
    options = grain.ReadOptions(
      num_threads=self.config.threads, prefetch_buffer_size=self.config.threads
    )
    return iter(steps.to_iter_dataset(options))

  def batch(self, step: int) -> tuple[int, int, Clips]:
    b, draws = self.schedule.draws(int(step), self.host, self.hosts)
    size = self.schedule.buckets[b].size
    rows = [self.row(b, draw) for draw in draws]
    text, text_valid = self.text([caption for _, _, caption in rows])
    empty = AV(
      np.zeros((size.frames, size.height, size.width, 3), np.uint8),
      np.zeros((size.samples, self.channels), np.float32),
    )
    stack = lambda i: np.stack([empty[i] if row[i] is None else row[i] for row in rows])
    has = lambda i: np.array([row[i] is not None for row in rows])
    return (
      int(step),
      b,
      Clips(
        stack(0) if size.frames else None,
        stack(1) if size.samples else None,
        None,
        text,
        text_valid,
        AV(has(0), has(1)),
      ),
    )

  def row(self, b: int, draw: int):
    """(frames or None, samples or None, caption) of a draw; a bad record is replaced by others."""
    with self.lock:
      self.seen += 1
    for attempt in range(ATTEMPTS):
      index = self.schedule.record(b, draw, attempt)
      try:
        return self.fit(self.folders[b][index], self.schedule.buckets[b].size, draw)
      except (records.RecordError, DataError) as error:
        self.count_bad(f'{self.schedule.buckets[b].name}[{index}]: {error}')
    return None, None, ''

  def fit(self, record: records.Record, size, draw: int):
    """Crops a record to the bucket's length; what is too short or of another size is bad."""
    random = np.random.Generator(np.random.Philox(key=[self.schedule.seed, draw]))
    place = random.random()
    frames = samples = None
    start = 0
    if record.has_video and size.frames:
      if record.frames.shape[1:3] != (size.height, size.width) or record.fps != size.fps:
        raise DataError(
          f'{record.frames.shape[1:3]} at {record.fps} fps, but the bucket is '
          f'{(size.height, size.width)} at {size.fps} fps'
        )
      start = int(place * (len(record.frames) - size.frames + 1))
      frames = record.frames[start : start + size.frames]
      if len(frames) < size.frames:
        raise DataError(f'{len(record.frames)} frames, but the bucket has {size.frames}')
    if record.has_audio and size.samples:
      first = round(start / size.fps * record.sample_rate)
      samples = mixed(record.samples[first : first + size.samples], self.channels)
      samples = np.pad(samples, ((0, size.samples - len(samples)), (0, 0)))
    return frames, samples, self.caption(record.captions, random.random())

  def caption(self, captions: dict[str, str], place: float) -> str:
    """One of the lengths that the record has, by their shares."""
    shares = {n: s for n, s in dataclasses.asdict(self.config.captions).items() if captions.get(n)}
    total = sum(shares.values())
    for name, share in shares.items():
      place -= share / total if total else 0
      if place < 0:
        return captions[name]
    return next(iter(captions.values()), '')

  def count_bad(self, why: str):
    with self.lock:
      self.bad += 1
      print(f'bad record, another takes its place: {why}', flush=True)
      if self.bad > 10 and self.bad > self.config.bad_share * self.seen:
        raise RuntimeError(
          f'{self.bad} of {self.seen} records could not be used, the last: {why}; '
          'repair the data, or raise config.data.bad_share'
        )

  def table(self, tokens: Callable, steps: int) -> str:
    """What a run of this many steps will see, a line a bucket.  tokens: Size -> AV of counts."""
    lines = ['bucket           rows   share   clips  with sound  epochs   video + audio tokens']
    shares = self.schedule.shares / self.schedule.cycle
    for b, f, share, epochs in zip(
      self.schedule.buckets, self.folders, shares, self.schedule.epochs(steps)
    ):
      count = tokens(b.size)
      sound = sum(s.manifest.audio for s in f.sources)
      lines.append(
        f'{b.name:<16} {b.rows:>4} {share:>7.2%} {len(f):>7} {sound:>11} {epochs:>7.2f}   '
        f'{b.rows} x ({count.video} + {count.audio})'
      )
    return '\n'.join(lines)


def check_fits(source: records.Source, size, sample_rate: int):
  """DataError where a folder cannot fill a bucket of this size at all."""
  manifest = source.manifest
  if size.samples and set(manifest.sample_rates) - {sample_rate}:
    raise DataError(
      f'{source.directory}: sound at {manifest.sample_rates} Hz, but the audio codec '
      f'takes {sample_rate} Hz; write the records with --sample_rate {sample_rate}'
    )
  shapes = [tuple(map(int, shape.split())) for shape in manifest.sizes]
  fits = [t for t, h, w in shapes if t >= size.frames and (h, w) == (size.height, size.width)]
  if size.frames and (not fits or size.fps not in manifest.fps):
    raise DataError(
      f'{source.directory}: frames x height x width are {sorted(shapes)} at '
      f'{manifest.fps} fps, and the bucket wants {size.frames} x {size.height} x '
      f'{size.width} at {size.fps} fps; change the bucket or write the records anew'
    )


def mixed(samples: np.ndarray, channels: int) -> np.ndarray:
  """[n c] as float32 [n channels]: mono doubled, stereo averaged."""
  if samples.shape[1] == channels:
    return samples
  return samples.mean(1, keepdims=True) if channels == 1 else np.repeat(samples, 2, 1)
