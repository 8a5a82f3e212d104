"""Did the clip show what the prompt asked for: the colour and the shape of its one object."""
from collections.abc import Mapping

import numpy as np

from sr4.metrics import foreground

REACH = 2.6  # Root-mean-square radii from the middle to the side of a portrait.
SIZE = 31  # Points along a side of a portrait.
SCALES = np.linspace(0.8, 1.25, 13)  # Tried around the size that the second moments say.
BLURS = (0.0, 0.1, 0.2, 0.3)  # Root-mean-square radii; a codec and the averaging both blur.


def attributes(frames: np.ndarray, colors: Mapping[str, tuple],
               templates: Mapping[str, np.ndarray]) -> tuple[str | None, str | None]:
  """(colour, shape) of the object in uint8 [t h w 3]; None and None where there is no object.

  Args:
    frames: one object before a plain background.
    colors: names to RGB.
    templates: names to pictures of each shape, float [n n] in 0..1, of any size and scale.
  """
  x = foreground.difference(frames)
  inside = foreground.objects(x)
  if not inside.any():
    return None, None
  return color(x, inside, frames, colors), shape(x, inside, templates)


def color(x, inside, frames, colors) -> str:
  """The name that most of the object's pixels vote for, each as loudly as it stands out.

  A pixel p at an edge, or blurred, is a mixture of the background b and the object's colour c:
  p - b = a (c - b).  It votes for the c that explains it best with any a in 0..1.
  """
  pixels, background = x[inside], frames.astype(np.float32)[inside][0] - x[inside][0]
  rays = np.array(list(colors.values()), np.float32) - background  # [k 3]
  amount = np.clip(pixels @ rays.T / (rays**2).sum(-1), 0, 1)  # [p k]
  left = ((pixels[:, None] - amount[..., None] * rays)**2).sum(-1)
  votes = np.bincount(left.argmin(-1), (pixels**2).sum(-1), len(rays))
  return list(colors)[votes.argmax()]


def shape(x, inside, templates) -> str:
  """The template most like the portrait of the object."""
  cover = np.linalg.norm(x, axis=-1) * inside
  seen = portrait(cover)
  scores = {name: likeness(seen, template) for name, template in templates.items()}
  return max(scores, key=scores.get)


def portrait(cover: np.ndarray) -> np.ndarray:
  """One picture [SIZE SIZE] of what moves through [t h w]: the mean, centred and of unit size.

  The object lies differently on the pixels of each frame, so that the mean shows more than one frame.
  """
  centre, size = foreground.centres(cover), radius(cover)
  grid = np.linspace(-REACH, REACH, SIZE)
  views = [_sample(frame, y + size * grid, x + size * grid)
           for frame, (x, y) in zip(cover, centre) if np.isfinite(x)]
  return np.mean(views, axis=0)


def radius(cover: np.ndarray) -> float:
  """Root-mean-square distance from the centre of mass, in pixels; the median over frames."""
  (x, y), (h, w) = foreground.centres(cover).T[:, :, None, None], cover.shape[1:]
  square = (np.arange(w) + 0.5 - x)**2 + (np.arange(h)[:, None] + 0.5 - y)**2
  with np.errstate(invalid='ignore'):
    return float(np.sqrt(np.nanmedian((cover * square).sum((1, 2)) / cover.sum((1, 2)))))


def likeness(seen: np.ndarray, template: np.ndarray) -> float:
  """The best correlation of a portrait with a template, over small changes of scale and blur."""
  own = portrait_of(template)
  return max(float((_unit(seen) * own).sum((1, 2)).max()) for own in own)
