"""Says in words what happens in a scene; every word comes from the ground truth."""

import collections
import math

import numpy as np

from data_pipelines.world import scene as scene_lib
from data_pipelines.world import sound

TAGS = ('text', 'sfx', 'dialogue', 'singing', 'bgm')

# Forms for one and for many.
_BOUNCES = (
  ('bounces', 'bounce'),
  ('bounces around', 'bounce around'),
  ('moves and bounces', 'move and bounce'),
)
_MOVES = (('moves', 'move'), ('glides', 'glide'), ('drifts', 'drift'))
_TURNS = (
  'to the right',
  'down and to the right',
  'down',
  'down and to the left',
  'to the left',
  'up and to the left',
  'up',
  'up and to the right',
)
_TIMES = {1: 'once', 2: 'twice'}


def captions(scene: scene_lib.Scene, rng: np.random.Generator) -> dict[str, str]:
  """{'short', 'long', 'structured'}; `rng` chooses among wordings."""
  verbs = [(_BOUNCES[i], _MOVES[i]) for i in rng.integers(3, size=len(scene.shots))]
  short = ', then '.join(
    _short(scene, number, *verbs[number]) for number in range(len(scene.shots))
  )
  visual = ' '.join(_visual(scene, number) for number in range(len(scene.shots)))
  heard = _heard(scene)
  return {
    'short': short,
    'long': ' '.join([visual] + _spoken_of(heard)),
    'structured': ' '.join([visual] + [f'<{tag}>{heard[tag]}</{tag}>' for tag in TAGS]),
  }


def article(words: str) -> str:
  """'a red circle', 'an orange circle'."""
  return f'{"an" if words[0] in "aeiou" else "a"} {words}'


def listing(items) -> str:
  """'x', 'x and y', 'x, y and z'."""
  *most, last = items
  return f'{", ".join(most)} and {last}' if most else last


def _members(scene, number):
  return [(i, thing) for i, thing in enumerate(scene.objects) if thing.shot == number]


def _short(scene, number, bounces, moves) -> str:
  things = _members(scene, number)
  talker = scene.shots[number].talker
  face = f'a face {_does(talker)}' if talker else ''
  if not things:
    return face or 'an empty room'
  touched = {i for contact in scene.contacts for i in contact.objects}
  verb = (bounces if any(i in touched for i, _ in things) else moves)[len(things) > 1]
  subject = listing([article(thing.name) for _, thing in things])
  return f'{subject} {verb}' + (f' while {face}' if face else '')


def _does(talker: scene_lib.Talker) -> str:
  if not talker.vowels:  # The shot was too short for one.
    return 'keeps silent'
  return 'sings' if talker.sings else 'talks'


def _visual(scene, number) -> str:
  """What one shot shows, in sentences."""
  shot = scene.shots[number]
  top, bottom = shot.ground
  ground = (
    f'{article(top)} background'
    if top == bottom
    else (f'a background that goes from {top} at the top to {bottom} at the bottom')
  )
  start = f'Shot {number + 1}, ' if len(scene.shots) > 1 else ''
  sentences = [f'{start}{"on" if start else "On"} {ground}.']
  for i, thing in _members(scene, number):
    sentences.append(_journey(scene, i, thing))
  if shot.talker:
    where = _place(shot.talker.x, shot.talker.y, scene.box)
    sentences.append(f'A face {where} {_does(shot.talker)}.')
  if shot.word:
    sentences.append(f'The word {shot.word} stands at the {shot.word_at}.')
  return ' '.join(sentences)


def _journey(scene, i, thing: scene_lib.Object) -> str:
  (x, y), (dx, dy) = thing.path[0], thing.path[1] - thing.path[0]
  speed = math.hypot(dx, dy) / (thing.knots[1] - thing.knots[0])
  pace = 'slowly ' if speed < 0.6 else 'quickly ' if speed > 0.85 else ''
  turn = _TURNS[round(math.atan2(dy, dx) / (math.pi / 4)) % 8]
  name = article(f'{thing.size} {thing.name}')
  starts = f'{name[0].upper()}{name[1:]} starts {_place(x, y, scene.box)}'
  moves = f'moves {pace}{turn}' if speed > 0 else 'stands still'
  return f'{starts}, {moves} and {_bounces(scene, i)}.'


def _bounces(scene, i) -> str:
  mine = [contact for contact in scene.contacts if i in contact.objects]
  if not mine:
    return 'touches nothing'
  count = _TIMES.get(len(mine), f'{len(mine)} times')
  return f'bounces {count}, off {listing(dict.fromkeys(_touched(scene, i, c) for c in mine))}'


def _touched(scene, i, contact: scene_lib.Contact) -> str:
  if contact.kind == 'wall':
    return f'the {contact.wall}'
  if contact.kind == 'face':
    return 'the face'
  (other,) = (j for j in contact.objects if j != i)
  return f'the {scene.objects[other].name}'


def _place(x, y, box) -> str:
  across = ('left', '', 'right')[min(int(3 * x / box[0]), 2)]
  down = ('upper', '', 'lower')[min(int(3 * y / box[1]), 2)]
  if not across and not down:
    return 'in the middle'
  if not across:
    return 'at the top' if down == 'upper' else 'at the bottom'
  return f'at the {down} {across}'.replace('  ', ' ')


def _heard(scene) -> dict[str, str]:
  """What belongs inside each of the five tags."""
  rings = collections.defaultdict(list)
  for contact in scene.contacts:
    for i in contact.objects:
      rings[i].append(contact.time)
  effects = [
    f'{article(_pitch_word(thing) + sound.TIMBRE_WORDS[thing.color])} chime of the {thing.name} '
    f'{_when(rings[i])} seconds'
    for i, thing in enumerate(scene.objects)
    if i in rings
  ]
  if scene.ambience:
    effects.append('wind')
  music = scene.music
  return {
    'text': ', '.join(shot.word for shot in scene.shots if shot.word),
    'sfx': '; '.join(effects),
    'dialogue': ' '.join(v.symbol for v in scene.vowels if not v.sung),
    'singing': ' '.join(v.symbol for v in scene.vowels if v.sung),
    'bgm': f'a quiet broken chord in {music.root} {music.mode} at {music.beats} beats a minute'
    if music
    else '',
  }


def _when(times) -> str:
  """Few times each, many as a span, so that a caption stays a caption."""
  words = [f'{time:.1f}' for time in times]
  if len(words) <= 4:
    return f'at {listing(dict.fromkeys(words))}'
  return f'{len(words)} times from {words[0]} to {words[-1]}'


def _pitch_word(thing: scene_lib.Object) -> str:
  hertz = sound.PITCHES[thing.shape]
  return 'low ' if hertz < 300 else 'high ' if hertz > 500 else ''


def _spoken_of(heard) -> list[str]:
  """The same as sentences, for the long caption; the word shown is already in the visual part."""
  forms = {
    'sfx': 'Heard: {}.',
    'dialogue': 'The voice says {}.',
    'singing': 'The voice sings {}.',
    'bgm': 'In the background plays {}.',
  }
  return [form.format(heard[tag]) for tag, form in forms.items() if heard[tag]]
