"""A record of latents and embeddings, made ahead of training from a record of media.

    blob = to_bytes(coded)     the envelope of record.py, codec 'latents'; arrays in bf16
    coded = from_bytes(blob)

It is one clip of a bucket's shape, from the first of its frames.
"""

from collections.abc import Mapping
import dataclasses

import ml_dtypes
import numpy as np
import safetensors.numpy

from data_pipelines import record as record_lib
from sr4.core.batch import Latents
from sr4.core.batch import Size

CODEC = 'latents'
NAMES = tuple(field.name for field in dataclasses.fields(Latents))
SEEN = ('image', 'video')  # kinds of reference that a text encoder may look at


@dataclasses.dataclass(frozen=True, eq=False)
class Coded:
  id: str
  fps: float
  captions: dict[str, str]
  latents: Latents  # numpy, without rows: [t h w c], [l c], [N h w c] and so on
  # {caption's name: {kinds of reference that were shown: (embeddings [v e], places int32 [v])}}
  text: dict[str, dict[tuple[str, ...], tuple[np.ndarray, np.ndarray]]]
  frames: int  # of the clip; 0: it has none
  seconds: float
  # Frames of the reference clip, samples of the reference sound, of those that there is room for.
  clip: int = 0
  sound: int = 0
  voice: str = ''  # the kind of reference that this sound comes with
  at: np.ndarray | None = None  # int32 [k], which frames the keyframes are (core/batch.py)

  @property
  def has_video(self) -> bool:
    return self.latents.video is not None

  @property
  def has_audio(self) -> bool:
    return self.latents.audio is not None

  def references(self) -> tuple[str, ...]:
    """Kinds of which it has any."""
    there = self.latents.images, self.latents.clip, self.latents.sound
    return tuple(kind for kind, x in zip(record_lib.KINDS, there) if x is not None)


def seen(kinds: tuple[str, ...], there: tuple[str, ...]) -> tuple[str, ...]:
  """The kinds of reference that an encoder looks at, of what a task shows and a record has."""
  return tuple(kind for kind in SEEN if kind in kinds and kind in there)


def embedding(coded: Coded, caption: str, kinds: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
  """What was made of a caption beside the references that a task shows: (text, places).

  Raises:
    RecordError: that was not made.
  """
  name = next((name for name, text in coded.captions.items() if text == caption), None)
  view = seen(kinds, coded.references())
  try:
    return coded.text[name][view]
  except KeyError:
    shown = ' and '.join(view) or 'no reference'
    raise record_lib.RecordError(
      f'it has no embedding of the caption {name!r} beside {shown}; encode its records for this '
      'task'
    ) from None


@dataclasses.dataclass(frozen=True)
class Fit:
  """What a folder of latents must be for a bucket, and the shapes of what is in it."""

  made: Mapping[str, str]  # what codecs and encoder are, by part
  latents: Latents  # of shapes, without rows
  text: tuple[int, int]  # (m, e) of the embeddings
  captions: tuple[str, ...]  # that are read

  def check(self, source, size: Size):
    """RecordError where a folder was made by other codecs, or for another size."""
    told, wanted = source.manifest.latents, dataclasses.asdict(size)
    why = [
      f'another {part}'
      for part, identity in self.made.items()
      if told['made'].get(part) != identity
    ]
    why += [
      f'{name} {told["size"].get(name)} for {value}'
      for name, value in wanted.items()
      if told['size'].get(name) != value
    ]
    why += [f'no {name} captions' for name in self.captions if name not in told['captions']]
    if why:
      raise record_lib.RecordError(
        f'{source.directory} was made with {", ".join(why)}: these latents are stale; make them '
        'anew with python -m data_pipelines.encode and this config'
      )

  def text_of(self, rows) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings bf16 [b m e] and which there are, of rows of tasks.Row."""
    text = np.zeros((len(rows), *self.text), ml_dtypes.bfloat16)
    valid = np.zeros(text.shape[:2], bool)
    for i, row in enumerate(rows):
      if row.text is not None:
        found, at = row.text
        text[i, at], valid[i, at] = found, True
    return text, valid


def to_bytes(coded: Coded) -> bytes:
  bits = lambda x: np.ascontiguousarray(x.astype(ml_dtypes.bfloat16)).view(np.uint16)
  arrays = {name: bits(x) for name in NAMES if (x := getattr(coded.latents, name)) is not None}
  texts = []
  for caption, views in coded.text.items():
    for view, (text, at) in views.items():
      arrays[f'text_{len(texts)}'], arrays[f'at_{len(texts)}'] = bits(text), at.astype(np.int32)
      texts.append([caption, list(view)])
  if coded.at is not None:
    arrays['at'] = coded.at.astype(np.int32)
  meta = {
    'schema': record_lib.SCHEMA,
    'codec': CODEC,
    'id': coded.id,
    'fps': float(coded.fps),
    'captions': coded.captions,
    'texts': texts,
    'frames': coded.frames,
    'seconds': coded.seconds,
    'clip': coded.clip,
    'sound': coded.sound,
    'voice': coded.voice,
  }
  return record_lib.sealed(arrays, meta)


def from_bytes(data: bytes) -> Coded:
  """Of the bytes of to_bytes; a flipped byte anywhere is a RecordError."""
  meta = record_lib.read_meta(data)
  if meta['codec'] != CODEC:
    raise record_lib.RecordError(f'a record of {meta["codec"]!r}, where latents were to be')
  arrays = safetensors.numpy.load(bytes(memoryview(data)[4:]))
  values = lambda x: x.view(ml_dtypes.bfloat16)
  text = {caption: {} for caption, _ in meta['texts']}
  for i, (caption, view) in enumerate(meta['texts']):
    text[caption][tuple(view)] = values(arrays[f'text_{i}']), arrays[f'at_{i}']
  return Coded(
    id=meta['id'],
    fps=meta['fps'],
    captions=meta['captions'],
    latents=Latents(**{name: values(arrays[name]) for name in NAMES if name in arrays}),
    text=text,
    frames=meta['frames'],
    seconds=meta['seconds'],
    clip=meta['clip'],
    sound=meta['sound'],
    voice=meta['voice'],
    at=arrays.get('at'),
  )
