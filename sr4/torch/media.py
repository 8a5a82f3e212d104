"""What is given to the sampler in torch, as the contract has it; and pixels out."""

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
    images = np.stack(self.ref_images) if len(self.ref_images) else None
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
