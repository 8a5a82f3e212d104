"""What a user brings, a folder of media or a table of them, as entries; no medium is opened."""

import collections
import csv
import dataclasses
import difflib
import io
import json
import math
import pathlib
import re

from data_pipelines import record

VIDEO = ('.mp4', '.mov', '.m4v', '.mkv', '.webm', '.avi', '.ts', '.mpg', '.mpeg', '.gif')
IMAGE = ('.png', '.jpg', '.jpeg', '.webp', '.bmp', '.tif', '.tiff')
AUDIO = ('.wav', '.mp3', '.flac', '.m4a', '.ogg', '.aac')
MEDIA_COLUMNS = ('video', 'audio', 'image')
REFERENCE_COLUMNS = ('reference_image', 'reference_grid', 'reference_video', 'reference_audio')
CAPTION_COLUMNS = ('caption', 'short', 'long', 'structured')
COLUMNS = (*MEDIA_COLUMNS, *CAPTION_COLUMNS, *REFERENCE_COLUMNS, 'video_mask', 'start', 'end')
GRID = (3, 3)  # Panels across and down where a reference_grid does not say.


@dataclasses.dataclass(frozen=True)
class ReferenceFile:
  """A reference that has not been read yet."""

  kind: str  # One of record.KINDS.
  path: pathlib.Path
  grid: tuple[int, int] | None = None  # Panels across and down, each of them a reference.


@dataclasses.dataclass(frozen=True)
class Entry:
  """One line of metadata, or one file of a folder without."""

  id: str
  captions: dict[str, str]
  video: pathlib.Path | None = None
  audio: pathlib.Path | None = None
  image: pathlib.Path | None = None
  references: tuple[ReferenceFile, ...] = ()
  video_mask: pathlib.Path | None = None
  start: float = 0.0  # Seconds; only this stretch of the file is meant.
  end: float = math.inf
  fault: str = ''  # Why it cannot be used.


def find(path, caption: str | None = None) -> list[Entry]:
  """The entries of a metadata file, of a folder with one, or of a bare folder of media."""
  path = pathlib.Path(path)
  if not path.exists():
    raise record.RecordError(f'{path}: no such file or folder; give --media what exists.')
  if path.is_file():
    return _from_metadata(path, caption)
  tables = [p for p in (path / f'metadata.{x}' for x in ('csv', 'json', 'jsonl')) if p.exists()]
  if len(tables) > 1:
    raise record.RecordError(
      f'{path} has {" and ".join(p.name for p in tables)}; give one to --media.'
    )
  return _from_metadata(tables[0], caption) if tables else _from_folder(path, caption)


def _from_folder(folder, caption) -> list[Entry]:
  kinds = {x: kind for kind, xs in zip(MEDIA_COLUMNS, (VIDEO, AUDIO, IMAGE)) for x in xs}
  found = [
    (p, kinds[p.suffix.lower()])
    for p in sorted(folder.rglob('*'))
    if p.suffix.lower() in kinds and not p.name.startswith('.') and p.is_file()
  ]
  if not found:
    raise record.RecordError(
      f'{folder} holds no media; give a folder with {", ".join(VIDEO[:4])}, '
      f'{", ".join(IMAGE[:2])} or {", ".join(AUDIO[:2])} files, or metadata.csv.'
    )
  entries, bare = [], []
  for p, kind in found:
    name, text = p.relative_to(folder).as_posix(), p.with_suffix('.txt')
    told, fault = caption, ''
    if text.exists():
      try:
        told = _text(text).strip() or caption or ''
      except record.RecordError as e:
        told, fault = '', str(e)
    if name != printable(name):
      name, fault = printable(name), 'its name is not UTF-8; rename it.'
    bare += [name] if told is None else []
    entries.append(Entry(name, {'caption': told}, **{kind: p}, fault=fault))
  if bare:
    raise record.RecordError(
      f'{len(bare)} of {len(entries)} media in {folder} have no caption, e.g. {bare[0]}; write '
      f'{pathlib.Path(bare[0]).with_suffix(".txt")} beside it, add a metadata.csv with a caption '
      "column, or give all of them one text with --caption TEXT ('' for none)."
    )
  return entries


def printable(name: str) -> str:
  """With escapes for what is not UTF-8, so that it can be written."""
  return name.encode(errors='backslashreplace').decode()


def _text(path) -> str:
  try:
    return path.read_text(encoding='utf-8-sig')
  except UnicodeDecodeError as e:
    raise record.RecordError(
      f'{path}: byte {e.start} is not UTF-8; write the file again as UTF-8.'
    ) from e


def _rows(path) -> list[dict]:
  text = _text(path)
  try:
    if path.suffix == '.csv':
      return list(csv.DictReader(io.StringIO(text, newline=''), strict=True))
    if path.suffix == '.jsonl':  # Not splitlines: a caption may have U+2028.
      rows = [json.loads(line) for line in text.split('\n') if line.strip()]
    elif path.suffix == '.json':
      rows = json.loads(text)
    else:
      raise record.RecordError(f'{path}: metadata is .csv, .json or .jsonl; give one, or a folder.')
  except (csv.Error, json.JSONDecodeError) as e:
    raise record.RecordError(
      f'{path}: not readable as {path.suffix[1:]} ({e}); correct it there.'
    ) from e
  if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
    raise record.RecordError(
      f'{path}: give a list of objects, each with {MEDIA_COLUMNS} and caption.'
    )
  return rows


def _from_metadata(path, caption) -> list[Entry]:
  rows = _rows(path)
  columns = list(dict.fromkeys(c for row in rows for c in row if c is not None))
  if not rows:
    raise record.RecordError(f'{path} has no rows; give one for each clip.')
  _check_columns(path, columns, caption)
  entries, seen = [], collections.Counter()
  for number, row in enumerate(rows, 1):
    names = (printable(str(row[c])) for c in ('video', 'image', 'audio') if row.get(c))
    name = next(names, f'row {number}')
    seen[name] += 1  # The same file may come twice, with another caption.
    suffix = f'~{seen[name]}' if seen[name] > 1 else ''
    entries.append(_entry(name + suffix, row, path.parent, caption))
  return entries


def _check_columns(path, columns, caption):
  extra = [c for c in columns if c not in COLUMNS]
  listed = ', '.join(columns)

  def near(name):
    match = difflib.get_close_matches(name, extra, 1, 0.6)
    return f" Did you mean {match[0]!r}? Rename it to '{name}'." if match else ''

  if not any(c in columns for c in MEDIA_COLUMNS):
    raise record.RecordError(
      f'{path} has the columns {listed}; at least one of {MEDIA_COLUMNS} must be '
      f'there, with paths relative to it.{near("video")}'
    )
  if not any(c in columns for c in CAPTION_COLUMNS) and caption is None:
    raise record.RecordError(
      f"{path} has the columns {listed}; a 'caption' column must be there (or one of "
      f'{CAPTION_COLUMNS[1:]}), or one text for all with --caption TEXT '
      f"('' for none).{near('caption')}"
    )
  if extra:
    print(f'note: unknown columns, not stored: {", ".join(extra)}.')


def _entry(name: str, row: dict, folder, caption) -> Entry:
  """A row; what is wrong with it is its fault, told when its turn comes."""
  captions = {c: row[c] for c in CAPTION_COLUMNS if row.get(c)}
  if not captions and caption is not None:
    captions = {'caption': caption}
  try:
    if any(row.get(None) or ()):  # Where csv puts what no column is for.
      count = len(row[None])
      raise ValueError(
        f'{count} field{"s" * (count > 1)} more than columns; put quotes around the caption.'
      )
    text = json.dumps(row, ensure_ascii=False)
    if text != printable(text) or '\\u0000' in text:
      raise ValueError('it has a NUL or half a surrogate pair, which no file can; take that out.')
    for column in (*MEDIA_COLUMNS, *CAPTION_COLUMNS, 'video_mask'):
      if not isinstance(row.get(column) or '', str):
        raise ValueError(f'{column} is {row[column]!r}; give one text.')
    start, end = _seconds(row, 'start', 0.0), _seconds(row, 'end', math.inf)
    if not start < end:
      raise ValueError(f'start is {start:g} and end {end:g}; the end comes after the start.')
    return Entry(
      name,
      captions,
      **{c: folder / row[c] for c in (*MEDIA_COLUMNS, 'video_mask') if row.get(c)},
      references=_references(row, folder),
      start=start,
      end=end,
    )
  except ValueError as e:
    return Entry(name, captions, fault=str(e))


def _seconds(row: dict, column: str, default: float) -> float:
  value = row.get(column)
  if value is None or value == '':
    return default
  try:
    seconds = float(value)
  except (TypeError, ValueError):
    seconds = math.nan
  if not 0 <= seconds < math.inf:
    raise ValueError(f'{column} is {value!r}; give seconds from the beginning of the file.')
  return seconds


def _references(row: dict, folder) -> tuple[ReferenceFile, ...]:
  """All that a row has, each kind in the order of its column; panels follow the single images."""
  found = []
  for column in REFERENCE_COLUMNS:
    value = row.get(column) or ''
    parts = value.split(';') if isinstance(value, str) else value
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
      raise ValueError(f'{column} is {value!r}; give paths, separated by ";", or a list of them.')
    for part in filter(None, map(str.strip, parts)):
      if column != 'reference_grid':
        found.append(ReferenceFile(column.removeprefix('reference_'), folder / part))
        continue
      match = re.fullmatch(r'(.+)#([1-9])x([1-9])', part)
      path, grid = (match[1], (int(match[2]), int(match[3]))) if match else (part, GRID)
      if '#' in part and not match:
        raise ValueError(f'reference_grid is {part!r}; give PATH#2x2: panels across x down.')
      if grid[0] * grid[1] > 9:
        raise ValueError(f'reference_grid is {part!r}; a grid has at most nine panels.')
      found.append(ReferenceFile('image', folder / path, grid))
  return tuple(found)
