"""What may be given to the sampler in torch: every rule, with the argument that it is about.

Each function yields what is wrong; a rule may rely on those before it.
"""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import math

import numpy as np

from sr4.core import captions
from sr4.core.av import AV
from sr4.core.batch import Size
from sr4.flow import segments
from sr4.torch.media import Given

OUTPUTS = ('np', 'latent')
SLACK = 0.1  # seconds that a sound may last less than its clip: a file's frames are no smaller


def check(problems: Iterable[str]):
  """ValueError with the first of them."""
  if told := next(iter(problems), ''):
    raise ValueError(told)


def of_size(size: Size, seconds: float, codecs: AV, patch):
  """Of what the clip is to be."""
  counts = ('num_frames', size.frames), ('height', size.height), ('width', size.width)
  for name, x in (*counts, ('num_keyframes', size.keyframes)):
    if not isinstance(x, (int, np.integer)) or x < 0:
      yield f'{name}={x!r} must be a whole number, 0 or above'
  if size.keyframes and (not isinstance(scale := size.keyframe_scale, int) or scale < 1):
    yield f'keyframe_scale={scale!r} must be a whole number, 1 or above'
  if not 0 < size.fps < math.inf:
    yield f'fps={size.fps} must be above 0'
  if not 0 <= seconds < math.inf:
    yield f'seconds={seconds} must be 0 or above'
  if size.frames and seconds:
    yield f'seconds={seconds} is of a sound alone (num_frames=0); a clip lasts num_frames / fps'
  if not size.frames and size.keyframes:
    yield f'num_keyframes={size.keyframes} of a sound alone (num_frames=0); leave it out'
  if not size.frames and not size.samples:
    yield 'num_frames=0 and no sound; give one of them, and `seconds` of sound alone'
  if size.samples and not codecs.audio.latent_length(size.samples):
    yield f'a sound of {size.samples} samples is shorter than one latent; make it longer'
  if not size.frames:
    return
  codec = codecs.video
  if (size.frames - 1) % codec.time_factor:
    yield f'num_frames={size.frames} must be 1 + n * {codec.time_factor}, or 0'
  for (name, side), step in zip(counts[1:], patch[1:]):
    if side % (unit := codec.space_factor * step) or not side:
      yield f'{name}={side} must be a multiple of {unit}'
  most = 1 + (size.frames - 1) // codec.time_factor
  if size.keyframes > most:
    yield f'num_keyframes={size.keyframes}: {size.frames} frames have at most {most}'


def of_text(name: str, prompt, embeds, width: int):
  """Of prompts, or of what a text encoder of this width has read of them."""
  if prompt is not None and embeds is not None:
    yield f'{name} and {name}_embeds; give one of them'
  if prompt is not None and not isinstance(prompt, str):
    listed = isinstance(prompt, Sequence) and all(isinstance(one, str) for one in prompt)
    if not listed or not prompt:
      yield f'{name} is {prompt!r}; give a string, or a list of them'
  if embeds is not None:
    if not isinstance(embeds, (tuple, list)) or len(embeds) != 2:
      yield f'{name}_embeds is a {type(embeds).__name__}; give (embeddings [b m e], bool [b m])'
    text, valid = map(shape, embeds)
    if len(text) != 3 or text[2] != width or valid != text[:2]:
      told = f'here they must be (b, m, {width}) and (b, m)'
      yield f'{name}_embeds are {text} and {valid}; {told}'


def of_references(prompt, given: Given):
  """Each reference that is given is named, and no other."""
  kinds = ['image'] * len(given.ref_images)
  kinds += ['video'] * (given.ref_video is not None) + ['audio'] * (given.ref_audio is not None)
  for one in [prompt] if isinstance(prompt, str) else prompt or ():
    try:
      captions.check_references(one, kinds)
    except captions.CaptionError as error:
      yield f'prompt: {error}'


def of_given(given: Given, size: Size, codecs: AV, silent: bool):
  """Of media: what goes together, and with what is made.

  Args:
    silent: the model makes no sound.
  """
  yield from of_containers(given)
  shown = given.video is not None or given.ref_video is not None or len(given.ref_images)
  if not size.frames and (shown or given.stills(size)):
    yield 'num_frames=0 is a sound alone; leave out pictures and clips'
  if size.frames == 1 and given.image is not None and given.last_image is not None:
    yield 'num_frames=1, and image and last_image are two frames; leave out one'
  for name, of in (('mask_video', 'video'), ('mask_audio', 'audio')):
    if getattr(given, name) is not None and getattr(given, of) is None:
      yield f'{name} without {of}; give what it lies over'
  if given.video is not None and given.stills(size):
    yield 'video, and image, last_image or mid_images too; give one or the other'
  for at in given.mid_images:
    if not isinstance(at, (int, np.integer)) or not 0 < at < size.frames - 1:
      yield f'mid_images[{at}] must be a frame between 0 and {size.frames - 1}, as an int'
  for name in ('audio', 'ref_audio'):
    if getattr(given, name) is not None and not size.samples:
      yield without_sound(name, silent)
  if given.clean.video and size.keyframes:
    yield 'video without mask_video, and num_keyframes; a clip that stays has none to make'
  if given.clean.video and (given.clean.audio or not size.samples):
    yield 'video without mask_video, and no sound to make; give a mask, or leave video out'
  if given.clean.audio and not size.frames:
    yield 'audio without mask_audio, and num_frames=0; nothing would be made'
  yield from of_pixels(given, size, codecs.video)
  yield from of_sounds(given, size, codecs.audio)


def of_containers(given: Given):
  if not isinstance(given.mid_images, Mapping):
    yield f'mid_images is a {type(given.mid_images).__name__}; give {{frame: picture}}'
  if not isinstance(given.ref_images, (tuple, list)) and np.ndim(given.ref_images) != 4:
    yield f'ref_images is a {type(given.ref_images).__name__}; give a list of pictures'


def of_pixels(given: Given, size: Size, codec):
  """Of shapes and kinds of pictures, frames and their masks."""
  sides, large = (size.height, size.width), segments.keyframe_sides(size)
  stills = [('image', given.image), ('last_image', given.last_image)]
  stills += [(f'mid_images[{at}]', x) for at, x in given.mid_images.items()]
  images = [(f'ref_images[{i}]', x) for i, x in enumerate(given.ref_images)]
  clips = [('video', given.video), ('ref_video', given.ref_video)]
  for name, x, like in (
    *((name, x, (*large, 3)) for name, x in stills),
    ('video', given.video, (size.frames, *large, 3)),
    ('mask_video', given.mask_video, (size.frames, *sides)),
    *((name, x, (*sides, 3)) for name, x in images),
  ):
    if x is not None and shape(x) != like:
      yield f'{name} is {shape(x)}; here it must be {like}'
  for name, x in (*stills, *images, *clips):
    if x is not None:
      yield from of_uint8(name, x)
  if (x := given.ref_video) is not None:
    step = codec.time_factor
    if shape(x)[1:] != (*sides, 3) or not len(x) or (len(x) - 1) % step:
      like = f'(1 + n * {step}, {sides[0]}, {sides[1]}, 3)'
      yield f'ref_video is {shape(x)}; here it must be {like}'
  if (x := given.mask_video) is not None and len(np.unique(np.asarray(x) == 0)) == 1:
    yield 'mask_video is the same everywhere; it is not 0 where video changes, and 0 where it stays'


def of_uint8(name: str, x):
  if (kind := np.asarray(x).dtype) != np.uint8:
    yield f'{name} is {kind}; pixels are uint8, from 0 to 255'


def of_sounds(given: Given, size: Size, codec):
  if given.audio is not None:
    yield from of_sound('audio', given.audio, codec, size.samples)
  if (x := given.ref_audio) is not None:
    yield from of_sound('ref_audio', x, codec)
    if not codec.latent_length(len(x)):
      yield f'ref_audio has {len(x)} samples, which are less than one latent; give a longer one'
  if (mask := given.mask_audio) is not None:
    if shape(mask) != (size.samples,):
      yield f'mask_audio is {shape(mask)}; here it must be {(size.samples,)}'
    if np.count_nonzero(np.diff(np.asarray(mask) == 0)) != 1:
      yield 'mask_audio must be 0 over a beginning or an end of the sound, and only there'


def of_sound(name: str, x, codec, samples: int = 0):
  """Args: samples: of its clip."""
  kind, found, channels = np.asarray(x).dtype, shape(x), codec.audio_channels
  if len(found) != 2 or not np.issubdtype(kind, np.floating):
    yield f'{name} is {kind} {found}; sound is float [n channels] in [-1, 1]'
  if found[1] != channels:
    yield f'{name} is {found}; its channels must be {channels}, as the codec has'
  if not np.isfinite(x).all():
    yield f'{name} has samples that are no finite number'
  if samples - found[0] > SLACK * codec.sample_rate:
    lasts = f'lasts {found[0] / codec.sample_rate:g} s'
    yield f'{name} {lasts}, and the clip {samples / codec.sample_rate:g} s; give a longer one'


def of_frames(name: str, x):
  if len(shape(x)) != 4 or shape(x)[3] != 3:
    yield f'{name} is {shape(x)}; frames are [T H W 3]'
  yield from of_uint8(name, x)


def of_extension(samples: int, audio, size: Size, codec, silent: bool):
  """Of a clip that goes on, and its sound, which is of so many samples."""
  if size.frames < 2:
    yield f'num_frames={size.frames} of a clip that goes on; give more'
  if audio is not None and not size.samples:
    yield without_sound('audio', silent)
  if audio is not None:
    yield from of_sound('audio', audio, codec, samples)


def of_low(latents, keyframes, at: Sequence[int], size: Size, codec, silent: bool):
  """Of what a Refiner makes larger.

  Args:
    at: which frames the keyframes are; (): they are spread evenly.
  """
  if not silent:
    yield 'this model makes sound, so it is no Refiner; load the folder of one'
  channels, large = codec.channels, (size.height, size.width)
  for name, x in (('video_latents', latents), ('keyframe_latents', keyframes)):
    if x is not None and (len(shape(x)) != 5 or shape(x)[4] != channels or not all(shape(x))):
      yield f'{name} are {shape(x)}; they must be (b, t, h, w, {channels})'
  rows, count = shape(latents)[:2]
  frames = 1 + (count - 1) * codec.time_factor
  if (size.frames == 1) != (frames == 1) or (frames > 1 and (size.frames - 1) % (frames - 1)):
    like = f'1 + n * {frames - 1}' if frames > 1 else '1'
    yield f'num_frames={size.frames} must be {like}, by those of the clip'
  for name, side, of in zip(('height', 'width'), large, shape(latents)[2:4]):
    if side < of * codec.space_factor:
      yield f'{name}={side} is less than that of the clip, {of * codec.space_factor}'
  if keyframes is None:
    if len(at):
      yield 'keyframes_at without keyframe_latents; give these, too'
    return
  sides = tuple(side // codec.space_factor for side in large)
  if shape(keyframes)[2:4] != sides or len(keyframes) != rows or shape(keyframes)[1] > count:
    like = f'({rows}, k, {sides[0]}, {sides[1]}, {channels}), with k at most {count}'
    yield f'keyframe_latents are {shape(keyframes)}; here they must be {like}'
  if len(at) not in (0, shape(keyframes)[1]):
    yield f'keyframes_at has {len(at)} frames; keyframe_latents are of {shape(keyframes)[1]}'
  if any(not 0 <= frame < frames for frame in at):
    yield f'keyframes_at={tuple(at)} must be frames of the clip, 0 to {frames - 1}'
  stride = (size.frames - 1) // max(frames - 1, 1)
  if len({-(-frame * stride // codec.time_factor) for frame in at}) < len(at):
    yield f'keyframes_at={tuple(at)}: two of them are under one latent; give one of these'


def without_sound(name: str, silent: bool) -> str:
  if silent:
    return f'{name}, and the model makes no sound; leave it out'
  return f'{name}, and sound=False; leave out one of them'


def of_output(kind: str):
  if kind not in OUTPUTS:
    yield f'output_type={kind!r}; it is {" or ".join(map(repr, OUTPUTS))}'


def shape(x) -> tuple[int, ...]:
  return tuple(np.shape(x))
