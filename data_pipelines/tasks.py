"""What a row of a batch is trained to do: the tasks of section 2 of SPEC and of Table 1.

  TASKS[name]          what a task shows of a clip, and what it needs
  row = make(name, record, size, ...)    a record as this task sees it

A task is a mask (what is known of the frames), the sound that stays, the modality that is given
whole, and the kinds of reference that are shown.  All that is random comes from the generator.
"""

from collections.abc import Callable
import dataclasses

import numpy as np

from data_pipelines import coded as coded_lib
from data_pipelines import degrade
from data_pipelines import masks
from data_pipelines import record as record_lib
from data_pipelines import records
from data_pipelines import stills
from sr4.core import errors
from sr4.core.av import AV
from sr4.core.batch import Latents
from sr4.core.batch import Low
from sr4.core.batch import Size


class TaskError(errors.UserError):
  """A record, or a bucket, that a task can do nothing with."""


class Unsuited(TaskError):
  """A good record, and none for this task: another takes its place, and nobody need know."""


@dataclasses.dataclass(frozen=True)
class Task:
  video: str = (
    'clip'  # what the bucket must have: 'clip' (frames > 1), 'image' (1), 'none' or 'any'
  )
  sound: bool | None = None  # True: needed; False: taken away; None: kept where there is any
  known: Callable | None = None  # of masks.py
  regions: bool = False  # whether that hides parts of a frame
  clean: AV = AV(False, False)  # given whole
  references: tuple[str, ...] = ()  # kinds shown; the first is needed


TASKS = {
  't2i': Task(video='image'),
  't2v': Task(sound=False),
  't2av': Task(sound=True),
  't2a': Task(video='none', sound=True),
  'i2v': Task(known=masks.first),
  'start_end': Task(known=masks.ends),
  'keyframes': Task(known=masks.moments),
  'extend': Task(known=masks.prefix),
  'extend_back': Task(known=masks.suffix),
  'inpaint': Task(video='any', known=masks.around, regions=True),
  'edit': Task(known=masks.around_moving, regions=True),
  'image_ref': Task(references=('image',)),
  'video_ref': Task(references=('video', 'image')),
  'audio_ref': Task(video='any', sound=True, references=('audio', 'image')),
  'a2v': Task(sound=True, clean=AV(False, True)),
  'v2a': Task(sound=True, clean=AV(True, False)),
}
FRAMES = {
  'clip': lambda n: n > 1,
  'image': lambda n: n == 1,
  'none': lambda n: n == 0,
  'any': lambda n: True,
}
NO_KEYFRAMES = 0.1  # share of a Refiner's clips
SLOTS = {
  'image': 'reference_images',
  'video': 'reference_frames',
  'audio': 'reference_samples',
}


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
  """A record as a task sees it, cut to the bucket; None: it has none of that."""

  frames: np.ndarray | None = None  # uint8 [T H W 3]
  samples: np.ndarray | None = None  # float32 [n channels]
  known: np.ndarray | None = None  # bool [T H W] or [T 1 1]
  heard: np.ndarray | None = None  # bool [n]: samples that a clip to be made begins or ends with
  clean: AV = AV(False, False)
  keyframes: np.ndarray | None = None  # uint8 [k H*scale W*scale 3]
  at: np.ndarray | None = None  # int32 [k]
  images: tuple[np.ndarray, ...] = ()  # uint8 [H W 3] each
  low: np.ndarray | None = None  # uint8 [T' h w 3]
  clip: np.ndarray | None = None  # uint8 [F' H W 3], F' <= the slots
  sound: np.ndarray | None = None  # float32 [n' channels]
  caption: str = ''
  # Where latents were made ahead, what is above has its length and no pixels: [T 0] and so on.
  latents: Latents = Latents()
  text: tuple[np.ndarray, np.ndarray] | None = None  # embeddings [v e], their places int32 [v]


def of_latents(size: Size) -> tuple[str, ...]:
  """Tasks that latents suffice for: the condition of the others is made of pixels, some hidden.

  A Refiner is told what is known as the source's latents, of any region; but an edit's is the
  record's own, which is not kept.
  """
  whole = None, masks.first, masks.prefix
  fits = lambda task: task.known in whole or (size.low and task.known != masks.around_moving)
  return tuple(name for name, task in TASKS.items() if fits(task))


def natural(size: Size) -> str:
  """The task of a bucket that names none."""
  if not size.frames:
    return 't2a'
  if size.frames == 1:
    return 't2i'
  return 't2av' if size.samples else 't2v'


def check(name: str, size: Size, manifests=()):
  """TaskError unless a bucket of this size, with records of these manifests, can do the task."""
  if name not in TASKS:
    raise TaskError(f'task {name!r} is not among {", ".join(TASKS)}')
  task = TASKS[name]
  if not FRAMES[task.video](size.frames):
    want = {'clip': 'more than one frame', 'image': 'frames=1', 'none': 'frames=0'}[task.video]
    raise TaskError(f'task {name!r} is for buckets with {want}, and this has frames={size.frames}')
  if task.sound and not size.samples:
    raise TaskError(f'task {name!r} needs sound, and the bucket has sound=False')
  for kind in task.references[:1]:
    if not getattr(size, SLOTS[kind]):
      slot = SLOTS[kind].replace('samples', 'seconds')
      raise TaskError(f'task {name!r} needs {slot} above 0 in its bucket')
    if manifests and not any(m.references[kind] for m in manifests):
      raise TaskError(f'task {name!r} needs records with a {kind} reference, and there are none')
  if any(task.clean) and manifests and not any(m.video and m.audio for m in manifests):
    raise TaskError(f'task {name!r} needs records with frames and sound, and there are none')
  if 'image' in task.references and size.reference_images:
    most = max((m.references['max image'] for m in manifests), default=0)
    if most > size.reference_images:
      raise TaskError(
        f'its records have up to {most} reference images, and the bucket has reference_images='
        f'{size.reference_images}; raise it, or the others would be lost'
      )


def make(name: str, record: records.Record, size: Size, random, time_factor: int, channels: int):
  """The Row of a record.

  Args:
    random: numpy Generator of this draw.
    time_factor: frames under a latent; channels: of the sound, 1 or 2.
  Raises:
    TaskError: the record lacks what the task or the bucket needs; Unsuited: it is no such record.
  """
  task = TASKS[name]
  needs(task, {reference.kind for reference in record.references})
  frames, mask, samples = cut(record, size, random.random(), channels)
  if task.sound is False:
    samples = None
  if frames is None and samples is None:
    raise Unsuited(f'it has neither the frames nor the sound that {name!r} needs')
  both(name, frames is not None, samples is not None)
  known = None
  if frames is not None and task.known:
    known = task.known(random, size, time_factor)
    if name == 'edit' and mask is not None:
      known = ~mask
  return Row(
    samples=samples,
    known=known,
    clean=task.clean,
    **cascade(frames, size, random, time_factor),
    **shown(task.references, record, size, channels),
  )


def cascade(frames: np.ndarray | None, size: Size, random, time_factor: int) -> dict:
  """{field of Row: value}: frames, and with them what the two models of a cascade learn from.

  Args:
    frames: uint8 [T H*scale W*scale 3].
  """
  if frames is None:
    return {}
  keyframes = at = low = None
  if size.keyframes:
    latents = random.permutation(1 + (size.frames - 1) // time_factor)[: size.keyframes]
    at = np.sort(latents).astype(np.int32) * time_factor
    keyframes, frames = frames[at], stills.shrunk(frames, size.keyframe_scale)
  if size.low:
    low = degrade.degraded(frames, size.low, random)
    at = chosen(size.low, random, time_factor)
  return dict(frames=frames, keyframes=keyframes, at=at, low=low)


def chosen(low: Low, random, time_factor: int) -> np.ndarray | None:
  """Which frames of a Refiner's low clip are keyframes, at the ends of latents; some clips have
  none, so that it knows what to do then."""
  if not low.keyframes:
    return None
  if random.random() < NO_KEYFRAMES:
    return np.full(low.keyframes, -1, np.int32)
  latents = random.permutation(1 + (low.frames - 1) // time_factor)[: low.keyframes]
  return np.sort(latents).astype(np.int32) * time_factor


def made(name: str, coded: coded_lib.Coded, size: Size, random, time_factor: int, channels: int):
  """The Row of a record of latents; the arguments are those of `make`."""
  task, has = TASKS[name], coded.latents
  there = coded.references()
  needs(task, there)
  video = size.frames and coded.has_video
  audio = size.samples and coded.has_audio and task.sound is not False
  if not video and not audio:
    raise Unsuited(f'it has neither the frames nor the sound that {name!r} needs')
  both(name, video, audio)
  kinds = [kind for kind in task.references if kind in there]
  images = has.images if 'image' in kinds else None
  clip = coded.clip if 'video' in kinds else 0  # frames
  sound = coded.sound if coded.voice in kinds else 0  # samples
  # In place of media that nobody decodes: as long, and of no width, so that masks can be made.
  none = lambda length: np.empty((length, 0), np.uint8) if length else None
  random.random()  # `make` draws where it cuts; so the mask after it is the same here.
  return Row(
    none(size.frames) if video else None,
    none(size.samples) if audio else None,
    task.known(random, size, time_factor) if task.known and video else None,
    clean=task.clean,
    at=coded.at if video else None,
    images=() if images is None else tuple(map(none, [1] * len(images))),
    clip=none(clip),
    sound=none(sound),
    latents=Latents(
      video=has.video if video else None,
      audio=has.audio if audio else None,
      images=images,
      clip=has.clip if clip else None,
      sound=has.sound if sound else None,
      low=has.low if video else None,
      keyframes=has.keyframes if video else None,
    ),
  )


def voice_of(kinds, record: records.Record) -> str:
  """The kind of reference whose sound is heard where these are shown; '' where none is."""
  heard = {r.kind for r in record.references if r.samples is not None and r.kind in kinds}
  return next((kind for kind in ('audio', 'image') if kind in heard), '')


def needs(task: Task, there):
  """TaskError unless a record with these kinds of reference has the one that a task is about."""
  if missing := [kind for kind in task.references[:1] if kind not in there]:
    raise TaskError(f'it has no {missing[0]} reference')


def both(name: str, video, audio):
  """Unsuited where a task gives one modality for the other, and one of them is not there."""
  if any(TASKS[name].clean) and not (video and audio):
    raise Unsuited(f'it has no {"sound" if video else "frames"}, and {name!r} needs both')


def cut(record: records.Record, size: Size, place: float, channels: int):
  """(frames, mask, samples): the bucket's length of them from a place in [0, 1), or None each.

  Sound of which nothing is heard there is none, as in a record.
  """
  frames, mask, first = cut_frames(record, size, place)
  samples = None
  if record.has_audio and size.samples:
    spare = max(0, len(record.samples) - size.samples)
    begin = round(first / record.fps * record.sample_rate) if size.frames else int(place * spare)
    samples = record.samples[begin : begin + size.samples]
    if not record_lib.audible(samples):
      return frames, mask, None
    samples = mixed(samples, channels)
    samples = np.pad(samples, ((0, size.samples - len(samples)), (0, 0)))
  return frames, mask, samples


def cut_frames(record: records.Record, size: Size, place: float):
  """(frames, mask, the first of them)."""
  if not record.has_video or not size.frames:
    return None, None, 0
  sides = (size.height * size.keyframe_scale, size.width * size.keyframe_scale)
  if record.frames.shape[1:3] != sides or (size.frames > 1 and record.fps != size.fps):
    raise TaskError(
      f'{record.frames.shape[1:3]} at {record.fps:g} fps, but the bucket is {sides} at '
      f'{size.fps:g} fps'
    )
  if len(record.frames) < size.frames:
    raise TaskError(f'{len(record.frames)} frames, but the bucket has {size.frames}')
  first = int(place * (len(record.frames) - size.frames + 1))
  within = slice(first, first + size.frames)
  return record.frames[within], None if record.mask is None else record.mask[within], first


def shown(kinds, record: records.Record, size: Size, channels: int) -> dict:
  """The references of these kinds, fitted to the slots."""
  of = {
    kind: [r for r in record.references if r.kind == kind] if kind in kinds else []
    for kind in SLOTS
  }
  for kind, slot in SLOTS.items():
    if of[kind] and not getattr(size, slot):
      raise TaskError(f'it has a reference {kind}, and the bucket no slot for one')
  found = {}
  sides = size.height, size.width
  if size.reference_images:
    found['images'] = tuple(stills.letterbox(r.frames[0], *sides) for r in of['image'])
  if size.reference_frames and of['video']:
    clip = of['video'][0].frames[: size.reference_frames]
    found['clip'] = np.stack([stills.letterbox(frame, *sides) for frame in clip])
  if size.reference_samples:
    voices = [r.samples for r in of['audio'] + of['image'] if r.samples is not None]
    if voices:
      found['sound'] = mixed(voices[0][: size.reference_samples], channels)
  return found


def mixed(samples: np.ndarray, channels: int) -> np.ndarray:
  """[n c] as float32 [n channels]: mono doubled, stereo averaged."""
  if samples.shape[1] == channels:
    return samples
  return samples.mean(1, keepdims=True) if channels == 1 else np.repeat(samples, 2, 1)
