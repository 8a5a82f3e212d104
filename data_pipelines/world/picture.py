"""Draws a scene. Every edge is a signed distance in pixels, so that it is smooth at any size."""

import math

import numpy as np

from data_pipelines.world import font
from data_pipelines.world import scene as scene_lib
from data_pipelines.world import voice

_CELL = 0.035  # Dot of the alphabet, in shorter sides.
_INK = (190, 190, 190)
_EYE = (30, 24, 24)
_LIPS = (110, 20, 30)


def _distance(shape: str, x, y):
  """Signed distance to the edge of a shape of radius 1, negative inside; y points down."""
  x, y = np.abs(x), (y if shape == 'triangle' else np.abs(y))
  if shape == 'circle':
    return np.sqrt(x * x + y * y) - 1
  if shape == 'ring':
    return np.abs(np.sqrt(x * x + y * y) - 0.7) - 0.3
  if shape == 'square':
    return np.maximum(x, y) - scene_lib.REACH['square']
  if shape == 'triangle':
    return np.maximum(y - 1, (2 * x - y - 1) / math.sqrt(5))
  if shape == 'cross':
    return np.minimum(np.maximum(x - 1, y - 0.34), np.maximum(x - 0.34, y - 1))
  if shape == 'diamond':
    return (x + y - 1) / math.sqrt(2)
  raise ValueError(f'shape is {shape!r}; it must be one of {scene_lib.SHAPES}.')


def _windows(centers, reach, height, width):
  """Where to draw around `centers` [t, 2] px: index arrays (t, y, x) of one window a frame, and
  the offsets (y, x) of its pixel centres from the centre; each broadcasts to [t, k, k]."""
  places = [np.arange(len(centers))[:, None, None]]
  offsets = []
  for axis, length in ((1, height), (0, width)):
    size = min(2 * math.ceil(reach) + 3, length)
    first = np.floor(centers[:, axis]).astype(int) - size // 2
    pixels = np.clip(first, 0, length - size)[:, None] + np.arange(size)
    inner = (slice(None), slice(None), None) if axis else (slice(None), None, slice(None))
    places.append(pixels[inner])
    offset = pixels + 0.5 - centers[:, axis, None]
    offsets.append(offset.astype(np.float32)[inner])
  return tuple(places), offsets


def _cover(distance):
  return np.clip(0.5 - distance, 0, 1)


def _paint(canvas, places, cover, color):
  """Blends `color` over the uint8 canvas [t, h, w, 3] where `cover` [t, k, k] says."""
  under = canvas[places].astype(np.float32)
  mixed = under + cover[..., None] * (np.array(color, np.float32) - under)
  canvas[places] = (mixed + 0.5).astype(np.uint8)


def _object_cover(thing: scene_lib.Object, times, short, height, width):
  places, (y, x) = _windows(thing.at(times) * short, thing.radius * short, height, width)
  scale = np.float32(thing.radius * short)
  return places, _cover(scale * _distance(thing.shape, x / scale, y / scale))


def _ground(names, height, width):
  """Background [h, w, 3] uint8: from the first colour at the top to the second at the bottom."""
  top, bottom = (np.array(scene_lib.GROUNDS[name], float) for name in names)
  down = (np.arange(height)[:, None] + 0.5) / height
  rows = (top + down * (bottom - top) + 0.5).astype(np.uint8)
  return np.broadcast_to(rows[:, None], (height, width, 3))


def _write(canvas, word: str, at: str):
  """Puts a word on the middle of the top or bottom edge, in whole pixels so that it stays sharp."""
  height, width = canvas.shape[1:3]
  bits = font.bitmap(word)
  cell = max(1, min(round(_CELL * min(height, width)), (width - 2) // bits.shape[1]))
  bits = bits.repeat(cell, 0).repeat(cell, 1)[:height, :width]
  top = cell if at == 'top' else height - bits.shape[0] - cell
  top, left = max(top, 0), (width - bits.shape[1]) // 2
  area = canvas[:, top : top + bits.shape[0], left : left + bits.shape[1]]
  area[:, bits[: area.shape[1]]] = _INK


def _face(canvas, talker: scene_lib.Talker, times, short):
  height, width = canvas.shape[1:3]
  radius = talker.radius * short
  opening, wide = voice.mouth(talker.vowels, times)
  half_y = (radius * (0.03 + 0.33 * opening)).astype(np.float32)[:, None, None]
  half_x = (radius * 0.5 * wide).astype(np.float32)[:, None, None]

  def disc(dx, dy, size, color):
    center = (np.array([talker.x, talker.y]) + talker.radius * np.array([dx, dy])) * short
    places, (y, x) = _windows(np.tile(center, (len(times), 1)), size * radius, height, width)
    _paint(canvas, places, _cover(np.sqrt(x * x + y * y) - size * radius), color)

  disc(0, 0, 1, talker.skin)
  disc(-0.38, -0.3, 0.13, _EYE)
  disc(0.38, -0.3, 0.13, _EYE)
  center = (np.array([talker.x, talker.y + 0.4 * talker.radius])) * short
  places, (y, x) = _windows(np.tile(center, (len(times), 1)), 0.5 * radius, height, width)
  ellipse = (np.sqrt((x / half_x) ** 2 + (y / half_y) ** 2) - 1) * np.minimum(half_x, half_y)
  _paint(canvas, places, _cover(ellipse), _LIPS)


def shot_frames(scene: scene_lib.Scene, times):
  """For each shot: (number, shot, slice of the frames that show it)."""
  for number, shot in enumerate(scene.shots):
    last = number == len(scene.shots) - 1
    first, stop = np.searchsorted(times, (shot.start, np.inf if last else shot.end))
    yield number, shot, slice(int(first), int(stop))


def frames(scene: scene_lib.Scene, times, height: int, width: int) -> np.ndarray:
  """The picture at ascending `times` [t] in seconds: uint8 [t, h, w, 3]."""
  short = min(height, width)
  video = np.empty((len(times), height, width, 3), np.uint8)
  for number, shot, seen in shot_frames(scene, times):
    canvas, now = video[seen], times[seen]
    canvas[:] = _ground(shot.ground, height, width)
    if shot.word:
      _write(canvas, shot.word, shot.word_at)
    if shot.talker:
      _face(canvas, shot.talker, now, short)
    for thing in scene.objects:
      if thing.shot == number:
        places, cover = _object_cover(thing, now, short, height, width)
        _paint(canvas, places, cover, scene_lib.COLORS[thing.color])
  return video


def covers(scene: scene_lib.Scene, times, height: int, width: int) -> np.ndarray:
  """How much of each pixel shows each object: float32 [objects, t, h, w] in 0..1.

  Objects further on in the list are in front.
  """
  short = min(height, width)
  shown = np.zeros((len(scene.objects), len(times), height, width), np.float32)
  for number, _, seen in shot_frames(scene, times):
    free = np.ones(shown[0, seen].shape, np.float32)
    for i in reversed(range(len(scene.objects))):
      if scene.objects[i].shot == number:
        places, cover = _object_cover(scene.objects[i], times[seen], short, height, width)
        shown[i, seen][places] = cover * free[places]
        free[places] *= 1 - cover
  return shown


def portrait(thing: scene_lib.Object, height: int, width: int) -> np.ndarray:
  """One object alone, large, in the middle of a plain dark picture: uint8 [h, w, 3]."""
  short = min(height, width)
  canvas = np.empty((1, height, width, 3), np.uint8)
  canvas[:] = _ground(('dark', 'dark'), height, width)
  scale = 0.35 * short
  places, (y, x) = _windows(np.array([[width / 2, height / 2]]), scale, height, width)
  cover = _cover(scale * _distance(thing.shape, x / scale, y / scale))
  _paint(canvas, places, cover, scene_lib.COLORS[thing.color])
  return canvas[0]
