"""Records: clips with their captions in ArrayRecord shards, read by index.

    blob = to_bytes(record, codec)   checksum, then safetensors; the same record, the same bytes
    record = from_bytes(blob)
    manifest = write(directory, records)
    source = Source(directory); source[i]

A directory of records is complete if and only if it holds manifest.json: it is written under
another name and renamed at the end.
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
import shutil
import threading
import uuid
import zlib

import numpy as np
import safetensors.numpy

from sr4.core import errors

SCHEMA = 1
CODECS = ('raw', 'mp4')
MANIFEST = 'manifest.json'


class RecordError(errors.UserError):
  """Records that are broken, incomplete or of another kind, or input that makes none."""


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
  """One clip, picture or sound."""

  id: str
  frames: np.ndarray | None  # uint8 [t h w 3]; a picture has t = 1
  fps: float
  samples: np.ndarray | None  # float in [-1, 1] or int16, [n c]; from_bytes gives float32
  sample_rate: int
  captions: dict[str, str]

  @property
  def has_video(self) -> bool:
    return self.frames is not None

  @property
  def has_audio(self) -> bool:
    """Is there anything to hear?  All zeros are no sound."""
    return self.samples is not None and bool(to_int16(self.samples).any())

  @property
  def seconds(self) -> float:
    if self.frames is not None:
      return len(self.frames) / self.fps
    return len(self.samples) / self.sample_rate


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


def to_int16(samples: np.ndarray) -> np.ndarray:
  if samples.dtype == np.int16:
    return samples
  return np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)


def to_bytes(record: Record, codec: str = 'raw') -> bytes:
  """CRC-32 (4 bytes, little endian) of what follows, then a safetensors blob.

  Arrays: `frames` uint8 and `samples` int16, or `media`, the bytes of an MP4 that holds both.  All
  else is one JSON text in the metadata: safetensors stores several in no fixed order.
  """
  _check(record, codec)
  sound = record.has_audio
  meta = {
    'schema': SCHEMA,
    'codec': codec,
    'id': record.id,
    'fps': float(record.fps),
    'sample_rate': int(record.sample_rate),
    'captions': record.captions,
    'has_video': record.has_video,
    'has_audio': sound,
    'frames': list(record.frames.shape) if record.has_video else None,
    'samples': list(record.samples.shape) if sound else None,
  }
  arrays = {}
  if codec == 'mp4' and record.has_video:
    from data_pipelines import mp4  # Lazily: --help and raw records need no PyAV.

    data = mp4.write(
      None,
      record.frames,
      record.fps,
      record.samples if sound else None,
      record.sample_rate if sound else None,
    )
    arrays['media'] = np.frombuffer(data, np.uint8)
  else:
    if record.has_video:
      arrays['frames'] = np.ascontiguousarray(record.frames)
    if sound:
      arrays['samples'] = np.ascontiguousarray(to_int16(record.samples))
  text = json.dumps(meta, sort_keys=True, ensure_ascii=False)
  blob = safetensors.numpy.save(arrays, {'record': text})
  return zlib.crc32(blob).to_bytes(4, 'little') + blob


def from_bytes(data: bytes) -> Record:
  """The record in the bytes of to_bytes; a flipped byte anywhere is a RecordError."""
  blob = memoryview(data)[4:]
  if len(blob) < 8 or zlib.crc32(blob) != int.from_bytes(data[:4], 'little'):
    raise RecordError(
      f'the checksum of {len(data)} bytes does not match: they have changed since '
      'they were written. Restore the shard from a copy, or write it again.'
    )
  header = json.loads(bytes(blob[8 : 8 + int.from_bytes(blob[:8], 'little')]))
  meta = json.loads(header['__metadata__']['record'])
  if meta['schema'] != SCHEMA:
    raise RecordError(f'schema {meta["schema"]}; this program reads {SCHEMA}. Write them again.')
  arrays = safetensors.numpy.load(bytes(blob))
  frames, samples = arrays.get('frames'), arrays.get('samples')
  if 'media' in arrays:
    from data_pipelines import media

    t, h, w, _ = meta['frames']
    channels = meta['samples'][1] if meta['has_audio'] else 1
    clip = media.read(
      arrays['media'].tobytes(),
      height=h,
      width=w,
      fps=meta['fps'],
      frames=t,
      sample_rate=meta['sample_rate'] or 1,
      channels=channels,
    )
    frames, samples = clip.frames, clip.samples
  elif samples is not None:
    samples = samples.astype(np.float32) / 32768
  return Record(meta['id'], frames, meta['fps'], samples, meta['sample_rate'], meta['captions'])


def _check(record: Record, codec: str):
  if codec not in CODECS:
    raise RecordError(f'codec is {codec!r}; choose one of {CODECS}.')
  x, s = record.frames, record.samples
  if x is None and not record.has_audio:
    raise RecordError(f'record {record.id!r} has neither pictures nor sound; leave it out.')
  if x is not None and (x.dtype != np.uint8 or x.ndim != 4 or x.shape[3] != 3 or not x.size):
    raise RecordError(
      f'record {record.id!r}: frames are {x.dtype} {list(x.shape)}; give uint8 [t h w 3].'
    )
  if s is not None and (
    s.ndim != 2 or not (s.dtype == np.int16 or s.dtype.kind == 'f') or not np.isfinite(s).all()
  ):
    raise RecordError(
      f'record {record.id!r}: samples are {s.dtype} {list(s.shape)}; give finite '
      'float in [-1, 1] or int16, [n c].'
    )
  if not record.fps > 0 or (s is not None and not record.sample_rate > 0):
    raise RecordError(
      f'record {record.id!r}: fps {record.fps!r}, sample_rate '
      f'{record.sample_rate!r}; both must be above 0.'
    )
  if codec == 'mp4' and x is not None and record.has_audio:
    n = round(len(x) / record.fps * record.sample_rate)
    if len(s) != n:
      raise RecordError(
        f'record {record.id!r}: {len(s)} samples beside {len(x)} frames; an MP4 '
        f'gives back round(frames / fps * sample_rate) = {n}. Cut or pad them.'
      )


def write(
  directory, records: Iterable[Record], *, codec: str = 'raw', shard_size: int = 256 << 20
) -> Manifest:
  """Writes all records, or nothing.  Shards are closed once they hold `shard_size` bytes.

  Raises:
    RecordError: the directory is not empty, there is no record, or a record breaks the rules.
    OSError: a full or unwritable disk, with the directory in it.
  """
  directory = pathlib.Path(directory)
  if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
    raise RecordError(f'{directory} exists and is not empty; remove it, or write elsewhere.')
  partial = directory.parent / f'.{directory.name}.partial-{uuid.uuid4().hex[:8]}'
  try:
    partial.mkdir(parents=True)
    manifest = _write_shards(partial, records, codec, shard_size)
    with open(partial / MANIFEST, 'w', encoding='utf-8') as f:
      json.dump(dataclasses.asdict(manifest), f, indent=1)
    for path in (*partial.iterdir(), partial):
      _sync(path)
    os.rename(partial, directory)
    _sync(directory.parent)
  except BaseException as e:
    shutil.rmtree(partial, ignore_errors=True)
    if isinstance(e, OSError):
      raise OSError(e.errno or errno.EIO, e.strerror or str(e), str(directory)) from e
    raise
  return manifest


def _sync(path):
  fd = os.open(path, os.O_RDONLY)
  try:
    os.fsync(fd)
  finally:
    os.close(fd)


def _write_shards(folder, records, codec, shard_size) -> Manifest:
  total, sizes = collections.Counter(), collections.Counter()
  fps, sample_rates, seconds, shards, records = set(), set(), 0.0, [], iter(records)
  for first in records:
    path = folder / f'part-{len(shards):05d}'
    with _Shard(path) as shard:
      for record in itertools.chain([first], records):
        shard.write(to_bytes(record, codec))
        sound, seconds = record.has_audio, seconds + record.seconds
        total.update(video=record.has_video, audio=sound, audio_video=record.has_video and sound)
        if record.has_video:
          sizes[' '.join(map(str, record.frames.shape[:3]))] += 1
          fps.add(float(record.fps))
        sample_rates.update([int(record.sample_rate)] if sound else [])
        if shard.bytes >= shard_size:
          break
    with open(path, 'rb') as f:
      digest = hashlib.file_digest(f, 'sha256').hexdigest()
    shards.append({'count': shard.count, 'bytes': path.stat().st_size, 'sha256': digest})
  if not shards:
    raise RecordError('no record to write; check where they come from.')
  for i, shard in enumerate(shards):
    shard['name'] = f'part-{i:05d}-of-{len(shards):05d}'
    os.rename(folder / f'part-{i:05d}', folder / shard['name'])
  return Manifest(
    schema=SCHEMA,
    codec=codec,
    count=sum(s['count'] for s in shards),
    **total,
    sizes=dict(sorted(sizes.items())),
    fps=tuple(sorted(fps)),
    sample_rates=tuple(sorted(sample_rates)),
    seconds=round(seconds, 6),
    bytes=sum(s['bytes'] for s in shards),
    shards=tuple(shards),
  )


class _Shard:
  """An ArrayRecord file being written; its errors become OSErrors."""

  def __init__(self, path):
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
    raise RecordError(f'{directory / MANIFEST} is damaged ({e}); restore it from a copy.') from e
  if counted != manifest.count:
    raise RecordError(
      f'{directory / MANIFEST}: count is {manifest.count}, but its shards hold '
      f'{counted}; it was edited or damaged. Restore it from a copy.'
    )
  for shard in manifest.shards:
    path = directory / shard['name']
    size = path.stat().st_size if path.exists() else None
    if size != shard['bytes']:
      raise RecordError(
        f'{path}: {"missing" if size is None else f"{size} bytes"}, the manifest '
        f'says {shard["bytes"]} bytes; copy the shard again.'
      )
  return manifest


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

  def __getitem__(self, i) -> Record:
    i = operator.index(i)
    if not 0 <= i < len(self):
      raise IndexError(f'record {i} of {len(self)} in {self.directory}; give 0 to {len(self) - 1}.')
    number = bisect.bisect_right(self._ends, i)
    shard = self.manifest.shards[number]
    k = i - self._ends[number] + shard['count']
    where = f'{self.directory}/{shard["name"]}, record {k} (index {i})'
    try:
      return from_bytes(self._reader(number).read([k])[0])
    except (RuntimeError, ValueError) as e:  # ArrayRecord's own checksums raise RuntimeError.
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
