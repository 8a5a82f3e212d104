"""The one contract between data and training: names, shapes and dtypes.

  Size       the static shape of a clip
  Clips      what the loader gives: pixels, samples, text, on the host, in numpy
  Batch      what the model trains on: latents, weights and the Condition
  Condition  everything the model is told besides the noisy latents; what sampling needs, no more
  Segment    a run of tokens of one grid; all that a branch sees is a list of them

Letters: b rows, T H W frames, k keyframes, n samples, t h w c video latent, l c audio latent, s
tokens (that is, patches), m text tokens, e text width.
"""

import dataclasses
from typing import Any

import jax

from sr4.core.av import AV

Array = Any  # numpy on the host, jax.Array on the mesh


@dataclasses.dataclass(frozen=True)
class Low:
  """The clip that a Refiner makes larger (section 4.5 of the report).

  Its frames are those of the large clip at 0, n, 2 n, ... to the last.
  """

  frames: int
  height: int
  width: int
  keyframes: int = 0  # how many of its frames are given as large as they are to become
  degrade: float = 1.0  # how much the copies suffer that a training makes; 0: they are only smaller


@dataclasses.dataclass(frozen=True)
class Size:
  """The static shape of a clip and of what comes with it.  0: there is none of that."""

  frames: int
  height: int
  width: int
  fps: float
  samples: int
  keyframes: int = 0  # how many frames are there once more, at a higher resolution
  keyframe_scale: int = 1  # how many times higher
  reference_images: int = 0  # pictures, each of the clip's height and width
  reference_frames: int = 0  # of one clip of that size and fps
  reference_samples: int = 0  # of one sound
  low: Low | None = None  # what a Refiner starts from


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Keyframes:
  """Chosen frames at a higher resolution (section 4.5 of the report)."""

  frames: Array | None  # uint8 [b k H*scale W*scale 3]; None where they are only to be made
  at: Array  # int32 [b k]: which frames of the clip they are, of the low one of a Refiner; -1: none


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class References:
  """What the prompt names (@image_1, @video_1, @audio_1), padded to the slots of the Size."""

  images: Array | None  # uint8 [b N H W 3]
  images_valid: Array | None  # bool [b N]
  frames: Array | None  # uint8 [b F H W 3]
  frames_valid: Array | None  # bool [b F]: a shorter clip is padded at its end
  samples: Array | None  # float32 [b n channels]
  samples_valid: Array | None  # bool [b n]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Latents:
  """Of the media of rows, normalised as codecs give them; None: the Size has none of that."""

  video: Array | None = None  # [b t h w c]
  audio: Array | None = None  # [b l c]
  images: Array | None = None  # [b N h w c] of References.images, each a clip of its own
  clip: Array | None = None  # [b t h w c] of References.frames
  sound: Array | None = None  # [b l c] of References.samples
  low: Array | None = None  # [b t h w c] of Clips.low
  keyframes: Array | None = None  # [b k h w c], each a clip of its own


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Clips:
  """Rows of media of one static shape.  A modality that no row has is None.

  Where `latents` were made ahead, their media are None: masks and what is valid alone are there.
  """

  frames: Array | None  # uint8 [b T H W 3]
  samples: Array | None  # float32 [b n channels] in [-1, 1]
  known: Array | None  # bool [b T H W] or [b T 1 1]: pixels given, not generated; None: none is
  text: Any  # float32 [b m e], or what the text encoder makes it of
  text_valid: Array  # bool [b m]
  present: AV  # bool [b] each: does this row have that modality?
  clean: AV | None = None  # bool [b] each: given whole (audio to video, video to audio)
  keyframes: Keyframes | None = None
  references: References | None = None
  latents: Latents = Latents()  # made ahead, in any float
  low: Array | None = None  # uint8 [b T h w 3], where the Size has it
  heard: Array | None = None  # bool [b n]: samples that are given when a clip is continued


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Segment:
  """A run of tokens of one grid: the clip, a reference before it, keyframes after it.

  Where `generated` is False the segment is context: it enters clean, as `known`, and nothing is
  predicted for it (Eq. 8-9).  Positions are (seconds, rows, columns) in the clip's own grid of
  patches for video, (seconds,) for audio; references lie at negative time.
  """

  known: Array | None  # I of Eq. 7, [b t h w c] or [b l c]: known latents, black elsewhere
  mask: Array | None  # M of Eq. 7, [b t h w 1]: 1 known, 0 to generate; None for audio
  positions: Array  # float32 [b s 3] or [b s 1]
  valid: Array  # bool [b s]: False is padding, seen by no one
  generated: bool = dataclasses.field(default=True, metadata={'static': True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Condition:
  segments: AV  # tuple[Segment, ...] each; None: the modality is not in this batch at all
  text: Array  # [b m e]
  text_valid: Array  # bool [b m]
  present: AV  # bool [b] each: may the other modality read it?
  sparsity: Array | None = None  # float32 [b]: sparse attention leaves out no more than this share


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
  latents: AV  # tuple of z_0, one for each generated segment
  weights: AV  # tuple of float32 loss weights [b t h w 1] or [b l 1]; 0: not to be learnt
  cond: Condition
  clean: AV | None = None  # bool [b] each: stays at t = 1 and is not learnt; None: none does
