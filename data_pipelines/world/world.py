"""SR4-World: a sample is a pure function of (config, seed, index)."""

import dataclasses
import operator

import numpy as np

from data_pipelines.world import captions as captions_lib
from data_pipelines.world import config as config_lib
from data_pipelines.world import picture
from data_pipelines.world import scene as scene_lib
from data_pipelines.world import sound
from data_pipelines.world import voice

EDITS = ('remove', 'add', 'recolor')


@dataclasses.dataclass(frozen=True, eq=False)
class Truth:
  """What is really in a sample; an object's id is its place in `objects`."""

  objects: tuple[scene_lib.Object, ...]  # color, shape, radius, size, shot, exact path.
  tracks: np.ndarray  # float32 [objects, t, 2], centre (x / width, y / height); NaN off screen.
  contacts: tuple[scene_lib.Contact, ...]  # time (s), kind, objects, wall, speed; by time.
  vowels: tuple[voice.Vowel, ...]  # symbol, start and end (s), pitch (Hz), loudness, sung.
  mouth: np.ndarray  # float32 [t], opening in 0..1; 0 when there is no face.
  cuts: tuple[float, ...]  # Seconds.
  words: tuple[str, ...]  # Shown, by shot.
  music: scene_lib.Music | None
  scene: scene_lib.Scene
  times: np.ndarray  # [t] seconds of the frames.
  size: tuple[int, int]  # height, width

  def masks(self) -> np.ndarray:
    """Where each object is seen: bool [objects, t, h, w]. Drawn at each call."""
    return picture.covers(self.scene, self.times, *self.size) > 0.5


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
  """One clip with its sound, its words and its truth."""

  frames: np.ndarray  # uint8 [t, h, w, 3]; frame i shows the time i / fps.
  samples: np.ndarray  # float32 [n, channels] in [-1, 1].
  captions: dict[str, str]  # 'short', 'long', 'structured'.
  truth: Truth


class World:
  """`World(config, seed)[index]` for any index >= 0; the same whenever and wherever it is asked."""

  def __init__(self, config: config_lib.Config, seed: int = 0):
    if not 0 <= seed < 2**64:
      raise ValueError(f'seed is {seed}; it must be in [0, 2**64): give a non-negative number.')
    self.config = config
    self.seed = operator.index(seed)

  def __getitem__(self, index: int) -> Sample:
    index = _checked(index)
    return self._sample(scene_lib.build(self.config, self.seed, index), index)

  def reference(self, index: int, object: int) -> tuple[np.ndarray, np.ndarray]:
    """One object of sample `index` alone: how it looks, uint8 [h, w, 3], and how it rings, float32
    [n, channels] for one second from the middle."""
    c = self.config
    things = scene_lib.build(c, self.seed, _checked(index)).objects
    if not 0 <= object < len(things):
      raise ValueError(
        f'object is {object}; sample {index} has {len(things)}: give 0 .. {len(things) - 1}.'
      )
    thing = things[object]
    ring = sound.ring(thing.shape, thing.color, c.sample_rate)
    return picture.portrait(thing, c.height, c.width), ring[:, None] * sound.pan(0.5, c.channels)

  def edit(self, index: int, kind: str) -> tuple[Sample, Sample, np.ndarray, str]:
    """(source, target, mask bool [t, h, w], instruction): outside the mask the frames are the same.

    To 'remove' or 'add' an object without moving the others, it passes through them in both.
    """
    if kind not in EDITS:
      raise ValueError(f'kind is {kind!r}; choose one of {EDITS}.')
    c, index = self.config, _checked(index)
    scene = scene_lib.build(c, self.seed, index)
    rng = scene_lib.stream(self.seed, index, 'edit')
    which = int(rng.integers(len(scene.objects)))
    thing = scene.objects[which]
    if kind == 'recolor':
      color = _other_color(rng, scene, thing)
      source, target = scene, scene.recolored(which, color)
      instruction = f'make the {thing.name} {color}'
    else:
      source = scene_lib.build(c, self.seed, index, ghost=which)
      target = source.without(which)
      instruction = f'remove the {thing.name}'
    mask = picture.covers(source, self._times(), c.height, c.width)[which] > 0
    if kind == 'add':
      source, target = target, source
      instruction = f'add {captions_lib.article(f"{thing.size} {thing.name}")}'
    return self._sample(source, index), self._sample(target, index), mask, instruction

  def _times(self):
    return np.arange(self.config.frames) / self.config.fps

  def _sample(self, scene: scene_lib.Scene, index: int) -> Sample:
    c, times = self.config, self._times()
    wind = scene_lib.stream(self.seed, index, 'ambience')
    wording = scene_lib.stream(self.seed, index, 'captions')
    return Sample(
      frames=picture.frames(scene, times, c.height, c.width),
      samples=sound.samples(scene, wind, c.sample_rate, c.channels, c.num_samples),
      captions=captions_lib.captions(scene, wording),
      truth=_truth(scene, times, (c.height, c.width)),
    )


def _truth(scene: scene_lib.Scene, times, size) -> Truth:
  tracks = np.full((len(scene.objects), len(times), 2), np.nan, np.float32)
  for number, _, seen in picture.shot_frames(scene, times):
    for i, thing in enumerate(scene.objects):
      if thing.shot == number:
        tracks[i, seen] = thing.at(times[seen]) / np.array(scene.box)
  return Truth(
    objects=scene.objects,
    tracks=tracks,
    contacts=scene.contacts,
    vowels=scene.vowels,
    mouth=voice.mouth(scene.vowels, times)[0].astype(np.float32),
    cuts=tuple(shot.start for shot in scene.shots[1:]),
    words=tuple(shot.word for shot in scene.shots if shot.word),
    music=scene.music,
    scene=scene,
    times=times,
    size=size,
  )


def _other_color(rng, scene, thing: scene_lib.Object) -> str:
  """A colour that no object beside it has, nor another of its shape, as long as there is one."""
  beside = {other.color for other in scene.objects if other.shot == thing.shot}
  alike = {other.color for other in scene.objects if other.shape == thing.shape}
  colors = list(scene_lib.COLORS)
  free = [color for color in colors if color not in beside | alike]
  free = free or [color for color in colors if color not in beside]
  return free[rng.integers(len(free))]


def _checked(index) -> int:
  index = operator.index(index)
  if not 0 <= index < 2**64:
    raise IndexError(f'index is {index}; it must be in [0, 2**64): give a non-negative number.')
  return index
