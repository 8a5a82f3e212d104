"""What only all items together can say: near duplicates, balance, and short sounds to join."""

from collections.abc import Iterable
import io
import os

from data_pipelines import media
from data_pipelines.curate import balance
from data_pipelines.curate import rules
from data_pipelines.curate import scorer
from data_pipelines.curate import segments
from data_pipelines.curate import tables
from sr4.core import errors
from sr4.core import files


def select(settings, items: Iterable[tables.Item]) -> list[tables.Item]:
  """Drops and joins items by engine.Settings; the order of `items` does not matter."""
  items = sorted(items, key=lambda item: item.id)
  for step in (_unlike, _concepts, _motion, _joined):
    items = step(settings, items)
  return items


def _alive(items, *kinds) -> dict[str, tables.Item]:
  return {item.id: item for item in items if not item.dropped and item.kind in kinds}


def _unlike(settings, items) -> list[tables.Item]:
  """Of files that look alike the best stays: most pixels, then sharpest, then first by name.

  Two segments of one file may well look alike: a face that talks for a minute.
  """
  from data_pipelines.curate import duplicates

  best = {}
  for kind in ('video', 'image'):
    alive = _alive(items, kind)
    for group in duplicates.groups({name: x.hashes for name, x in alive.items()}):
      ranked = sorted(group, key=lambda name: (*_worse(alive[name]), name))
      first = alive[ranked[0]]
      others = [name for name in ranked if alive[name].path != first.path]
      best |= dict.fromkeys(others, first.id)
  return [
    tables.drop(item, 'near', 'near duplicate', f'looks like {best[item.id]}')
    if item.id in best
    else item
    for item in items
  ]


def _worse(item: tables.Item) -> tuple[float, float]:
  scores = item.scores
  return -scores['width'] * scores['height'], -scores['sharpness']


def _concepts(settings, items) -> list[tables.Item]:
  if not settings.per_concept:
    return items
  alive = _alive(items, *rules.KINDS)
  labels = {name: x.scores['concept'] for name, x in alive.items() if x.scores.get('concept')}
  embeddings = {name: x.embedding for name, x in alive.items() if x.embedding}
  groups = balance.concepts(labels, embeddings)
  return _flattened(items, alive, groups, settings.per_concept, 'concept')


def _motion(settings, items) -> list[tables.Item]:
  if not settings.per_motion:
    return items
  alive = _alive(items, 'video')
  known = {n: x.scores['motion'] for n, x in alive.items() if x.scores['motion'] is not None}
  return _flattened(items, alive, balance.motion_bins(known), settings.per_motion, 'motion')


def _flattened(items, alive, groups, cap, name) -> list[tables.Item]:
  stay = balance.by_group(alive, groups, cap)
  return [
    tables.drop(
      item, name, f'{name} balance', f'{cap} others of {name} {groups[item.id]} stay', most=cap
    )
    if item.id in alive and item.id not in stay
    else item
    for item in items
  ]


def _joined(settings, items) -> list[tables.Item]:
  """Whole sounds of one class, first fit in the order of their names, up to the longest segment."""
  alive, made = _alive(items, 'audio'), []
  for label in scorer.CLASSES:
    short = [
      (x.id, x.start, x.end)
      for x in alive.values()
      if scorer.route(x.scores) == label and x.pieces == 1 and not _referring(x)
    ]
    lists = segments.join(short, settings.seconds)
    for k, names in enumerate(names for names in lists if len(names) > 1):
      parts = tuple(alive.pop(name) for name, *_ in names)
      made.append(_together(label, k, parts, settings.out))
  inside = {part.id for item in made for part in item.parts}
  return [item for item in items if item.id not in inside] + made


def _together(label, k, parts, out) -> tables.Item:
  name = f'joined/{label}/{k:06d}.flac'
  columns = dict.fromkeys(column for part in parts for column in part.more)
  told = {c: dict.fromkeys(part.more[c] for part in parts if part.more.get(c)) for c in columns}
  return tables.Item(
    name,
    name,
    'audio',
    os.path.join(os.path.abspath(out), name),
    more={column: ' '.join(texts) for column, texts in told.items()},
    end=sum(part.end - part.start for part in parts),
    pieces=1,
    scores={'audio_class': label},
    parts=parts,
  )


def _referring(item: tables.Item) -> bool:
  """References belong to one clip: its captions name them."""
  return any(column.startswith('reference_') for column in item.more)


def write_joined(item: tables.Item) -> list[tables.Item]:
  """Writes the file of a joined sound; where that fails its parts stay as they are."""
  if not item.parts:
    return [item]
  try:
    _concatenate(item)
  except (errors.UserError, OSError) as e:
    return [tables.drop(part, 'join', 'error', str(e)) for part in item.parts]
  return [item]


def _concatenate(item: tables.Item):
  import av
  import numpy as np

  infos = [media.probe(part.path) for part in item.parts]
  rate = min(48_000, max(info.sample_rate for info in infos))
  sounds = [
    media.read_audio(
      part.path,
      count=max(1, round((part.end - part.start) * rate)),
      sample_rate=rate,
      channels=2,
      start=part.origin + part.start,
    )
    for part in item.parts
  ]
  samples = np.rint(np.concatenate(sounds) * 32767).astype(np.int16)
  out = io.BytesIO()
  with av.open(out, 'w', format='flac') as container:
    stream = container.add_stream('flac', rate=rate, layout='stereo', format='s16')
    frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), 's16', 'stereo')
    frame.sample_rate, frame.pts = rate, 0
    container.mux(stream.encode(frame))
    container.mux(stream.encode())
  os.makedirs(os.path.dirname(item.path), exist_ok=True)
  files.save(item.path, out.getvalue())
