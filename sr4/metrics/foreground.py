"""What stands out from a plain background: the one object of a clip, and where it is.

Written for clips that a model made through a lossy codec: edges are soft, the background is noisy,
and there may be no object at all.
"""

import numpy as np

LEAST = 48.0  # Nearer to the background's colour it is noise; from black to white it is 442.
HALF = 0.5  # Of the object's own distance: where its edge is, between full and empty pixels.


def difference(frames: np.ndarray) -> np.ndarray:
  """uint8 [t h w 3] -> float32, each pixel less the background, the clip's median colour."""
  x = frames.astype(np.float32)
  return x - np.median(x.reshape(-1, 3), axis=0)


def largest_blob(mask: np.ndarray) -> np.ndarray:
  """The connected part of bool [h w] with the most pixels (corners connect); all False if none."""
  best, rest = np.zeros_like(mask), mask.copy()
  while rest.sum() > best.sum():
    blob = np.zeros_like(mask)
    blob[np.unravel_index(np.argmax(rest), mask.shape)] = True
    size = 0
    while blob.sum() > size:
      size = blob.sum()
      blob = _grown(blob) & rest
    rest &= ~blob
    best = blob if size > best.sum() else best
  return best


def _grown(mask: np.ndarray) -> np.ndarray:
  """Each pixel and its eight neighbours."""
  padded = np.pad(mask, 1)
  rows = padded[:-2] | padded[1:-1] | padded[2:]
  return rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]


def objects(x: np.ndarray) -> np.ndarray:
  """Where the object of each frame is, with its soft edge: bool [t h w], from `difference`."""
  distance = np.linalg.norm(x, axis=-1)
  inside = np.zeros(distance.shape, bool)
  for i, d in enumerate(distance):
    bright = d > max(LEAST, HALF * np.quantile(d, 0.99))
    inside[i] = _grown(largest_blob(bright))
  return inside


def track(frames: np.ndarray) -> np.ndarray:
  """The object's centre of mass: float64 [t 2], (x, y) in pixels, NaN in frames without it."""
  x = difference(frames)
  return centres(np.linalg.norm(x, axis=-1) * objects(x))


def centres(weight: np.ndarray) -> np.ndarray:
  """Centres of mass of [t h w]: float64 [t 2], (x, y) of pixel centres, NaN for an empty frame."""
  total = weight.sum((1, 2), dtype=np.float64)
  h, w = weight.shape[1:]
  with np.errstate(invalid='ignore'):
    x = (weight.sum(1) @ (np.arange(w) + 0.5)) / total
    y = (weight.sum(2) @ (np.arange(h) + 0.5)) / total
  return np.stack([x, y], axis=-1)
