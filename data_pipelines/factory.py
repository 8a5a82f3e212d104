"""What encode.py does: media to latents and embeddings, a unit of records after another."""

import collections
from collections.abc import Iterable
from collections.abc import Iterator
from concurrent import futures
import dataclasses
import functools
import itertools
import json
import sys
import time

import jax
import numpy as np
import tqdm

from data_pipelines import coded as coded_lib
from data_pipelines import collate
from data_pipelines import loader
from data_pipelines import records
from data_pipelines import tasks
from data_pipelines import units
from sr4.convert import weights
from sr4.core import captions
from sr4.core import config as config_lib
from sr4.core import sharding
from sr4.core.av import AV
from sr4.core.batch import Latents
from sr4.core.batch import Size
from sr4.core.prompt import Prompt
from sr4.flow import conditioning
from sr4.models import system as system_lib
from sr4.models.text import cache
from sr4.models.text import encoder

STATISTICS = 'statistics.json'


@dataclasses.dataclass(frozen=True)
class Job:
  """What is made of each record."""

  size: Size
  shares: dict[str, float]  # of the captions
  kinds: tuple[str, ...]  # of reference that any task of the bucket shows
  views: tuple[tuple[str, ...], ...]  # which of them, task by task
  channels: int  # of the sound
  rate: int
  time_factor: int  # frames under a latent

  @classmethod
  def of(cls, bucket: loader.BucketConfig, shares, size: Size, codecs: AV) -> 'Job':
    shown = [tasks.TASKS[name].references for name in bucket.tasks or (tasks.natural(size),)]
    kinds = tuple(kind for kind in records.KINDS if any(kind in some for some in shown))
    sound = codecs.audio.audio_channels, codecs.audio.sample_rate
    return cls(size, shares, kinds, tuple(shown), *sound, codecs.video.time_factor)


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
  """One clip of the bucket's length, of a record."""

  record: records.Record  # cut to it
  row: tasks.Row
  prompts: dict[tuple[str, tuple[str, ...]], Prompt]  # by caption and by what is shown


class Facts:
  """What is known of a unit once it is done."""

  def __init__(self):
    self.counts, self.dropped, self.seconds = records.Counts(), [], 0.0
    self.sums = {}  # {modality: (count, sum, sum of squares)} by channel, fp64

  def add(self, modality: str, latents: np.ndarray):
    x = latents.reshape(-1, latents.shape[-1]).astype(np.float64)
    self.merge_sums({modality: (len(x), x.sum(0), (x * x).sum(0))})

  def merge_sums(self, sums: dict):
    for name, more in sums.items():
      old = self.sums.get(name)
      self.sums[name] = more if old is None else tuple(a + b for a, b in zip(old, more))


def run(config, bucket: str, out, rows=None, unit: int = 64, threads: int = 2):
  """Makes records of latents of a bucket, this process's share of them.

  Raises:
    ConfigError, DataError, RecordError: what cannot be, before any work.
  """
  system = system_lib.build(config)
  data = config_lib.build(loader.Config, config['data'], 'config.data')
  if bucket not in data.buckets:
    raise config_lib.ConfigError(f'--bucket={bucket} is not among {", ".join(data.buckets)}')
  b = data.buckets[bucket]
  if b.coded:
    raise config_lib.ConfigError(
      f'config.data.buckets.{bucket}.records={b.records} are latents; name the media'
    )
  size = system.size(**b.size())
  kept = system.text if isinstance(system.text, cache.Cached) else None
  if out is None and kept is None:
    raise config_lib.ConfigError('give --out DIR, or config.text.cache to fill')
  system = dataclasses.replace(system, text=encoder.bare(system.text))
  folders = loader.Folders(bucket, data.root, b.records)
  for source in folders.sources:
    loader.check_fits(source, size, system.codecs.audio.sample_rate)
  job = Job.of(b, dataclasses.asdict(data.captions), size, system.codecs)
  mesh = sharding.make_mesh(jax.local_devices())
  rows = rows or len(mesh.devices.flat)
  if rows % len(mesh.devices.flat):
    raise config_lib.ConfigError(
      f'--rows={rows} must be a multiple of the {len(mesh.devices.flat)} devices of this process'
    )
  for name, value in (('rows', rows), ('unit', unit), ('threads', threads)):
    if value < 1:
      raise config_lib.ConfigError(f'--{name}={value} must be 1 or more')
  with jax.set_mesh(mesh):
    maker = Maker(weights.load(system), job, rows, kept)
    if kept:  # What previews will ask for: their prompts, and '' to fill up a batch of them.
      maker.embedded([Prompt(text) for text in ('', *config.get('preview', {}).get('prompts', ()))])
    if out is None:
      return fill(maker, folders, threads)
    sources = [[s.directory, [x['sha256'] for x in s.manifest.shards]] for s in folders.sources]
    latents = {
      'made': system.made(),
      'size': dataclasses.asdict(size),
      'captions': sorted(name for name, share in job.shares.items() if share),
      'kinds': list(job.kinds),
    }
    plan = latents | {'records': sources, 'unit': unit}
    work = units.Units(out, plan, -(-len(folders) // unit))
    produce(maker, folders, work, unit, threads)
  manifest = work.finish(functools.partial(joined, latents), statistics)
  if manifest is None:
    left = sum(1 for _ in work.todo())
    say(f'{left} of {work.count} units are not done; the process that does the last joins them')
  else:
    say(f'{manifest.count} clips, {manifest.seconds:.0f} s, {manifest.bytes:,} bytes: {out}')


def produce(maker: 'Maker', folders, work: units.Units, unit: int, threads: int):
  """All units of this process's share."""
  todo = list(work.todo(jax.process_index(), jax.process_count()))
  if len(todo) < work.count:
    say(f'{work.count - len(todo)} of {work.count} units are done, or others do them')
  began, seconds = None, 0.0
  with tqdm.tqdm(total=len(todo), unit='unit', file=sys.stdout) as bar:
    for i in todo:
      facts = Facts()
      indices = range(i * unit, min((i + 1) * unit, len(folders)))
      clips = read(folders, indices, maker.job, facts, threads)
      blobs = (coded_lib.to_bytes(x) for x in maker.coded(clips, facts))
      work.write(i, blobs, lambda facts=facts: facts)
      for why in facts.dropped:
        tqdm.tqdm.write(f'left out: {why}')
      if began is None:  # The first unit waits for the compiler.
        began = time.monotonic()
      else:
        seconds += facts.seconds
        speed = seconds / (time.monotonic() - began) / jax.local_device_count()
        bar.set_postfix_str(f'{speed:.3g} clip-seconds per device-second')
      bar.update()


def fill(maker: 'Maker', folders, threads: int):
  """Embeddings of all records into config.text.cache."""
  facts, count = Facts(), 0
  indices = range(jax.process_index(), len(folders), jax.process_count())
  clips = tqdm.tqdm(read(folders, indices, maker.job, facts, threads), unit='clip', file=sys.stdout)
  for some in batched(clips, maker.rows):
    count += len(maker.embedded([prompt for clip in some for prompt in clip.prompts.values()]))
  for why in facts.dropped:
    say(f'left out: {why}')
  say(f'{count} embeddings are in {maker.kept.folder}')


def read(folders, indices, job: Job, facts: Facts, threads: int) -> Iterator[Clip]:
  """Clips of records, in their order, some read ahead; what cannot be used is told."""

  def one(index: int):
    try:
      return clips_of(folders[index], job)
    except (records.RecordError, tasks.TaskError) as error:
      return f'record {index}: {error}'

  waiting, indices = collections.deque(), iter(indices)
  with futures.ThreadPoolExecutor(threads) as pool:
    for index in itertools.islice(indices, 2 * threads):
      waiting.append(pool.submit(one, index))
    while waiting:
      found = waiting.popleft().result()
      for index in itertools.islice(indices, 1):
        waiting.append(pool.submit(one, index))
      if isinstance(found, str):
        facts.dropped.append(found)
      else:
        yield from found


def clips_of(record: records.Record, job: Job) -> list[Clip]:
  """All clips of the bucket's length that lie end to end in a record."""
  size = job.size
  row = tasks.Row(**tasks.shown(job.kinds, record, size, job.channels))
  voices = {tasks.voice_of(kinds, record) for kinds in job.views} - {''}
  if len(voices) > 1:
    raise tasks.TaskError(
      'its pictures have voices, and it has a reference sound; latents keep one of them: encode '
      'the tasks that hear the one and the other apart'
    )
  kept = tuple(r for r in record.references if r.kind in job.kinds)
  prompts = prompts_of(record, row, job)
  clips = []
  for i, place in enumerate(places(record, size)):
    frames, _, samples = tasks.cut(record, size, place, job.channels)
    if frames is None and samples is None:
      continue
    name = record.id if not i else f'{record.id}+{i}'
    cut = records.Record(name, frames, record.fps, samples, job.rate, record.captions, None, kept)
    # Drawn once and for all; the same, whoever makes the record.
    parts = tasks.cascade(frames, size, np.random.default_rng(list(name.encode())), job.time_factor)
    clips.append(Clip(cut, dataclasses.replace(row, samples=samples, **parts), prompts))
  if not clips:
    raise tasks.TaskError('it has neither the frames nor the sound that the bucket wants')
  return clips


def places(record: records.Record, size: Size) -> list[float]:
  """Where the clips begin, as tasks.cut takes it: in [0, 1) of the places where one may.

  tasks.cut rounds down, so each is the middle of the place that is meant.
  """
  if size.frames and record.has_video:
    length, whole = size.frames, len(record.frames)
  elif record.has_audio:
    length, whole = size.samples, len(record.samples)
  else:
    return [0.0]
  spare = max(0, whole - length) + bool(size.frames)
  return [(i * length + 0.5) / max(spare, 1) for i in range(max(1, whole // length))]


def prompts_of(record: records.Record, row: tasks.Row, job: Job) -> dict:
  """What an encoder reads of a record: each caption that may be chosen, beside each task's view."""
  wanted = [name for name, share in job.shares.items() if share and record.captions.get(name)]
  if not wanted:
    text = captions.choose(record.captions, job.shares, 0.0)
    wanted = [name for name, caption in record.captions.items() if caption == text][:1]
  there = tuple({reference.kind for reference in record.references})
  found = {}
  for name in wanted:
    for kinds in job.views:
      view = coded_lib.seen(kinds, there)
      found[name, view] = Prompt(
        record.captions[name],
        row.images if 'image' in view else (),
        row.clip if 'video' in view else None,
        job.size.fps,
      )
  return found


class Maker:
  """Clips to what is kept of them, so many at a time."""

  def __init__(self, system: system_lib.System, job: Job, rows: int, kept: cache.Cached | None):
    self.system, self.job, self.rows, self.kept = system, job, rows, kept
    code = lambda system, clips: conditioning.coded(system.codecs, job.size, clips)
    self._code = jax.jit(code)
    self._embed = jax.jit(lambda text, read: encoder.embedded(text, read))

  def coded(self, clips: Iterable[Clip], facts: Facts) -> Iterator[coded_lib.Coded]:
    for some in batched(clips, self.rows):
      latents = self.latents([clip.row for clip in some])
      prompts = [(i, key, p) for i, clip in enumerate(some) for key, p in clip.prompts.items()]
      texts = [{} for _ in some]
      for (i, (name, view), _), text in zip(prompts, self.embedded([p for *_, p in prompts])):
        texts[i].setdefault(name, {})[view] = text
      for clip, has, text in zip(some, latents, texts):
        facts.counts.add(clip.record)
        facts.seconds += clip.record.seconds
        for modality in ('video', 'audio'):
          if (x := getattr(has, modality)) is not None:
            facts.add(modality, x)
        yield coded_lib.Coded(
          id=clip.record.id,
          fps=clip.record.fps,
          captions={name: clip.record.captions[name] for name in text},
          latents=has,
          text=text,
          frames=self.job.size.frames,
          seconds=clip.record.seconds,
          clip=0 if clip.row.clip is None else len(clip.row.clip),
          sound=0 if clip.row.sound is None else len(clip.row.sound),
          voice=tasks.voice_of(self.job.kinds, clip.record),
          at=clip.row.at,
        )

  def latents(self, rows: list[tasks.Row]) -> list[Latents]:
    """fp32 on the host, of each row what it has."""
    job, full = self.job, rows + [tasks.Row()] * (self.rows - len(rows))
    none = np.zeros((self.rows, 0), bool)
    clips = collate.collate(full, job.size, collate.Fields(), none, none, job.channels)
    made = jax.device_get(self._code(self.system, sharding.rows(clips)))

    def of(row: tasks.Row, i: int) -> Latents:
      mine = jax.tree.map(lambda x: x[i], made)
      media = row.frames, row.samples, row.images or None, row.clip, row.sound, row.low, row.at
      there = Latents(*media)
      kept = lambda name: getattr(mine, name) if getattr(there, name) is not None else None
      found = Latents(**{name: kept(name) for name in coded_lib.NAMES})
      if found.images is not None:
        found = dataclasses.replace(found, images=found.images[: len(row.images)])
      return found

    return [of(row, i) for i, row in enumerate(rows)]

  def embedded(self, prompts: list[Prompt]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(embeddings [v e], places [v]) of each; found in the cache, or kept there, if any."""
    found = [self.kept and self.kept.find(prompt) for prompt in prompts]
    missing = [i for i, x in enumerate(found) if x is None]
    for some in batched(missing, self.rows):
      asked = [prompts[i] for i in some] + [Prompt('')] * (self.rows - len(some))
      read, valid = self.system.text.read(asked, self.job.size)
      text = jax.device_get(self._embed(self.system.text, sharding.rows(read)))
      for i, row, there in zip(some, text, valid):
        at = np.flatnonzero(there).astype(np.int32)
        found[i] = {'text': row[at], 'at': at}
        if self.kept:
          found[i] = self.kept.write(prompts[i], row, there)
    return [(x['text'], x['at']) for x in found]


def joined(latents: dict, shards: list[dict], facts: list[Facts]) -> records.Manifest:
  counts = records.Counts()
  for fact in facts:
    counts.merge(fact.counts)
  return counts.manifest(coded_lib.CODEC, shards, latents)


def statistics(facts: list[Facts]) -> dict[str, bytes]:
  """{file: JSON}: of each modality mean and std of the channels of its latents."""
  total = Facts()
  for fact in facts:
    total.merge_sums(fact.sums)
  page = {}
  for name, (count, first, second) in total.sums.items():
    mean = first / count
    std = np.sqrt(np.maximum(second / count - mean**2, 0))
    page[name] = {'count': count, 'mean': mean.tolist(), 'std': std.tolist()}
  return {STATISTICS: json.dumps(page, indent=1).encode()}


def batched(items: Iterable, count: int) -> Iterator[list]:
  items = iter(items)
  while some := list(itertools.islice(items, count)):
    yield some


def say(text: str):
  tqdm.tqdm.write(text, file=sys.stdout)
