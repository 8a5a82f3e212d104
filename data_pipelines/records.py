"""Directories of records: ArrayRecord shards and a manifest, read by index.

    manifest = write(directory, records)
    source = Source(directory); source[i]
    source = open(name, root)   such a directory, or a split of a TFDS dataset (tfds.py)

A directory of records is complete if and only if it holds manifest.json: it is written under
another name and renamed at the end.  Other files in it are left alone.  What one record is, and its
bytes, is record.py; its names are here as well.
"""

import bisect
import collections
from collections.abc import Iterable
import dataclasses
import errno
import hashlib
import itertools
import json
import operator
import os
import pathlib
import threading

from data_pipelines import record as record_lib
from sr4.core import folders

MANIFEST = 'manifest.json'
LATENTS = 'latents:'  # of the name of a folder of coded.py's records
CODECS, KINDS, SCHEMA = record_lib.CODECS, record_lib.KINDS, record_lib.SCHEMA
Record, Reference, RecordError = record_lib.Record, record_lib.Reference, record_lib.RecordError
to_bytes, from_bytes, to_int16 = record_lib.to_bytes, record_lib.from_bytes, record_lib.to_int16


@dataclasses.dataclass(frozen=True)
class Manifest:
  """What a directory holds; manifest.json, field by field."""

  schema: int
  codec: str
  count: int
  video: int  # Records with pictures.
  audio: int  # Records with sound.
  audio_video: int  # Records with both.
  sizes: dict[str, int]  # 't h w' to the number of such records.
  fps: tuple[float, ...]
  sample_rates: tuple[int, ...]
  seconds: float
  bytes: int
  shards: tuple[dict, ...]  # name, count, bytes, sha256
  masks: int  # Records with a mask.
  # 'image', 'video', 'audio': records with such a reference; 'max image', ...: the most in one
  # record; 'max sounds': the most that have samples, of any kind; 'max video frames' and 'max audio
  # samples': the longest one.  All are there, 0 without references.
  references: dict[str, int]
  # What records of latents were made with and for (encode.py); None: they are media.
  latents: dict | None = None

  def to_json(self) -> bytes:
    return json.dumps(dataclasses.asdict(self), indent=1).encode()


def write(
  directory, records: Iterable[Record], *, codec: str = 'raw', shard_size: int = 256 << 20
) -> Manifest:
  """Writes all records, or nothing.  Shards are closed once they hold `shard_size` bytes.

  Raises:
    RecordError: the directory is not empty, there is no record, or a record breaks the rules.
    OSError: a full or unwritable disk, or one that a record is read from, with its path.
  """
  directory = pathlib.Path(directory)
  if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
    raise RecordError(f'{directory} exists and is not empty; remove it, or write elsewhere.')
  try:
    with folders.partial(directory) as folder:
      manifest = _write_shards(folder, records, codec, shard_size)
      (folder / MANIFEST).write_bytes(manifest.to_json())
      for path in (*folder.iterdir(), folder):
        folders.sync(path)
      os.rename(folder, directory)
      folders.sync(directory.parent)
  except OSError as e:
    name, ours = str(e.filename or ''), str(directory.parent / f'.{directory.name}.partial-')
    where = str(directory) if not name or name.startswith(ours) else name
    raise OSError(e.errno or errno.EIO, e.strerror or str(e), where) from e
  return manifest


def _write_shards(folder, records, codec, shard_size) -> Manifest:
  counts, shards, records = Counts(), [], iter(records)
  for first in records:
    with Shard(folder / f'part-{len(shards):05d}') as shard:
      for record in itertools.chain([first], records):
        shard.write(to_bytes(record, codec))
        counts.add(record)
        if shard.bytes >= shard_size:
          break
    shards.append(shard.facts())
  if not shards:
    raise RecordError('no record to write; check where they come from.')
  for shard in shards:
    name = f'{shard["name"]}-of-{len(shards):05d}'
    os.rename(folder / shard['name'], folder / name)
    shard['name'] = name
  return counts.manifest(codec, shards)


class Counts:
  """What the manifest says of the records, gathered as they come.  Picklable."""

  def __init__(self):
    self.kinds = collections.Counter(video=0, audio=0, audio_video=0, masks=0)
    self.sizes, self.fps, self.sample_rates, self.seconds = collections.Counter(), set(), set(), 0.0
    names = [*KINDS, *(f'max {kind}' for kind in KINDS)]
    names += ['max sounds', 'max video frames', 'max audio samples']
    self.references = dict.fromkeys(names, 0)

  def add(self, record: Record):
    video, audio = record.has_video, record.has_audio
    self.kinds.update(
      video=video, audio=audio, audio_video=video and audio, masks=record.mask is not None
    )
    self.seconds += record.seconds
    if video:
      self.sizes[' '.join(map(str, record.frames.shape[:3]))] += 1
      self.fps.add(float(record.fps))
    self.sample_rates.update([int(record.sample_rate)] if audio else [])
    if record.references:
      self._add_references(record)

  def _add_references(self, record: Record):
    most, sounds = collections.Counter(), []
    for reference in record.references:
      most[f'max {reference.kind}'] += 1
      if record_lib.audible(reference.samples):
        sounds.append(len(reference.samples))
        self.sample_rates.add(int(record.sample_rate))
      if reference.kind == 'video':
        most['max video frames'] = max(most['max video frames'], len(reference.frames))
    most |= {'max sounds': len(sounds), 'max audio samples': max(sounds, default=0)}
    for name, value in most.items():
      self.references[name] = max(self.references[name], value)
    for kind in {reference.kind for reference in record.references}:
      self.references[kind] += 1

  def merge(self, other: 'Counts'):
    """Takes in what another has gathered."""
    self.kinds.update(other.kinds)
    self.sizes.update(other.sizes)
    self.fps |= other.fps
    self.sample_rates |= other.sample_rates
    self.seconds += other.seconds
    for name, value in other.references.items():
      most = max(self.references[name], value)
      self.references[name] = most if 'max' in name else self.references[name] + value

  def manifest(self, codec: str, shards: list[dict], latents: dict | None = None) -> Manifest:
    return Manifest(
      schema=SCHEMA,
      codec=codec,
      count=sum(s['count'] for s in shards),
      **self.kinds,
      sizes=dict(sorted(self.sizes.items())),
      fps=tuple(sorted(self.fps)),
      sample_rates=tuple(sorted(self.sample_rates)),
      seconds=round(self.seconds, 6),
      bytes=sum(s['bytes'] for s in shards),
      shards=tuple(shards),
      references=self.references,
      latents=latents,
    )


class Shard:
  """An ArrayRecord file being written; its errors become OSErrors."""

  def __init__(self, path: pathlib.Path):
    from array_record.python import array_record_module

    self.path, self.count, self.bytes = path, 0, 0
    self._writer = array_record_module.ArrayRecordWriter(str(path), 'group_size:1')

  def __enter__(self):
    return self

  def write(self, data: bytes):
    self._writer.write(data)  # It buffers: a full disk is told by close.
    self.count, self.bytes = self.count + 1, self.bytes + len(data)

  def __exit__(self, kind, *_):
    try:
      self._writer.close()
    except RuntimeError as e:
      if kind is None:
        code = errno.ENOSPC if 'No space left' in str(e) else errno.EIO
        raise OSError(code, str(e), str(self.path)) from e

  def facts(self) -> dict:
    """The closed file's line in the manifest."""
    with self.path.open('rb') as f:
      digest = hashlib.file_digest(f, 'sha256').hexdigest()
    size = self.path.stat().st_size
    return {'name': self.path.name, 'count': self.count, 'bytes': size, 'sha256': digest}


def load_manifest(directory) -> Manifest:
  """Reads and checks manifest.json and that the shards it names are there, at full size."""
  directory = pathlib.Path(directory)
  if not directory.is_dir():
    raise RecordError(f'{directory}: no such folder of records; check the path.')
  try:
    text = (directory / MANIFEST).read_text(encoding='utf-8')
  except FileNotFoundError:
    raise RecordError(
      f'{directory} has no {MANIFEST}: these are no records, or an unfinished copy '
      'of some. Copy it again, or write it with data_pipelines.records.'
    ) from None
  try:
    raw = json.loads(text)
  except ValueError as e:
    raise RecordError(f'{directory / MANIFEST} is damaged ({e}); restore it from a copy.') from e
  return check_manifest(directory / MANIFEST, directory, raw)


def check_manifest(where, directory, raw) -> Manifest:
  """The manifest that `where` holds, parsed to `raw`, once it agrees with the shards."""
  try:
    schema = raw['schema']
    if schema != SCHEMA:
      raise RecordError(
        f'{directory} has schema version {schema!r}, this program reads {SCHEMA}; '
        'write the records again with this version.'
      )
    manifest = Manifest(**raw)
    counted = sum(shard['count'] for shard in manifest.shards)
  except (ValueError, KeyError, TypeError) as e:
    if isinstance(e, RecordError):
      raise
    raise RecordError(f'{where} is damaged ({e}); restore it from a copy.') from e
  if counted != manifest.count:
    raise RecordError(
      f'{where}: count is {manifest.count}, but its shards hold '
      f'{counted}; it was edited or damaged. Restore it from a copy.'
    )
  for shard in manifest.shards:
    path = pathlib.Path(directory, shard['name'])
    size = path.stat().st_size if path.exists() else None
    if size != shard['bytes']:
      raise RecordError(
        f'{path}: {"missing" if size is None else f"{size} bytes"}, the manifest '
        f'says {shard["bytes"]} bytes; copy the shard again.'
      )
  return manifest


def open(name: str, root=''):
  """The source that a config names, below `root`: a Source, or a tfds.TfdsSource.

  Args:
    name: a directory of records, 'latents:' and one of latents, or
      'tfds:NAME/VERSION:SPLIT@DATA_DIR', where @DATA_DIR may be left out if it is `root`.
  """
  if str(name).startswith('tfds:'):
    from data_pipelines import tfds  # Lazily: an extra.

    return tfds.TfdsSource(name, root)
  wanted = str(name).startswith(LATENTS)
  source = Source(os.path.join(root, str(name).removeprefix(LATENTS)))
  if wanted != (source.manifest.latents is not None):
    found, right = ('media', source.directory) if wanted else ('latents', LATENTS + name)
    raise RecordError(f'{source.directory} holds {found}; write its name as {right}')
  return source


class Source:
  """Random access to a directory of records.  Picklable; reads from many threads at once."""

  def __init__(self, directory):
    self.directory = os.fspath(directory)
    self.manifest = load_manifest(directory)
    self._open()

  def _open(self):
    self._ends = list(itertools.accumulate(s['count'] for s in self.manifest.shards))
    self._readers, self._lock = {}, threading.Lock()

  def __getstate__(self):
    return {'directory': self.directory, 'manifest': self.manifest}

  def __setstate__(self, state):
    self.__dict__.update(state)
    self._open()

  def __repr__(self):
    return f'Source({self.directory!r}, count={len(self)})'

  def __len__(self) -> int:
    return self.manifest.count

  def __getitem__(self, i):
    """A Record, or, of a folder of latents, a Coded."""
    if self.manifest.latents is None:
      return self._at(i, from_bytes)
    from data_pipelines import coded  # Lazily: it knows jax.

    return self._at(i, coded.from_bytes)

  def read(self, i) -> tuple[dict, bytes]:
    """What record i says of itself (record.read_meta), and its bytes; nothing is decoded."""
    return self._at(i, lambda data: (record_lib.read_meta(data), data))

  def _at(self, i, parse):
    i = operator.index(i)
    if not 0 <= i < len(self):
      raise IndexError(f'record {i} of {len(self)} in {self.directory}; give 0 to {len(self) - 1}.')
    number = bisect.bisect_right(self._ends, i)
    shard = self.manifest.shards[number]
    k = i - self._ends[number] + shard['count']
    try:
      return parse(self._reader(number).read([k])[0])
    except (RuntimeError, ValueError) as e:  # ArrayRecord's own checksums raise RuntimeError.
      where = f'{self.directory}/{shard["name"]}, record {k} (index {i})'
      raise RecordError(f'{where}: {e}') from e

  def _reader(self, number: int):
    """The shard's reader, opened at first use; ArrayRecord's readers may be shared by threads."""
    reader = self._readers.get(number)
    if reader is not None:
      return reader
    from array_record.python import array_record_module

    with self._lock:
      if number not in self._readers:
        shard = self.manifest.shards[number]
        reader = array_record_module.ArrayRecordReader(
          os.path.join(self.directory, shard['name']),
          'readahead_buffer_size:0',
          file_reader_buffer_size=32768,
        )
        if reader.num_records() != shard['count']:  # A cut file reads as an empty one.
          raise RecordError(
            f'it holds {reader.num_records()} records, the manifest says '
            f'{shard["count"]}; copy the shard again.'
          )
        self._readers[number] = reader
      return self._readers[number]
