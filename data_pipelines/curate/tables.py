"""Items, and the two tables in which every one of them ends.

metadata.jsonl holds what is kept, one clip a line, as data_pipelines.ingest reads it; dropped.jsonl
what is not, and why.  `account` checks that every second of every file is in one of the two.
"""

import collections
from collections.abc import Iterable
import dataclasses
import itertools
import json
import math
import os
import pathlib

from data_pipelines.curate import rules
from data_pipelines.curate import scorer
from sr4.core import errors
from sr4.core import files

KEPT, DROPPED = 'metadata.jsonl', 'dropped.jsonl'
SLACK = 1e-5  # Seconds; times are written with six decimals.


class AccountError(errors.UserError):
  """Something was lost, or is there twice."""


@dataclasses.dataclass(frozen=True)
class Item:
  """A file, a segment of one, or several short sounds in one."""

  id: str
  entry: str  # The id of the file, or of the line of metadata, that it comes from.
  kind: str  # Of rules.KINDS.
  path: str
  sound: str | None = None  # A file of its own for the sound of a video.
  more: dict = dataclasses.field(default_factory=dict)  # Captions, references, mask, as columns.
  start: float = 0.0  # Seconds from the beginning of the pictures, or else of the sound.
  end: float = math.inf
  origin: float = 0.0  # When that beginning is on the container's clock.
  pieces: int = 0  # Segments that the file was cut into; 0: not cut.
  scores: dict = dataclasses.field(default_factory=dict)
  embedding: tuple[float, ...] = ()
  hashes: tuple[int, ...] = ()
  parts: tuple['Item', ...] = ()
  dropped: dict | None = None  # stage, rule, reason, and for a score: value, least, most.


def drop(item: Item, stage: str, rule: str, reason: str, **more) -> Item:
  return dataclasses.replace(item, dropped={'stage': stage, 'rule': rule, 'reason': reason, **more})


def drop_by(item: Item, stage: str, rule: rules.Rule, value: float) -> Item:
  bounds = {'value': value, 'least': rule.least, 'most': rule.most}
  return drop(item, stage, rule.score, rule.reason, **bounds)


def row(item: Item, folder: str) -> dict:
  """A line of metadata.jsonl or dropped.jsonl; paths inside `folder` are relative to it."""
  inside = os.path.relpath(item.path, folder) if item.parts else item.path
  line = {'id': item.id, 'entry': item.entry, item.kind: inside}
  if item.sound:
    line['audio'] = item.sound
  line |= item.more
  if item.kind != 'image' and item.pieces:
    line |= {'start': round(item.start, 6), 'end': round(item.end, 6)}
  line |= {'pieces': item.pieces, 'class': scorer.route(item.scores), 'scores': item.scores}
  if item.parts:
    line['parts'] = [row(part, folder) for part in item.parts]
  return line | (item.dropped or {})


def write(folder, items: Iterable[Item]):
  """Both tables, in the order of ids."""
  folder = os.path.abspath(folder)
  items = sorted(items, key=lambda item: item.id)
  for name, chosen in (
    (DROPPED, [item for item in items if item.dropped]),
    (KEPT, [item for item in items if not item.dropped]),
  ):
    lines = [json.dumps(row(item, folder), ensure_ascii=False, allow_nan=False) for item in chosen]
    files.save(os.path.join(folder, name), ''.join(f'{line}\n' for line in lines).encode())


def read(folder, name: str) -> list[dict]:
  text = (pathlib.Path(folder) / name).read_text(encoding='utf-8')
  return [json.loads(line) for line in text.split('\n') if line]


def account(items: Iterable[Item], kept: Iterable[dict], dropped: Iterable[dict]):
  """Checks that the tables hold each segment of each item once, and nothing else.

  Raises:
    AccountError: what is missing or too many.
  """
  parts = [part for line in kept for part in line.get('parts') or [line]]
  lines, by_entry = [*parts, *dropped], {item.id: [] for item in items}
  twice = [name for name, n in collections.Counter(line['id'] for line in lines).items() if n > 1]
  if twice:
    raise AccountError(f'{twice[0]!r} is in the tables twice.')
  for line in lines:
    if line['entry'] not in by_entry:
      raise AccountError(f'{line["id"]!r} is in the tables, but not in the media.')
    by_entry[line['entry']].append(line)
  for name, lines in by_entry.items():
    pieces = max([line['pieces'] or 1 for line in lines], default=1)
    if len(lines) != pieces:
      raise AccountError(f'{name!r}: {len(lines)} of {pieces} segments are in the tables.')
    lines.sort(key=lambda line: line.get('start', 0))
    for a, b in itertools.pairwise(lines):
      if abs(a['end'] - b['start']) > SLACK:
        raise AccountError(f'{name!r}: from {a["end"]} to {b["start"]} s is lost or comes twice.')
