"""What is given to the sampler in torch: checked, and as the contract has it; and pixels out."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses

import numpy as np
import torch

from data_pipelines import stills as stills_lib
from sr4.core.av import AV
from sr4.core.batch import Clips
from sr4.core.batch import Keyframes
from sr4.core.batch import Latents
from sr4.core.batch import References
from sr4.core.batch import Size
from sr4.flow import segments

BLACK = segments.BLACK


@dataclasses.dataclass(frozen=True, eq=False)
class Given:
  """The media of a call, by the names and in the shapes of SkyReelsV4Pipeline; None: not given.

  Pictures and frames are as large as keyframes, where there are any, and otherwise as the clip.
  """

  image: np.ndarray | None = None
  last_image: np.ndarray | None = None
  mid_images: Mapping[int, np.ndarray] = dataclasses.field(default_factory=dict)
  video: np.ndarray | None = None
  mask_video: np.ndarray | None = None
  audio: np.ndarray | None = None
  mask_audio: np.ndarray | None = None
  ref_images: Sequence[np.ndarray] = ()
  ref_video: np.ndarray | None = None
  ref_audio: np.ndarray | None = None

  @property
  def clean(self) -> AV:
    """Which modality is given whole."""
    whole = lambda x, mask: x is not None and mask is None
    return AV(whole(self.video, self.mask_video), whole(self.audio, self.mask_audio))

  def stills(self, size: Size) -> dict[int, np.ndarray]:
    """The pictures among the frames, by their places."""
    ends = {0: self.image, size.frames - 1: self.last_image}
    return {at: x for at, x in ends.items() if x is not None} | dict(self.mid_images)

  def check(self, size: Size, codec, patch):
    """ValueError for what does not go together, or with this video codec and patch."""
    if not size.frames and not size.samples:
      raise ValueError('num_frames=0 and no sound; give one of them, and `seconds` of sound alone')
    shown = self.video is not None or self.ref_video is not None or len(self.ref_images)
    if not size.frames and (shown or self.stills(size)):
      raise ValueError('num_frames=0 is a sound alone; leave out pictures and clips')
    if size.frames == 1 and self.image is not None and self.last_image is not None:
      raise ValueError('num_frames=1, and image and last_image are two frames; leave out one')
    if size.frames and (size.frames - 1) % codec.time_factor:
      raise ValueError(f'num_frames={size.frames} must be 1 + n * {codec.time_factor}, or 0')
    for name, side, step in (('height', size.height, patch[1]), ('width', size.width, patch[2])):
      if side % (unit := codec.space_factor * step):
        raise ValueError(f'{name}={side} must be a multiple of {unit}')
    for name, of in (('mask_video', 'video'), ('mask_audio', 'audio')):
      if getattr(self, name) is not None and getattr(self, of) is None:
        raise ValueError(f'{name} without {of}; give what it lies over')
    if self.video is not None and self.stills(size):
      raise ValueError('video, and image, last_image or mid_images too; give one or the other')
    for at in self.mid_images:
      if not isinstance(at, (int, np.integer)) or not 0 < at < size.frames - 1:
        last = size.frames - 1
        raise ValueError(f'mid_images[{at}] must be a frame between 0 and {last}, as an int')
    if self.audio is not None and not size.samples:
      raise ValueError('audio, and sound=False; leave out one of them')
    most = 1 + (size.frames - 1) // codec.time_factor
    if size.keyframes > most:
      raise ValueError(f'num_keyframes={size.keyframes}: {size.frames} frames have at most {most}')
    self._check_shapes(size, codec)

  def _check_shapes(self, size: Size, codec):
    sides, large = (size.height, size.width), segments.keyframe_sides(size)
    known = [('image', self.image), ('last_image', self.last_image)]
    known += [(f'mid_images[{at}]', x) for at, x in self.mid_images.items()]
    for name, x, shape in (
      *((name, x, (*large, 3)) for name, x in known),
      ('video', self.video, (size.frames, *large, 3)),
      ('mask_video', self.mask_video, (size.frames, *sides)),
      ('mask_audio', self.mask_audio, (size.samples,)),
      *((f'ref_images[{i}]', x, (*sides, 3)) for i, x in enumerate(self.ref_images)),
    ):
      if x is not None and np.shape(x) != shape:
        raise ValueError(f'{name} is {np.shape(x)}; here it must be {shape}')
    images = ((f'ref_images[{i}]', x) for i, x in enumerate(self.ref_images))
    for name, x in (*known, ('video', self.video), *images, ('ref_video', self.ref_video)):
      if x is not None:
        check_pixels(name, x)
    for name, x in (('audio', self.audio), ('ref_audio', self.ref_audio)):
      if x is not None:
        check_sound(name, x)
    if self.mask_audio is not None:
      heard = np.asarray(self.mask_audio) == 0
      if np.count_nonzero(np.diff(heard)) != 1:
        raise ValueError(
          'mask_audio must be 0 over a beginning or an end of the sound, and only there'
        )
    if (x := self.ref_video) is not None:
      step = codec.time_factor
      if np.shape(x)[1:] != (*sides, 3) or (len(x) - 1) % step:
        raise ValueError(
          f'ref_video is {np.shape(x)}; here it must be (1 + n * {step}, {sides[0]}, {sides[1]}, 3)'
        )

  def clips(self, size: Size, at, text, text_valid, latents: Latents = Latents()) -> Clips:
    """One row of the contract: media of numpy as torch tensors [1 ...], for the rows of the prompt.

    Args:
      at: int [k], which frames keyframes are; latents: a Refiner's, of torch.
    """
    one = lambda x: None if x is None else torch.from_numpy(np.array(x))[None]
    large, known = self._known(size)
    keyframes = frames = None
    if large is not None:
      frames = stills_lib.shrunk(large, size.keyframe_scale)
    if at is not None:
      shown = large[np.array(at)] if size.keyframes and large is not None else None
      keyframes = Keyframes(one(shown), at)
    samples = None if self.audio is None else fitted(self.audio, size.samples)
    images = np.stack(self.ref_images) if self.ref_images else None
    clip, voice = one(self.ref_video), one(self.ref_audio)
    return Clips(
      one(frames),
      one(samples),
      one(known),
      text,
      text_valid,
      present=AV(*[torch.ones(len(text), dtype=torch.bool)] * 2),
      keyframes=keyframes,
      references=References(one(images), None, clip, None, voice, None),
      latents=latents,
      heard=None if self.mask_audio is None else one(np.asarray(self.mask_audio) == 0),
    )

  def _known(self, size: Size):
    """(frames uint8 [T H*scale W*scale 3], known bool [T H W]), or None: nothing is, or all."""
    sides = size.frames, size.height, size.width
    if self.video is not None:
      whole = self.mask_video is None
      return np.asarray(self.video), None if whole else np.asarray(self.mask_video) == 0
    if not (stills := self.stills(size)):
      return None, None
    frames = np.zeros((size.frames, *segments.keyframe_sides(size), 3), np.uint8)
    known = np.zeros(sides, bool)
    for at, x in stills.items():
      frames[at], known[at] = x, True
    return frames, known


def check_pixels(name: str, x):
  if np.asarray(x).dtype != np.uint8:
    raise ValueError(f'{name} is {np.asarray(x).dtype}; pixels are uint8, from 0 to 255')


def check_sound(name: str, x):
  x = np.asarray(x)
  if x.ndim != 2 or not np.issubdtype(x.dtype, np.floating):
    raise ValueError(f'{name} is {x.dtype} {x.shape}; sound is float [n channels] in [-1, 1]')


def fitted(audio: np.ndarray, samples: int) -> np.ndarray:
  """float32 [n channels], cut or with silence behind it."""
  x = np.asarray(audio, np.float32)[:samples]
  return np.pad(x, ((0, samples - len(x)), (0, 0)))


def pixels(frames):
  """uint8 -> fp32 in [-1, 1]."""
  return frames.float() / 127.5 - 1


def to_uint8(frames) -> np.ndarray:
  """[-1, 1] -> uint8, rounded and clipped."""
  return ((frames.cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
