"""Records to batches: what a step sees is a function of (seed, step), on any number of hosts.

    load = Loader(config, sizes, read, ...)
    for step, bucket, clips in load(start, stop): ...

A record that cannot be used never changes a shape: another of the same bucket takes its place, and
after that an empty row that no loss counts.  Each is written down with its reason.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import json
import types

import grain
import numpy as np

from data_pipelines import buckets
from data_pipelines import coded as coded_lib
from data_pipelines import collate
from data_pipelines import records
from data_pipelines import tasks
from sr4.core import captions
from sr4.core import errors
from sr4.core.batch import Clips
from sr4.core.batch import Latents
from sr4.core.batch import Low
from sr4.core.batch import Size
from sr4.core.prompt import Prompt

ATTEMPTS = 4  # records that may stand in for a bad one before its row is left empty


class DataError(errors.UserError):
  """Data that cannot be trained on."""


@dataclasses.dataclass(frozen=True)
class BucketConfig:
  """One static shape, where its records lie, and what is done with them."""

  # Folders that data_pipelines wrote, latents:FOLDER of those that encode.py did, or
  # tfds:NAME/VERSION:SPLIT.
  records: tuple[str, ...]
  rows: int  # of the global batch
  frames: int = 0  # 0: sound alone
  height: int = 0
  width: int = 0
  fps: float = 16.0
  weight: float = 1.0
  sound: bool = True  # whether there is an audio branch in the batch
  seconds: float = 0.0  # of sound, where there are no frames
  keyframes: int = 0
  keyframe_scale: int = 1  # the records are as many times larger than height x width
  reference_images: int = 0  # slots
  reference_frames: int = 0
  reference_seconds: float = 0.0
  low: Low | None = None  # the bucket is a Refiner's
  tasks: dict[str, float] = dataclasses.field(default_factory=dict)  # names to shares of the rows

  def __post_init__(self):
    coded = {name.startswith(records.LATENTS) for name in self.records}
    if len(coded) == 2:
      raise ValueError(f'records={self.records}: all are {records.LATENTS}... or none is')

  @property
  def coded(self) -> bool:
    """Are its records latents?"""
    return self.records[:1] != () and self.records[0].startswith(records.LATENTS)

  def size(self) -> dict:
    """The arguments of models.system.System.size."""
    other = ('records', 'rows', 'weight', 'tasks')
    return {k: v for k, v in dataclasses.asdict(self).items() if k not in other}


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
  workers: int = 0  # processes that read, each with these threads; 0: this one
  bad_share: float = 0.02  # of the rows that may be unreadable before the run stops
  phase: int = 0  # raise it to go on from a checkpoint with other data; see training/loop.py


class Folders:
  """Several folders of records as one sequence."""

  def __init__(self, name: str, root: str, folders: tuple[str, ...]):
    if not folders:
      raise DataError(f'bucket {name!r} names no folder of records')
    self.sources = [records.open(folder, root) for folder in folders]
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
    read: (list of Prompt, Size) -> (tree of [b ...], bool [b m]) of a text encoder.
    sample_rate, channels: of the sound, in Hz, and 1 or 2.
    time_factor: frames under a latent of the video codec.
    coded: {bucket: coded.Fit} of those that read latents.
    parts, of: which of the equal parts of a batch's rows are this host's (core/sharding.py), and of
      how many.
    dropped: file that gets a line of JSON for each record that could not be used.
  """

  def __init__(
    self,
    config: Config,
    sizes: dict,
    read: Callable,
    sample_rate: int,
    channels: int,
    time_factor: int,
    *,
    seed: int,
    coded: Mapping[str, coded_lib.Fit] = types.MappingProxyType({}),
    parts: tuple[int, ...] = (0,),
    of: int = 1,
    dropped: str | None = None,
    cycle: int = buckets.CYCLE,
  ):
    self.config, self.read, self.channels = config, read, channels
    self.time_factor, self.parts, self.of = time_factor, parts, of
    self.coded = dict(coded)
    self.shares = dataclasses.asdict(config.captions)
    named = sorted(config.buckets.items())
    self.folders = [Folders(name, config.root, b.records) for name, b in named]
    shares = [b.tasks or {tasks.natural(sizes[name]): 1.0} for name, b in named]
    for (name, _), folders, share in zip(named, self.folders, shares):
      for source in folders.sources:
        if name in self.coded:
          self.coded[name].check(source, sizes[name])
        else:
          check_fits(source, sizes[name], sample_rate)
      for task in share:
        try:
          tasks.check(task, sizes[name], [source.manifest for source in folders.sources])
        except tasks.TaskError as error:
          raise DataError(f'bucket {name!r}: {error}') from error
        if name in self.coded and task not in (known := tasks.of_latents(sizes[name])):
          raise DataError(
            f'bucket {name!r}: task {task!r} hides a part of the frames, so it reads these; give '
            f'it records of media (with latents there are {", ".join(known)})'
          )
    self.schedule = buckets.Schedule(
      seed,
      tuple(
        buckets.Bucket(name, sizes[name], b.rows, b.weight, len(f), tuple(share.items()))
        for (name, b), f, share in zip(named, self.folders, shares)
      ),
      cycle,
    )
    self.dropped, self.bad, self.seen = dropped, 0, 0

  @property
  def media(self) -> bool:
    """Does any bucket read media?"""
    return len(self.coded) < len(self.folders)

  def __call__(self, start: int, stop: int) -> Iterator[tuple[int, int, Clips]]:
    """Batches of the steps [start, stop)."""
    steps = grain.MapDataset.range(start, stop).map(self.batch)
    options = grain.ReadOptions(
      num_threads=self.config.threads, prefetch_buffer_size=self.config.threads
    )
    ready = steps.to_iter_dataset(options)
    if self.config.workers:
      from absl import flags

      if not flags.FLAGS.is_parsed():  # Grain's processes read them; the verbs do not use absl.
        flags.FLAGS.mark_as_parsed()
      ready = ready.mp_prefetch(
        grain.MultiprocessingOptions(self.config.workers, per_worker_buffer_size=1)
      )
    for step, b, clips, reasons in ready:
      self.count(step, len(clips.text_valid), reasons)
      yield step, b, clips

  def batch(self, step: int) -> tuple[int, int, Clips, tuple[str, ...]]:
    """(step, bucket, clips, why records were not used); nothing here outlives the call."""
    b, draws = self.schedule.draws(int(step), self.parts, self.of)
    bucket, reasons, latents = self.schedule.buckets[b], [], Latents()
    rows = [self.row(b, draw, reasons) for draw in draws]
    named = [name for name, _ in bucket.tasks]
    if fit := self.coded.get(bucket.name):
      text, latents = fit.text_of(rows), fit.latents
    else:
      prompts = [Prompt(row.caption, row.images, row.clip, bucket.size.fps) for row in rows]
      text = self.read(prompts, bucket.size)
    has = collate.fields(named, bucket.size, latents)
    clips = collate.collate(rows, bucket.size, has, *text, self.channels)
    return int(step), b, clips, tuple(reasons)

  def row(self, b: int, draw: int, reasons: list[str]) -> tasks.Row:
    """What a draw takes; a bad record is replaced by others of the bucket."""
    bucket, task = self.schedule.buckets[b], self.schedule.task(b, draw)
    for attempt in range(ATTEMPTS):
      index = self.schedule.record(b, draw, attempt)
      random = np.random.Generator(np.random.Philox(key=[self.schedule.seed, draw], counter=b))
      try:
        record = self.folders[b][index]
        make = tasks.made if bucket.name in self.coded else tasks.make
        row = make(task, record, bucket.size, random, self.time_factor, self.channels)
        caption = captions.choose(record.captions, self.shares, random.random())
        if bucket.name in self.coded:
          text = coded_lib.embedding(record, caption, tasks.TASKS[task].references)
          row = dataclasses.replace(row, text=text)
        return dataclasses.replace(row, caption=caption)
      except (records.RecordError, tasks.TaskError) as error:
        if not isinstance(error, tasks.Unsuited) or attempt == ATTEMPTS - 1:
          reasons.append(f'{bucket.name}[{index}] for {task}: {error}')
    return tasks.Row()

  def count(self, step: int, rows: int, reasons: tuple[str, ...]):
    """Writes down what could not be used; too much of it stops the run."""
    self.seen += rows
    self.bad += len(reasons)
    for why in reasons:
      print(f'bad record, another takes its place: {why}', flush=True)
    if reasons and self.dropped:
      with open(self.dropped, 'a', encoding='utf-8') as file:
        file.writelines(json.dumps({'step': step, 'reason': why}) + '\n' for why in reasons)
    if self.bad > 10 and self.bad > self.config.bad_share * self.seen:
      raise DataError(
        f'{self.bad} of {self.seen} records could not be used, the last: {reasons[-1]}; '
        'repair the data, or raise config.data.bad_share'
      )

  def table(self, tokens: Callable, steps: int, devices: int = 1) -> str:
    """What a run of this many steps will see, a line for each modality of each bucket.

    Args:
      tokens: Size -> AV of counts.
    """
    lines = [
      'bucket           share  modality  records  epochs  tokens a row  a device and step  tasks'
    ]
    shares = self.schedule.shares / self.schedule.cycle
    for b, f, share in zip(self.schedule.buckets, self.folders, shares):
      draws, count = steps * share * b.rows, tokens(b.size)
      told = ', '.join(f'{name} {weight:g}' for name, weight in b.tasks)
      for modality, number, size in (
        ('video', count.video, sum(s.manifest.video for s in f.sources)),
        ('audio', count.audio, sum(s.manifest.audio for s in f.sources)),
      ):
        if number:
          lines.append(
            f'{b.name:<16} {share:>5.1%}  {modality:<8} {size:>8} {draws / len(f):>7.2f} '
            f'{number:>13} {number * b.rows / devices:>18.0f}  {told}'
          )
          told = ''
    return '\n'.join(lines)


def check_fits(source, size: Size, sample_rate: int):
  """DataError where a folder cannot fill a bucket of this size at all."""
  manifest = source.manifest
  if size.samples and set(manifest.sample_rates) - {sample_rate}:
    raise DataError(
      f'{source.directory}: sound at {manifest.sample_rates} Hz, but the audio codec '
      f'takes {sample_rate} Hz; write the records with --sample_rate {sample_rate}'
    )
  if not size.frames:
    if not manifest.audio:
      raise DataError(f'{source.directory} holds no sound, and the bucket wants nothing else')
    return
  height, width = size.height * size.keyframe_scale, size.width * size.keyframe_scale
  shapes = [tuple(map(int, shape.split())) for shape in manifest.sizes]
  fits = [t for t, h, w in shapes if t >= size.frames and (h, w) == (height, width)]
  if not fits or (size.frames > 1 and size.fps not in manifest.fps):
    raise DataError(
      f'{source.directory}: frames x height x width are {sorted(shapes)} at '
      f'{manifest.fps} fps, and the bucket wants {size.frames} x {height} x {width} at '
      f'{size.fps:g} fps; change the bucket or write the records anew'
    )
