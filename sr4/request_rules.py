"""What may be asked: every rule of a request (sr4/request.py), with the field that it is about."""

import math
import re

from data_pipelines import media
from sr4.core import captions
from sr4.core import errors

RESOLUTIONS = {'480p': (480, 832), '720p': (720, 1280), '1080p': (1088, 1920)}  # of 16:9
ASPECTS = ('16:9', '4:3', '1:1', '9:16', '3:4')
# Of sampling: UniPC points with 12 steps where Euler does with 30.
MODES = {
  'fast': dict(num_inference_steps=12, solver='unipc'),
  'std': {},
  'pro': dict(num_inference_steps=50, solver='unipc'),
}
SEEDS = 2**32  # as many as there are
SECONDS = 15  # of a clip, and of a reference sound, at most
CLIP_SECONDS = 10  # of a reference clip
SLACK = 0.1  # seconds that a file may last longer: the frames of its sound are no smaller
IMAGES, ENTRIES, MOMENTS = 5, 3, 6  # of one tag, of a request, timed frames
OF_SOUNDS = 'they are of a sound alone (frames=0); a clip has `frames` or `duration`'


class RequestError(errors.UserError):
  """A request that breaks a rule; begins with the field's name."""


def problems(asked):
  """(field, the rule and the fix) of each rule that is broken."""
  images = asked.images
  omni = next((n for n in ('ref_images', 'ref_videos', 'ref_audios') if getattr(asked, n)), '')
  if not asked.prompt.strip():
    yield 'prompt', 'it is empty; say what is to be seen and heard'
  for name in ('prompt', 'negative_prompt', 'audio_negative_prompt'):
    if captions.UNWRITABLE.search(getattr(asked, name) or ''):
      yield name, 'it has control characters, or half a surrogate pair; take them out'
  if asked.seed is not None and not 0 <= asked.seed < SEEDS:
    yield 'seed', f'{asked.seed} is not in 0 to {SEEDS - 1}'
  if asked.duration is not None and not 3 <= asked.duration <= SECONDS:
    yield 'duration', f'{asked.duration} is not in 3 to {SECONDS} seconds'
  if asked.mode and asked.mode not in MODES:
    yield 'mode', f'{asked.mode!r} is not among {", ".join(MODES)}'
  if asked.resolution and asked.resolution not in RESOLUTIONS:
    yield 'resolution', f'{asked.resolution!r} is not among {", ".join(RESOLUTIONS)}'
  if asked.aspect_ratio and asked.aspect_ratio not in ASPECTS:
    yield 'aspect_ratio', f'{asked.aspect_ratio!r} is not among {", ".join(ASPECTS)}'
  if (asked.height or asked.width) and (asked.resolution or asked.aspect_ratio):
    yield 'height', 'height and width, or resolution and aspect_ratio: give one of these pairs'
  if asked.duration is not None and asked.frames is not None:
    yield 'frames', 'it says the same as duration; give one of them'
  if asked.aspect_ratio and images:
    yield 'aspect_ratio', 'it follows the image; leave it out'
  if omni and images:
    yield omni, 'references do not go with first, end and mid frames; leave either out'
  if omni and asked.video:
    yield omni, 'references do not go with a video that is edited; leave either out'
  if images and asked.video:
    yield 'video', 'an edit does not go with first, end and mid frames; leave either out'
  if asked.fps is not None and not 0 < asked.fps < math.inf:
    yield 'fps', f'{asked.fps:g} must be above 0'
  if asked.seconds is not None and not 0 <= asked.seconds < math.inf:
    yield 'seconds', f'{asked.seconds:g} must be 0 or above'
  if asked.frames == 0 and (asked.video or asked.audio):
    yield 'frames', '0 is a new sound alone; leave it out, or `video` and `audio`'
  if asked.frames == 0 and (asked.ref_images or asked.ref_videos):
    yield 'frames', '0 is a sound alone, and a picture or clip is referred to; leave either out'
  if asked.frames is not None and asked.frames < 2 and asked.extension:
    yield 'frames', f'{asked.frames} of a clip that goes on; give more, or leave it out'
  if asked.seconds is not None and (asked.frames or asked.duration is not None):
    yield 'seconds', OF_SOUNDS
  if asked.sound is False and asked.audio:
    yield 'sound', 'it is off, and `audio` is given; leave one of them out'
  if asked.sound is False and asked.voices:
    yield 'sound', 'it is off, and a reference sound is given; leave one of them out'
  if asked.sound is False and asked.whole_video:
    yield 'sound', 'with `video` and no mask its sound is made; give a mask, or leave this out'
  yield from of_masks(asked)
  yield from of_frames(asked)
  yield from of_references(asked)


def of_masks(asked):
  masks = [name for name in ('mask_video', 'mask_image') if getattr(asked, name)]
  if len(masks) > 1:
    yield 'mask_image', 'mask_video says it for each frame; give one of them'
  if masks and not asked.video:
    yield masks[0], 'it says what of `video` changes; give that, too'
  if asked.whole_video and asked.audio:
    yield 'audio', 'with `video` and no mask nothing is left to make; give one, or a mask'


def of_frames(asked):
  if len(asked.mid_frame_images) > MOMENTS:
    yield 'mid_frame_images', f'{len(asked.mid_frame_images)} of them; {MOMENTS} at most'
  for i, frame in enumerate(asked.mid_frame_images):
    where = f'mid_frame_images[{i}]'
    if frame.time_stamp != -1 and not 0 < frame.time_stamp < (asked.duration or math.inf):
      yield f'{where}.time_stamp', f'{frame.time_stamp:g} is not within the clip, nor -1'
    if frame.tag:
      yield from of_tag(asked, f'{where}.tag', frame.tag)


def of_references(asked):
  kinds, tags = {entry.type for entry in asked.ref_images}, set()
  if kinds - {'image', 'grid'}:
    yield 'ref_images', f'type {sorted(kinds - {"image", "grid"})[0]!r} is neither image nor grid'
  if len(kinds) > 1:
    yield 'ref_images', 'all are of one type, image or grid'
  if len(asked.ref_images) > (1 if kinds == {'grid'} else ENTRIES):
    yield 'ref_images', f'{len(asked.ref_images)} entries; {ENTRIES} at most, and 1 of a grid'
  for i, entry in enumerate(asked.ref_images):
    most = 1 if entry.type == 'grid' else IMAGES
    if not 1 <= len(entry.image_urls) <= most:
      yield f'ref_images[{i}].image_urls', f'{len(entry.image_urls)} of them; 1 to {most}'
  if len(asked.ref_videos) > 1:
    yield 'ref_videos', f'{len(asked.ref_videos)} of them; 1 at most'
  for i, entry in enumerate(asked.ref_videos):
    if entry.type not in ('reference', 'extend', 'extend_back'):
      yield f'ref_videos[{i}].type', f'{entry.type!r}; it is reference, extend or extend_back'
  if asked.extension and (asked.ref_images or asked.ref_audios):
    yield 'ref_videos', 'a clip that is extended does not go with other references'
  if asked.extension and asked.audio:
    yield 'audio', 'a clip that is extended has its own sound, which goes on; leave either out'
  if len(asked.voices) > 1:
    yield 'ref_audios', 'one reference sound, the voice of a picture or a tag of its own; no more'
  for name in ('ref_images', 'ref_videos', 'ref_audios'):
    for i, entry in enumerate(getattr(asked, name)):
      yield from of_tag(asked, f'{name}[{i}].tag', entry.tag)
      if entry.tag in tags:
        yield f'{name}[{i}].tag', f'{entry.tag!r} is there twice; each has its own'
      tags.add(entry.tag)


def of_tag(asked, where: str, tag: str):
  if not tag.startswith('@') or len(tag) < 2:
    yield where, f'{tag!r} does not start with @ and a name'
  elif not named(tag).search(asked.prompt):
    yield where, f'the prompt does not name {tag!r}; name it there'


def named(tag: str) -> re.Pattern:
  """Where a prompt names it, and no longer one: ASCII, as other scripts set no space behind it."""
  return re.compile(re.escape(tag) + '(?![A-Za-z0-9_])')


def of_model(asked, frames: bool, sound: bool):
  """As problems: of what a model does not make, which makes frames, sound or both."""
  if frames and asked.seconds is not None and asked.frames is None:
    yield 'seconds', OF_SOUNDS
  if not frames:
    for name in ('frames', 'video'):
      if getattr(asked, name):
        yield name, 'the model makes sounds alone; leave it out'
  if not sound:
    heard = {name: getattr(asked, name) for name in ('sound', 'seconds', 'audio')}
    for name, given in (heard | {'frames': asked.frames == 0} | dict(asked.voices)).items():
      if given:
        yield name, 'the model makes no sound; leave it out'
    if asked.whole_video:
      yield 'video', 'without a mask its sound is made, and the model makes none; give a mask'


def of_files(asked):
  """As problems: of each file that is not there, is no media, or lacks what is read of it."""
  for field, path, kind in files(asked):
    if not path:
      yield field, 'it is empty; name a file'
      continue
    try:
      info = media.probe(path)
    except OSError as error:
      yield field, f'{path}: {error.strerror}'
    except media.MediaError as error:
      yield field, str(error)
    else:
      if not (info.has_audio if kind == 'sound' else info.width):
        yield field, f'{path} has no {kind} that can be read'
      elif not info.duration and lasts(asked, field):
        yield field, f'{path} lasts no time that can be told; give a clip, or write it again'
      elif (most := longest(asked, field)) and info.duration > most + SLACK:
        yield field, f'{path} lasts {info.duration:.1f} s; {most} s at most, so cut it'


def lasts(asked, field: str) -> bool:
  """Does something last as long as the file of this field?"""
  if field == 'video':
    return asked.frames is None and asked.duration is None
  return field.startswith('ref_') and 'image_urls' not in field


def longest(asked, field: str) -> int:
  """Seconds that the file of this field may last; 0: any number."""
  if field.startswith('ref_') and field.endswith('audio_url'):
    return SECONDS
  return CLIP_SECONDS if field.endswith('video_url') and not asked.extension else 0


def files(asked):
  """(field, file, 'picture' or 'sound', whichever is read of it) of all media."""
  pictures = 'first_frame_image', 'end_frame_image', 'video', 'mask_video', 'mask_image'
  found = [(name, getattr(asked, name), 'picture') for name in pictures]
  found = [each for each in (*found, ('audio', asked.audio, 'sound')) if each[1]]
  for i, frame in enumerate(asked.mid_frame_images):
    found += [(f'mid_frame_images[{i}].image_url', frame.image_url, 'picture')]
  for i, entry in enumerate(asked.ref_images):
    for j, path in enumerate(entry.image_urls):
      found += [(f'ref_images[{i}].image_urls[{j}]', path, 'picture')]
    if entry.audio_url:
      found += [(f'ref_images[{i}].audio_url', entry.audio_url, 'sound')]
  for i, entry in enumerate(asked.ref_videos):
    found += [(f'ref_videos[{i}].video_url', entry.video_url, 'picture')]
  for i, entry in enumerate(asked.ref_audios):
    found += [(f'ref_audios[{i}].audio_url', entry.audio_url, 'sound')]
  return found
