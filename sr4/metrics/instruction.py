"""Did the clip show what the prompt asked for: the colour and the shape of its one object."""

from collections.abc import Mapping

import numpy as np

from sr4.metrics import foreground

REACH = 2.6  # Root-mean-square radii from the middle to the side of a portrait.
SIZE = 31  # Points along a side of a portrait.
SCALES = np.linspace(0.8, 1.25, 13)  # Tried around the size that the second moments say.
BLURS = (0.05, 0.15, 0.25, 0.4)  # Root-mean-square radii; a codec and the averaging both blur.


def attributes(
  frames: np.ndarray, colors: Mapping[str, tuple], shapes: Mapping[str, np.ndarray]
) -> tuple[str | None, str | None]:
  """(colour, shape) of the object in uint8 [t h w 3]; None and None where there is no object.

  Args:
    frames: one object before a plain background.
    colors: names to RGB.
    shapes: the `gallery` of the shapes to tell apart.
  """
  x = foreground.difference(frames)
  inside = foreground.objects(x)
  if not inside.any():
    return None, None
  return color(x, inside, frames, colors), shape(x, inside, shapes)


def color(x, inside, frames, colors) -> str:
  """The name that most of the object's pixels vote for, each as loudly as it stands out.

  A pixel p at an edge, or blurred, is a mixture of the background b and the object's colour c:
  p - b = a (c - b).  It votes for the c that explains it best with any a in 0..1.
  """
  pixels, background = x[inside], frames.astype(np.float32)[inside][0] - x[inside][0]
  rays = np.array(list(colors.values()), np.float32) - background  # [k 3]
  amount = np.clip(pixels @ rays.T / (rays**2).sum(-1), 0, 1)  # [p k]
  left = ((pixels[:, None] - amount[..., None] * rays) ** 2).sum(-1)
  votes = np.bincount(left.argmin(-1), (pixels**2).sum(-1), len(rays))
  return list(colors)[votes.argmax()]


def shape(x, inside, shapes) -> str:
  """The shape of which some view correlates best with the portrait of the object."""
  seen = _unit(portrait(np.linalg.norm(x, axis=-1) * inside))
  return max(shapes, key=lambda name: (shapes[name] @ seen).max())


def portrait(cover: np.ndarray) -> np.ndarray:
  """One picture [SIZE SIZE] of what moves through [t h w]: the mean, centred and of unit size.

  The object lies differently on the pixels of each frame: the mean shows more than one frame.
  """
  centre, size = foreground.centres(cover), radius(cover)
  grid = np.linspace(-REACH, REACH, SIZE)
  views = [
    _sample(frame, y + size * grid, x + size * grid)
    for frame, (x, y) in zip(cover, centre)
    if np.isfinite(x)
  ]
  return np.mean(views, axis=0)


def radius(cover: np.ndarray) -> float:
  """Root-mean-square distance from the centre of mass, in pixels; the median over frames."""
  (x, y), (h, w) = foreground.centres(cover).T[:, :, None, None], cover.shape[1:]
  square = (np.arange(w) + 0.5 - x) ** 2 + (np.arange(h)[:, None] + 0.5 - y) ** 2
  with np.errstate(invalid='ignore'):
    return float(np.sqrt(np.nanmedian((cover * square).sum((1, 2)) / cover.sum((1, 2)))))


def gallery(templates: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Portraits of each shape at all scales and blurs, each of length 1: name -> [k SIZE * SIZE].

  templates: names to pictures, float [n n] in 0..1, of any size, the shape anywhere in it.
  """
  grid = np.linspace(-REACH, REACH, SIZE)
  blurs = [np.exp(-((grid[:, None] - grid) ** 2) / (2 * b * b)) for b in BLURS]
  blurs = [blur / blur.sum(1, keepdims=True) for blur in blurs]
  views = {}
  for name, picture in templates.items():
    (x, y), size = foreground.centres(picture[None])[0], radius(picture[None])
    sharp = [_sample(picture, y + s * size * grid, x + s * size * grid) for s in SCALES]
    views[name] = np.stack([_unit(blur @ view @ blur.T) for view in sharp for blur in blurs])
  return views


def _unit(view):
  """Flat, without its mean, of length 1: the product of two is their correlation."""
  view = view.ravel() - view.mean()
  return view / max(np.linalg.norm(view), 1e-9)


def _sample(picture, y, x):
  """[h w] between its pixels (bilinear), at rows y and columns x in pixels; 0 outside."""
  return _between(picture.shape[0], y) @ picture @ _between(picture.shape[1], x).T


def _between(count, at):
  """Weights [len(at) count] of linear interpolation; pixel i has its centre at i + 1/2."""
  return np.maximum(0, 1 - np.abs(at[:, None] - 0.5 - np.arange(count)))
