"""Which pixels of a clip are given: bool [T H W], or [T 1 1] where whole frames are.

Each function takes (random, size, time_factor): a numpy Generator, a core.batch.Size, and the
frames under a latent after the first, so that what is given fills whole latents where it can.
"""

import numpy as np

MOMENTS = 6  # The most timed frames of a request.


def first(random, size, time_factor):
  """Image to video."""
  return at_frames(size, [0])


def ends(random, size, time_factor):
  """Start and end frame."""
  return at_frames(size, [0, size.frames - 1])


def moments(random, size, time_factor):
  """Timed frames anywhere, 1 to 6 of them."""
  count = random.integers(1, min(MOMENTS, size.frames - 1) + 1)
  return at_frames(size, random.permutation(size.frames)[:count])


def prefix(random, size, time_factor):
  """The beginning, to be continued: whole latents, at least the first and not the last."""
  latents = (size.frames - 1) // time_factor
  return at_frames(size, range(1 + time_factor * int(random.integers(latents))))


def suffix(random, size, time_factor):
  """The end, to be led up to: whole latents, at least the last and not the first."""
  latents = (size.frames - 1) // time_factor
  return at_frames(size, range(1 + time_factor * int(random.integers(latents)), size.frames))


def at_frames(size, frames) -> np.ndarray:
  known = np.zeros(size.frames, bool)
  known[list(frames)] = True
  return known[:, None, None]


def around(random, size, time_factor):
  """All but one region that stands still: inpainting."""
  hidden = region(random, size, moving=False)
  return ~np.broadcast_to(hidden, (size.frames, size.height, size.width))


def around_moving(random, size, time_factor):
  """All but a region that moves, for a part of the time: editing."""
  hidden = region(random, size, moving=True)
  length = int(random.integers((size.frames + 1) // 2, size.frames + 1))
  start = int(random.integers(size.frames - length + 1))
  known = np.ones((size.frames, size.height, size.width), bool)
  known[start : start + length] = ~hidden[start : start + length]
  return known


def region(random, size, moving: bool) -> np.ndarray:
  """A box or an ellipse, a quarter to three quarters of each side: bool [T or 1, H, W]."""
  steps = np.linspace(0, 1, size.frames)[:, None] if moving else np.zeros((1, 1))
  sides = random.uniform(0.25, 0.75, 2)  # Of height, width.
  start, end = random.uniform(sides / 2, 1 - sides / 2, (2, 2))
  centres = start + steps * (end - start)
  y = (np.arange(size.height) + 0.5) / size.height - centres[:, :1]
  x = (np.arange(size.width) + 0.5) / size.width - centres[:, 1:]
  y, x = np.abs(2 * y / sides[0])[:, :, None], np.abs(2 * x / sides[1])[:, None, :]
  return (y * y + x * x <= 1) if random.random() < 0.5 else (y <= 1) & (x <= 1)
