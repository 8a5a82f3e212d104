"""One value per modality, always in the same order; mapped with jax.tree.map."""

from typing import Any
from typing import NamedTuple


class AV(NamedTuple):
  """Video and audio, side by side: arrays, segments, configs, scales."""

  video: Any
  audio: Any
