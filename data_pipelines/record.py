"""One record: a clip, picture or sound with its captions, mask and references, and its bytes.

    blob = to_bytes(record, codec)   checksum, then safetensors; the same record, the same bytes
    record = from_bytes(blob)

Two codecs.  `raw` stores arrays and loses nothing but the rounding of sound to 16 bits.  `mp4`
stores videos as MP4 (H.264 at CRF 18, AAC), single pictures as PNG or JPEG, masks as packed bits;
sound that accompanies no video stays 16 bits.
"""

import collections
import dataclasses
import json
import zlib

import numpy as np
import safetensors.numpy

from sr4.core import errors

SCHEMA = 2
CODECS = ('raw', 'mp4')
KINDS = ('image', 'video', 'audio')
GOP = 16  # Frames from one key frame to the next.


class RecordError(errors.UserError):
  """Records that are broken, incomplete or of another kind, or input that makes none."""


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
  """What a caption names @image_1, @video_1 or @audio_1: the first of its kind, and so on."""

  kind: str  # One of KINDS.
  frames: np.ndarray | None  # uint8 [t h w 3], of any size, at the record's fps; an image: t = 1
  samples: np.ndarray | None  # [n c], at the record's rate; beside an image: a voice


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
  """One clip, picture or sound."""

  id: str
  frames: np.ndarray | None  # uint8 [t h w 3]; a picture has t = 1
  fps: float
  samples: np.ndarray | None  # float in [-1, 1] or int16, [n c]; from_bytes gives float32
  sample_rate: int
  captions: dict[str, str]
  mask: np.ndarray | None = None  # bool [t h w]; True: edited, to be generated; the rest is given
  references: tuple[Reference, ...] = ()

  @property
  def has_video(self) -> bool:
    return self.frames is not None

  @property
  def has_audio(self) -> bool:
    """Is there anything to hear?  All zeros are no sound."""
    return audible(self.samples)

  @property
  def seconds(self) -> float:
    if self.frames is not None:
      return len(self.frames) / self.fps
    return len(self.samples) / self.sample_rate


def audible(samples: np.ndarray | None) -> bool:
  """Is any sample not 0 when rounded to 16 bits?"""
  if samples is None or not samples.size:
    return False
  least = 1 if samples.dtype == np.int16 else 0.5 / 32768
  return bool(samples.max() > least or samples.min() < -least or to_int16(samples).any())


def names(references: tuple[Reference, ...]) -> tuple[str, ...]:
  """What captions call the references, in their order: '@image_1', '@image_2', '@audio_1'."""
  seen, out = collections.Counter(), []
  for reference in references:
    seen[reference.kind] += 1
    out.append(f'@{reference.kind}_{seen[reference.kind]}')
  return tuple(out)


def to_int16(samples: np.ndarray) -> np.ndarray:
  if samples.dtype == np.int16:
    return samples
  return np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)


def to_bytes(record: Record, codec: str = 'raw') -> bytes:
  """CRC-32 (4 bytes, little endian) of what follows, then a safetensors blob.

  Arrays: `frames` uint8 and `samples` int16, or `media`, the bytes of an MP4 that holds both, or
  `picture`, those of a PNG or JPEG; `mask` bool, or `mask_bits`, packed and deflated; the arrays of
  reference i begin with `reference_i_`.  All else is one JSON text in the metadata: safetensors
  stores several in no fixed order.
  """
  _check(record, codec)
  arrays, meta = _pack('', record, record, codec)
  meta |= {
    'schema': SCHEMA,
    'codec': codec,
    'id': record.id,
    'fps': float(record.fps),
    'sample_rate': int(record.sample_rate),
    'captions': record.captions,
    'references': [],
  }
  if record.mask is not None and codec == 'mp4':
    bits = zlib.compress(np.packbits(record.mask).tobytes())
    arrays['mask_bits'] = np.frombuffer(bits, np.uint8)
  elif record.mask is not None:
    arrays['mask'] = np.ascontiguousarray(record.mask)
  for i, reference in enumerate(record.references):
    more, shapes = _pack(f'reference_{i}_', reference, record, codec)
    arrays |= more
    meta['references'].append({'kind': reference.kind} | shapes)
  return sealed(arrays, meta)


def sealed(arrays: dict[str, np.ndarray], meta: dict) -> bytes:
  """CRC-32 and a safetensors blob, the meta in it as one JSON text."""
  text = json.dumps(meta, sort_keys=True, ensure_ascii=False)
  blob = safetensors.numpy.save(arrays, {'record': text})
  return zlib.crc32(blob).to_bytes(4, 'little') + blob


def read_meta(data: bytes) -> dict:
  """What to_bytes says about a record (id, captions, shapes, ...), once the checksum is right."""
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
  return meta


def from_bytes(data: bytes) -> Record:
  """The record in the bytes of to_bytes; a flipped byte anywhere is a RecordError."""
  meta = read_meta(data)
  arrays = safetensors.numpy.load(bytes(memoryview(data)[4:]))
  mask = arrays.get('mask')
  if 'mask_bits' in arrays:
    shape = meta['frames'][:3]
    bits = np.frombuffer(zlib.decompress(arrays['mask_bits'].tobytes()), np.uint8)
    mask = np.unpackbits(bits, count=int(np.prod(shape))).reshape(shape).astype(bool)
  frames, samples = _unpack('', arrays, meta, meta)
  references = tuple(
    Reference(shapes['kind'], *_unpack(f'reference_{i}_', arrays, shapes, meta))
    for i, shapes in enumerate(meta['references'])
  )
  return Record(
    meta['id'],
    frames,
    meta['fps'],
    samples,
    meta['sample_rate'],
    meta['captions'],
    mask,
    references,
  )


def _pack(prefix: str, media, record: Record, codec: str) -> tuple[dict, dict]:
  """(arrays, shapes) of the frames and samples of a record or of one of its references."""
  frames, samples = media.frames, media.samples if audible(media.samples) else None
  shapes = {
    'frames': None if frames is None else list(frames.shape),
    'samples': None if samples is None else list(samples.shape),
  }
  arrays = {}
  if codec == 'mp4' and frames is not None and len(frames) > 1:
    from data_pipelines import mp4  # Lazily: --help and raw records need no PyAV.

    rate = None if samples is None else record.sample_rate
    try:
      data = mp4.write(None, frames, record.fps, samples, rate, gop=GOP)
    except ValueError as e:
      raise RecordError(f'record {record.id!r}: {e}') from e
    return {f'{prefix}media': np.frombuffer(data, np.uint8)}, shapes
  if codec == 'mp4' and frames is not None:
    from data_pipelines import stills

    arrays[f'{prefix}picture'] = np.frombuffer(stills.to_bytes(frames[0]), np.uint8)
  elif frames is not None:
    arrays[f'{prefix}frames'] = np.ascontiguousarray(frames)
  if samples is not None:
    arrays[f'{prefix}samples'] = np.ascontiguousarray(to_int16(samples))
  return arrays, shapes


def _unpack(prefix: str, arrays: dict, shapes: dict, meta: dict):
  """(frames, samples), the way back from _pack."""
  frames, samples = arrays.get(f'{prefix}frames'), arrays.get(f'{prefix}samples')
  if samples is not None:
    samples = samples.astype(np.float32) / 32768
  if f'{prefix}media' in arrays:
    from data_pipelines import media

    t, h, w, _ = shapes['frames']
    clip = media.read(
      arrays[f'{prefix}media'].tobytes(),
      height=h,
      width=w,
      fps=meta['fps'],
      frames=t,
      sample_rate=meta['sample_rate'] or 1,
      channels=shapes['samples'][1] if shapes['samples'] else 1,
    )
    return clip.frames, clip.samples
  if f'{prefix}picture' in arrays:
    from data_pipelines import media

    _, h, w, _ = shapes['frames']
    frames = media.read_image(arrays[f'{prefix}picture'].tobytes(), h, w)[None]
  return frames, samples


def _check(record: Record, codec: str):
  if codec not in CODECS:
    raise RecordError(f'codec is {codec!r}; choose one of {CODECS}.')
  name, mask, references = f'record {record.id!r}', record.mask, record.references
  if record.frames is None and not record.has_audio:
    raise RecordError(f'{name} has neither pictures nor sound; leave it out.')
  sounds = [m.samples for m in (record, *references) if m.samples is not None]
  if not record.fps > 0 or (sounds and not record.sample_rate > 0):
    raise RecordError(
      f'{name}: fps {record.fps!r}, sample_rate {record.sample_rate!r}; both must be above 0.'
    )
  _check_media(name, record, record, codec)
  shape = None if record.frames is None else record.frames.shape[:3]
  if mask is not None and (mask.dtype != bool or mask.shape != shape):
    raise RecordError(
      f'{name}: the mask is {mask.dtype} {list(mask.shape)}; give bool [t h w] like the frames, '
      f'{list(shape) if shape else "of which there are none"}.'
    )
  for reference, called in zip(references, names(references)):
    _check_media(f'{name}, {called}', reference, record, codec)
    _check_reference(f'{name}, {called}', reference)


def _check_media(name: str, media, record: Record, codec: str):
  x, s = media.frames, media.samples
  if x is not None and (x.dtype != np.uint8 or x.ndim != 4 or x.shape[3] != 3 or not x.size):
    raise RecordError(f'{name}: frames are {x.dtype} {list(x.shape)}; give uint8 [t h w 3].')
  if s is not None and (
    s.ndim != 2 or not (s.dtype == np.int16 or s.dtype.kind == 'f') or not np.isfinite(s).all()
  ):
    raise RecordError(
      f'{name}: samples are {s.dtype} {list(s.shape)}; give finite '
      'float in [-1, 1] or int16, [n c].'
    )
  if codec == 'mp4' and x is not None and len(x) > 1 and audible(s):
    n = round(len(x) / record.fps * record.sample_rate)
    if len(s) != n:
      raise RecordError(
        f'{name}: {len(s)} samples beside {len(x)} frames; an MP4 '
        f'gives back round(frames / fps * sample_rate) = {n}. Cut or pad them.'
      )


def _check_reference(name: str, reference: Reference):
  kind, x = reference.kind, reference.frames
  if kind not in KINDS:
    raise RecordError(f'{name}: kind is {kind!r}; choose one of {KINDS}.')
  if (x is None) != (kind == 'audio') or (kind == 'image' and len(x) != 1):
    raise RecordError(
      f'{name}: {"no" if x is None else len(x)} frames; an image has 1, a video some, audio none.'
    )
  if kind == 'audio' and not audible(reference.samples):
    raise RecordError(f'{name}: nothing is to be heard in it; leave it out.')
