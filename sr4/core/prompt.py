"""What a text encoder reads: words, and the pictures that they name."""

import dataclasses

import numpy as np

from sr4.core import errors


class PromptError(errors.UserError):
  """A prompt that an encoder cannot read, or an encoder that lacks what reading takes."""


@dataclasses.dataclass(frozen=True, eq=False)
class Prompt:
  text: str
  images: tuple[np.ndarray, ...] = ()  # uint8 [h w 3]: @image_1 and so on
  clip: np.ndarray | None = None  # uint8 [f h w 3]: @video_1
  fps: float = 16.0  # of the clip
