"""What happens to each file, on Apache Beam: in this process, or on Dataflow or Flink.

    find -> open -> exact duplicates -> shots -> segments -> scores -> rules    each by itself
         -> near duplicates -> balance -> joined sounds                         all together
         -> metadata.jsonl, dropped.jsonl

An item is a file, then a segment of it.  A dropped item flows on, untouched, to its table.  Workers
read the media and write the tables by the same paths as this machine: on a cluster, mount the
storage.  What is decided about all together is decided by one worker, from scores and hashes alone.
"""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import functools
import logging
import math
import os
import pathlib

from data_pipelines import entries
from data_pipelines import media
from data_pipelines.curate import rules
from data_pipelines.curate import scorer
from data_pipelines.curate import segments
from data_pipelines.curate import selection
from data_pipelines.curate import tables
from sr4.core import errors

# In this process.  Beam's own default may first fetch a runner from the network.
RUNNER = '--runner=FnApiRunner'


class CurationError(errors.UserError):
  """A request that cannot be carried out."""


@dataclasses.dataclass(frozen=True)
class Settings:
  out: str
  rules: tuple[rules.Rule, ...]
  scorers: tuple[str, ...] = ()  # package.module:NAME
  seconds: float = 15.0  # The longest segment.
  per_concept: int | None = None  # The most clips of one concept; None: all.
  per_motion: int | None = None  # The most videos of one octave of motion; None: all.

  def check(self):
    """Everything that can be known to fail, before any work.

    Raises:
      errors.UserError: the value, the rule, the fix.
    """
    provided = [name for spec in self.scorers for name in scorer.find(spec).provides]
    measured = {name for names in rules.BUILT_IN.values() for name in names}
    twice = {name for name in provided if provided.count(name) > 1 or name in measured}
    if twice:
      raise CurationError(f'--scorer: {sorted(twice)} is measured twice; leave one, or rename one.')
    rules.check(self.rules, provided)
    if self.per_concept and not {'concept', 'embedding'} & set(provided):
      raise CurationError(
        '--per_concept needs concepts: give a --scorer that provides "concept" or "embedding".'
      )
    for kind in rules.KINDS:
      shortest = rules.shortest(self.rules, kind)
      if 2 * shortest > self.seconds:
        raise CurationError(
          f'--seconds {self.seconds:g}: rules ask for {shortest:g} s of {kind}; what is cut needs '
          f'at least {2 * shortest:g}, or a rule for shorter clips.'
        )


def found(path) -> list[tables.Item]:
  """An item for every line of metadata, or for every file of a folder, media or not."""
  path = pathlib.Path(path)
  items = [_item(entry) for entry in entries.find(path, '')]
  bare = path.is_dir() and not any(
    (path / f'metadata.{x}').exists() for x in ('csv', 'json', 'jsonl')
  )
  return items + _strays(path, {item.path for item in items}) if bare else items


def _item(entry: entries.Entry) -> tables.Item:
  kinds = [kind for kind in ('video', 'image', 'audio') if getattr(entry, kind)]
  kind = kinds[0] if kinds else 'video'
  item = tables.Item(
    entry.id,
    entry.id,
    kind,
    entries.printable(os.path.abspath(getattr(entry, kind))) if kinds else '',
    more=_more(entry),
    start=entry.start,
    end=entry.end,
  )
  if kinds == ['video', 'audio']:
    return dataclasses.replace(item, sound=os.path.abspath(entry.audio))
  if entry.fault or len(kinds) != 1:
    why = f'{" and ".join(kinds) or "no media"} in one line; give a video, a picture or a sound.'
    return tables.drop(item, 'find', 'metadata', entry.fault or why)
  return item


def _more(entry: entries.Entry) -> dict:
  """The columns that curation passes on as they are, with absolute paths."""
  columns = dict(entry.captions)
  for file in entry.references:
    path = os.path.abspath(file.path)
    if file.grid:
      columns.setdefault('reference_grid', []).append(f'{path}#{file.grid[0]}x{file.grid[1]}')
    else:
      columns.setdefault(f'reference_{file.kind}', []).append(path)
  if entry.video_mask:
    columns['video_mask'] = os.path.abspath(entry.video_mask)
  return columns


def _strays(folder, known) -> list[tables.Item]:
  """What lies in a folder and is no media by its name; captions and hidden files aside."""
  stems = {os.path.splitext(path)[0] for path in known}
  strays = []
  for p in sorted(folder.rglob('*')):
    path = entries.printable(os.path.abspath(p))
    caption = p.suffix == '.txt' and os.path.splitext(path)[0] in stems
    if p.is_file() and path not in known and not caption and not p.name.startswith('.'):
      name = entries.printable(p.relative_to(folder).as_posix())
      why = f'{p.suffix or "no suffix"} is not a name of media; rename it if it is.'
      strays.append(tables.drop(tables.Item(name, name, 'video', path), 'find', 'suffix', why))
  return strays


def run(items: Sequence[tables.Item], settings: Settings, flags: Sequence[str] = ()):
  """Curates the items and writes both tables.  `flags` are Beam's, such as --runner=FlinkRunner.

  Raises:
    CurationError: Beam is not installed, or does not take its flags.
  """
  settings.check()
  beam, pipeline = _beam(flags)
  each = lambda stage, function: stage >> beam.FlatMap(functools.partial(attempt, stage, function))
  with pipeline as p:
    _ = (
      p
      | 'found' >> beam.Create(items, reshuffle=True)
      | each('open', opened)
      | 'digest' >> beam.Map(keyed)
      | 'equal' >> beam.GroupByKey()
      | 'exact' >> beam.FlatMap(first)
      | each('segment', functools.partial(cut, settings))
      | 'spread' >> beam.Reshuffle()
      | 'score' >> beam.FlatMap(functools.partial(scored, settings))
      | 'all' >> beam.combiners.ToList()
      | 'select' >> beam.FlatMap(functools.partial(selection.select, settings))
      | 'spread again' >> beam.Reshuffle()
      | 'join' >> beam.FlatMap(selection.write_joined)
      | 'rows' >> beam.combiners.ToList()
      | 'write' >> beam.Map(functools.partial(tables.write, settings.out))
    )


def _beam(flags):
  logging.disable(logging.WARNING)  # Beam warns of Google's clients, which nothing here needs.
  try:
    import apache_beam as beam
    from apache_beam.options import pipeline_options
  except ImportError as e:
    raise CurationError("curation runs on Apache Beam; pip install 'sr4[curate]'.") from e
  finally:
    logging.disable(logging.NOTSET)
  runner = [] if any(flag.startswith('--runner') for flag in flags) else [RUNNER]
  try:
    options = pipeline_options.PipelineOptions([*runner, *flags])
    return beam, beam.Pipeline(options=options)
  except (ValueError, ImportError) as e:
    raise CurationError(f'--beam {" ".join(flags)}: {e}') from e


def attempt(stage: str, function, item: tables.Item) -> list[tables.Item]:
  """function(item); an item already dropped is left alone, one that fails is dropped.

  Any error: one odd file of millions must not end the run, and its row says what happened.
  """
  if item.dropped:
    return [item]
  try:
    return function(item)
  except (errors.UserError, OSError) as e:
    return [tables.drop(item, stage, 'error', str(e))]
  except Exception as e:
    return [tables.drop(item, stage, 'error', f'{type(e).__name__}: {e}')]


def opened(item: tables.Item) -> list[tables.Item]:
  """Reads the header and fills in start and end."""
  info, limits = media.probe(item.path), media.Limits()
  if info.width * info.height > limits.max_pixels or info.duration > limits.max_seconds:
    raise media.MediaError(
      f'{item.path}: {info.width}x{info.height}, {info.duration:.0f} s, is above the limits of '
      f'{limits.max_pixels} pixels and {limits.max_seconds:g} s; make it smaller, or cut it.'
    )
  if item.kind == 'image':
    if info.duration or not info.width:
      raise media.MediaError(f'{item.path}: it holds no still picture; name it as what it is.')
    return [dataclasses.replace(item, start=0.0, end=0.0)]
  if item.kind == 'video' and not info.width:
    raise media.MediaError(f'{item.path}: sound without pictures; name it .m4a or put it in audio.')
  if not info.duration:
    raise media.MediaError(
      f'{item.path}: its header has no duration: a still picture, or a stream; name or write it so.'
    )
  end = min(item.end, info.duration)
  if item.start >= end:
    raise media.MediaError(
      f'{item.path}: it ends at {info.duration:g} s, the start is {item.start:g} s; start earlier.'
    )
  return [dataclasses.replace(item, end=end, origin=info.start)]


def keyed(item: tables.Item) -> tuple[str, tables.Item]:
  """The item with what its bytes are; what fails here, or has been dropped, is like nothing."""
  from data_pipelines.curate import duplicates

  alone = f'id {item.id}'
  if item.dropped:
    return alone, item
  try:
    digests = [duplicates.exact(path) for path in (item.path, item.sound) if path]
  except OSError as e:
    return alone, tables.drop(item, 'exact', 'error', str(e))
  return ' '.join([*digests, f'{item.start:.3f} {item.end:.3f}']), item


def first(group: tuple[str, Iterable[tables.Item]]) -> Iterator[tables.Item]:
  """The first of equal files by name stays."""
  items = sorted(group[1], key=lambda item: item.id)
  yield items[0]
  for item in items[1:]:
    yield tables.drop(item, 'exact', 'exact duplicate', f'the same bytes as {items[0].id}')


def cut(settings: Settings, item: tables.Item) -> list[tables.Item]:
  """Segments of a video or a sound that are shots or even parts of one; a picture stays whole."""
  if item.kind == 'image':
    return [dataclasses.replace(item, pieces=1)]
  stretches = [(item.start, item.end)]
  if item.kind == 'video':
    from data_pipelines.curate import shots

    found = [(a - item.origin, b - item.origin) for a, b in shots.shots(item.path)]
    stretches = list(_within(found, item.start, item.end))
  shortest = rules.shortest(settings.rules, item.kind)
  good, rest = segments.whole(stretches, shortest, settings.seconds)
  rest, made = set(rest), []
  pieces = sorted([*good, *rest])
  for k, (start, end) in enumerate(pieces):
    name = item.id if len(pieces) == 1 else f'{item.id}#{k:04d}'
    made.append(dataclasses.replace(item, id=name, start=start, end=end, pieces=len(pieces)))
    if (start, end) in rest:
      rule = rules.Rule('duration', least=shortest, kinds=(item.kind,), reason='a short shot')
      made[k] = dataclasses.replace(made[k], scores={'duration': rounded(end - start)})
      made[k] = tables.drop_by(made[k], 'segment', rule, made[k].scores['duration'])
  return made


def _within(shots, start: float, end: float) -> Iterator[segments.Stretch]:
  """The shots clipped to [start, end], which the first and the last are stretched to fill."""
  cuts = [b for _, b in shots[:-1] if start < b < end]
  yield from zip([start, *cuts], [*cuts, end])


def scored(settings: Settings, item: tables.Item) -> list[tables.Item]:
  """As `_scored`; a scorer that cannot be made ends the run, for no file is to blame."""
  scorers = [_loaded(spec) for spec in settings.scorers]
  return attempt('score', functools.partial(_scored, settings, scorers), item)


@functools.cache
def _loaded(spec: str) -> scorer.Scorer:
  return scorer.load(spec)  # Its weights, once in each process.


def _scored(settings: Settings, scorers, item: tables.Item) -> list[tables.Item]:
  """Reads the segment, measures it and judges it.

  What needs weights sees only what passed the rules for the scores that are cheap.
  """
  from data_pipelines.curate import duplicates

  excerpt = _excerpt(item)
  scores = measured(item, excerpt)
  hashes = () if excerpt.frames is None else tuple(duplicates.of_clip(excerpt.frames))
  item = dataclasses.replace(item, scores=scores, hashes=hashes)
  cheap = [rule for rule in settings.rules if rule.score in scores and not rule.classes]
  for judged in (cheap, settings.rules):
    failed = rules.broken(judged, item.kind, item.scores)
    if failed:
      return [tables.drop_by(item, 'rules', *failed)]
    if judged is cheap:
      for one in scorers:
        reads = getattr(one, 'reads', None)
        scores = scores | scorer.scores(one, _excerpt(item, **reads) if reads else excerpt)
      item = _told(item, scores)
  return [item]


def _excerpt(item: tables.Item, **reads):
  """The segment's pictures and sound; `reads` are keywords of excerpt.read."""
  from data_pipelines.curate import excerpt

  seconds = 1.0 if item.kind == 'image' else item.end - item.start
  seen = excerpt.read(item.path, item.origin + item.start, seconds, **reads)
  if not item.sound:
    return seen
  heard = excerpt.read(item.sound, item.start, seconds, **reads)
  names = ('samples', 'sample_rate', 'source_rate')
  return dataclasses.replace(seen, **{name: getattr(heard, name) for name in names})


def measured(item: tables.Item, excerpt) -> dict:
  """The scores that need no weights; None for those that do not apply."""
  scores = dict.fromkeys(rules.BUILT_IN[item.kind])
  if item.kind != 'image':
    scores['duration'] = excerpt.seconds
  if excerpt.frames is not None and item.kind != 'audio':
    from data_pipelines.curate import video

    scores |= video.scores(excerpt)
  # All zeros are no sound: such a video is a silent one.
  if excerpt.samples is not None and (item.kind == 'audio' or excerpt.samples.any()):
    from data_pipelines.curate import audio

    scores |= audio.scores(excerpt)
  return {name: rounded(value) for name, value in scores.items()}


def rounded(value: float | None) -> float | None:
  """To six digits, the same ones wherever it is measured."""
  if value is not None and not math.isfinite(value):
    raise CurationError(f'a score is {value}; it must be a finite number.')
  return None if value is None else float(f'{value:.6g}')


def _told(item: tables.Item, scores: dict) -> tables.Item:
  """What scorers said; vectors and captions are no scores."""
  plain = {
    name: rounded(value) if isinstance(value, float) else value
    for name, value in scores.items()
    if name not in ('embedding', 'caption')
  }
  embedding = tuple(scores.get('embedding') or ())
  more = item.more | ({'caption': scores['caption']} if scores.get('caption') else {})
  return dataclasses.replace(item, scores=plain, embedding=embedding, more=more)
