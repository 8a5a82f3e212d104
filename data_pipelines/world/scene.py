"""What happens in a sample, before anything is drawn or heard: the script is the ground truth.

Lengths are in shorter sides of the picture, x points right and y down, times are seconds from the
start of the sample.
"""

import dataclasses
import itertools

import numpy as np

from data_pipelines.world import config as config_lib
from data_pipelines.world import physics
from data_pipelines.world import voice

COLORS = {
  'red': (230, 40, 40),
  'green': (40, 190, 60),
  'blue': (50, 90, 240),
  'yellow': (240, 220, 50),
  'magenta': (225, 50, 210),
  'cyan': (60, 210, 225),
  'orange': (250, 140, 30),
  'white': (245, 245, 245),
}
SHAPES = ('circle', 'square', 'triangle', 'cross', 'ring', 'diamond')
# Half the width of a shape in its radius; the others reach 1. A smaller square looks as large as
# the circle, and its corners stay nearly inside the circle by which objects hit each other.
REACH = {'square': 0.86}

GROUNDS = {
  'dark': (16, 16, 20),
  'navy': (20, 28, 66),
  'brown': (62, 42, 28),
  'forest': (18, 52, 38),
  'plum': (54, 24, 58),
  'slate': (58, 64, 74),
}
SKINS = ((224, 172, 138), (196, 134, 98), (140, 92, 62))
WORDS = (
  'GO',
  'HI',
  'UP',
  'SKY',
  'JAZZ',
  'STOP',
  'OPEN',
  'MOON',
  'TAXI',
  'WAVE',
  'BIKE',
  'FLUX',
  'QUIZ',
  'CAB4',
  'R2D2',
  '1984',
  '360',
  '57',
)
ROOTS = ('C', 'D', 'E', 'F', 'G', 'A')

_SHOT_SECONDS = (0.7, 1.6)
_SHORTEST_SHOT = 0.4  # A cut is not made when less than this is left.
# One independent random stream for each thing that is drawn: changing the probability of one
# leaves the others as they were (objects make room for a face).
STREAMS = (
  'sample',
  'names',
  'bodies',
  'ground',
  'face',
  'word',
  'voice',
  'music',
  'ambience',
  'captions',
  'edit',
)


def stream(seed: int, index: int, name: str, shot: int = 0) -> np.random.Generator:
  """The random numbers of one purpose, a pure function of the arguments."""
  # As uint64: a list that holds a large number would turn into floats, and seeds into each other.
  key = np.array([seed, index], np.uint64)
  counter = np.array([0, 0, shot, STREAMS.index(name)], np.uint64)
  return np.random.Generator(np.random.Philox(key=key, counter=counter))


@dataclasses.dataclass(frozen=True)
class Contact:
  """An object touches a wall, another object or the talker's face, and rings."""

  time: float  # Seconds.
  kind: str  # 'wall', 'object' or 'face'.
  objects: tuple[int, ...]  # One object, or the two that hit each other; all of them ring.
  wall: str  # 'left', 'right', 'top' or 'bottom' at a wall, else ''.
  speed: float  # Impact speed along the normal, shorter sides a second.


@dataclasses.dataclass(frozen=True, eq=False)
class Object:
  """One thing that moves; it lives in one shot. Its id is its place in Scene.objects."""

  color: str
  shape: str
  radius: float  # Half its width (REACH of it for a square), in shorter sides.
  shot: int
  knots: np.ndarray  # [k] seconds; it moves in straight lines between them.
  path: np.ndarray  # [k, 2] shorter sides.

  @property
  def name(self) -> str:
    return f'{self.color} {self.shape}'

  @property
  def size(self) -> str:
    return 'small' if self.radius < 0.125 else 'large' if self.radius > 0.15 else 'medium-sized'

  def at(self, times) -> np.ndarray:
    """Positions [..., 2] at times [...], in shorter sides."""
    return np.stack([np.interp(times, self.knots, self.path[:, i]) for i in (0, 1)], axis=-1)


@dataclasses.dataclass(frozen=True)
class Talker:
  """A face that stands still and speaks or sings; objects bounce off it."""

  x: float
  y: float
  radius: float
  skin: tuple[int, int, int]
  sings: bool
  vowels: tuple[voice.Vowel, ...]


@dataclasses.dataclass(frozen=True)
class Shot:
  start: float
  end: float
  ground: tuple[str, str]  # Names in GROUNDS at the top and at the bottom.
  word: str  # '' for none.
  word_at: str  # 'top' or 'bottom'.
  talker: Talker | None


@dataclasses.dataclass(frozen=True)
class Music:
  root: str  # One of ROOTS.
  mode: str  # 'major' or 'minor'.
  beats: int  # A minute; one note each half beat.


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
  box: tuple[float, float]  # Width and height in shorter sides.
  shots: tuple[Shot, ...]
  objects: tuple[Object, ...]
  contacts: tuple[Contact, ...]  # By time.
  music: Music | None
  ambience: bool

  @property
  def vowels(self) -> tuple[voice.Vowel, ...]:
    return tuple(v for shot in self.shots if shot.talker for v in shot.talker.vowels)

  def without(self, gone: int) -> 'Scene':
    """The scene in which one object never was and all others go their ways as before."""
    keep = [c for c in self.contacts if gone not in c.objects]
    moved = [dataclasses.replace(c, objects=tuple(i - (i > gone) for i in c.objects)) for c in keep]
    objects = self.objects[:gone] + self.objects[gone + 1 :]
    return dataclasses.replace(self, objects=objects, contacts=tuple(moved))

  def recolored(self, which: int, color: str) -> 'Scene':
    objects = list(self.objects)
    objects[which] = dataclasses.replace(objects[which], color=color)
    return dataclasses.replace(self, objects=tuple(objects))


def build(c: config_lib.Config, seed: int, index: int, ghost: int | None = None) -> Scene:
  """The scene of (seed, index). Object `ghost`, if given, passes through the other objects."""
  rng = stream(seed, index, 'sample')
  cut, has_music, has_ambience = rng.random(3) < (c.cuts, c.music, c.ambience)
  times = _cut_times(rng, c.seconds) if cut else [0.0, c.seconds]
  names = _names(stream(seed, index, 'names'))
  shots, objects, contacts = [], [], []
  for number, (start, end) in enumerate(itertools.pairwise(times)):
    shot = _shot(c, seed, index, number, start, end)
    things, hits = _objects(c, seed, index, number, shot, names, ghost, len(objects))
    shots.append(shot)
    contacts += hits
    objects += things
  music = _music(stream(seed, index, 'music')) if has_music else None
  return Scene(c.box, tuple(shots), tuple(objects), tuple(contacts), music, bool(has_ambience))


def _names(rng) -> list[tuple[str, str]]:
  """Every (colour, shape) once; any eight in a row, and so any one shot, differ in colour."""
  colors, first = rng.permutation(list(COLORS)), rng.integers(len(SHAPES), size=len(COLORS))
  return [
    (str(color), SHAPES[(start + turn) % len(SHAPES)])
    for turn in range(len(SHAPES))
    for color, start in zip(colors, first)
  ]


def _cut_times(rng, seconds) -> list[float]:
  times = [0.0]
  while True:
    cut = times[-1] + rng.uniform(*_SHOT_SECONDS)
    if cut > seconds - _SHORTEST_SHOT:
      return times + [seconds]
    times.append(cut)


def _shot(c, seed, index, number, start, end) -> Shot:
  rng = stream(seed, index, 'ground', number)
  names = list(GROUNDS)
  top, bottom = rng.integers(len(names), size=2)
  plain = rng.random() < 0.5
  ground = names[top], names[top if plain else bottom]
  if c.background == 'dark':
    ground = 'dark', 'dark'
  rng = stream(seed, index, 'word', number)
  at, word = ('top', 'bottom')[rng.integers(2)], WORDS[rng.integers(len(WORDS))]
  word = word if rng.random() < c.text else ''
  rng = stream(seed, index, 'face', number)
  shows, sings = rng.random(2) < (c.talker, c.singing)
  talker = None
  if shows:
    vowels = voice.speak(stream(seed, index, 'voice', number), start, end, bool(sings))
    talker = _talker(rng, c.box, bool(sings), vowels, at if word else '')
  return Shot(start, end, ground, word, at, talker)


def _talker(rng, box, sings, vowels, word_at) -> Talker:
  """A face in a corner: there no object is caught between it and a wall, nor a word hidden."""
  radius = rng.uniform(0.18, 0.22)
  near = radius + 0.02
  right, low = rng.random(2) < 0.5
  if word_at:
    low = word_at == 'top'
  x, y = box[0] - near if right else near, box[1] - near if low else near
  return Talker(x, y, radius, SKINS[rng.integers(len(SKINS))], sings, vowels)


def _objects(c, seed, index, number, shot: Shot, names, ghost, first_id):
  """The objects of one shot and their contacts; ids count from `first_id`."""
  rng = stream(seed, index, 'bodies', number)
  count = rng.integers(c.objects[0], c.objects[1] + 1)
  names = [names[(first_id + i) % len(names)] for i in range(count)]
  reach = np.array([REACH.get(shape, 1.0) for _, shape in names])
  position, radius = _place(rng, c, reach, shot.talker)
  angle, speed = rng.uniform(0, 2 * np.pi, count), rng.uniform(*c.speeds, count)
  velocity = np.stack([np.cos(angle), np.sin(angle)], axis=-1) * speed[:, None]
  solid = np.ones((len(radius), len(radius)), bool)
  if ghost is not None and first_id <= ghost < first_id + count:
    one = ghost - first_id
    solid[one, :count] = solid[:count, one] = False
  still = len(radius) - count  # The face, when there is one, comes last.
  bodies = physics.Bodies(
    position=position,
    velocity=np.concatenate([velocity, np.zeros((still, 2))]),
    radius=radius,
    reach=np.concatenate([reach, np.ones(still)]) * radius,
    mobility=np.concatenate([radius[:count] ** -2.0, np.zeros(still)]),
    solid=solid,
  )
  knots, paths, hits = physics.simulate(bodies, c.box, shot.end - shot.start)
  objects = [
    Object(color, shape, float(radius[i]), number, knots + shot.start, paths[:, i])
    for i, (color, shape) in enumerate(names)
  ]
  return objects, [_contact(hit, shot.start, count, first_id) for hit in hits]


def _contact(hit: physics.Hit, start, count, first_id) -> Contact:
  ids = tuple(int(first_id + body) for body in hit.bodies if body < count)
  kind = 'wall' if hit.wall else 'object' if len(ids) == 2 else 'face'
  return Contact(float(start + hit.time), kind, ids, hit.wall, hit.speed)


def _place(rng, c, reach, talker: Talker | None):
  """Positions [n, 2] and radii [n] that do not touch; the face is last."""
  count = len(reach)
  radius = rng.uniform(*c.sizes, count)
  fixed = np.array([[talker.x, talker.y]]) if talker else np.zeros((0, 2))
  fixed_radius = [talker.radius] if talker else []
  while True:
    for _ in range(30):
      edge = (radius * reach)[:, None] + 0.01
      spot = rng.uniform(size=(count, 2)) * (np.array(c.box) - 2 * edge) + edge
      position, radii = np.concatenate([spot, fixed]), np.concatenate([radius, fixed_radius])
      apart = np.linalg.norm(position[:, None] - position[None], axis=-1)
      np.fill_diagonal(apart, np.inf)
      if (apart > radii[:, None] + radii[None] + 0.01).all():
        return position, radii
    radius = radius * 0.95  # Too crowded: make everything a little smaller and try again.


def _music(rng) -> Music:
  root, mode = ROOTS[rng.integers(len(ROOTS))], ('major', 'minor')[rng.integers(2)]
  return Music(root, mode, int(rng.integers(8, 15)) * 10)
