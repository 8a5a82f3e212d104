"""SR4-World as records of every kind that a stage of the training reads.

images     the first picture of a sample             sounds     what is heard in it
clips      pictures and sound                        edits      a clip edited, and where
image_ref  one object is named only as @image_1, a portrait of it
audio_ref  one object rings as @audio_1 does
video_ref  the clip before an edit is @video_1, the caption tells what to change
"""

from collections.abc import Callable

from data_pipelines import record as record_lib
from data_pipelines.world import captions as captions_lib
from data_pipelines.world import scene
from data_pipelines.world import world as world_lib

TAGGED = ('long', 'structured')


def make(world: world_lib.World, index: int, kind: str) -> record_lib.Record:
  """The record of a sample; `kind` is one of KINDS."""
  sample, fields = KINDS[kind](world, index)
  c = world.config
  whole = dict(
    id=f'{kind}-{world.seed}-{index}',
    frames=sample.frames,
    fps=c.fps,
    samples=sample.samples,
    sample_rate=c.sample_rate,
    captions=sample.captions,
  )
  return record_lib.Record(**whole | fields)


def clip(world, index):
  return world[index], {}


def image(world, index):
  sample = world[index]
  return sample, dict(frames=sample.frames[:1], samples=None)


def sound(world, index):
  """Of a sample in which something is heard: the first that is, far from other indices."""
  while not (sample := world[index]).samples.any():
    index += 1 << 32
  return sample, dict(frames=None)


def edit(world, index):
  """What the mask hides is to become what the instruction says."""
  _, target, mask, instruction = world.edit(index, _edit_of(index))
  return target, dict(mask=mask, captions=instructed(target.captions, instruction))


def image_ref(world, index):
  sample = world[index]
  thing = sample.truth.objects[0]
  picture, _ = world.reference(index, 0)
  shown = f'@image_1 shows {captions_lib.article(thing.name)}.'
  short = renamed(sample.captions['short'], thing, '@image_1')
  reference = record_lib.Reference('image', picture[None], None)
  return sample, dict(captions=told(sample.captions, short, shown), references=(reference,))


def audio_ref(world, index):
  sample = world[index]
  thing = sample.truth.objects[0]
  _, ring = world.reference(index, 0)
  heard = f'The {thing.name} sounds like @audio_1.'
  short = sample.captions['short'] + f', the {thing.name} sounds like @audio_1'
  reference = record_lib.Reference('audio', None, ring)
  return sample, dict(captions=told(sample.captions, short, heard), references=(reference,))


def video_ref(world, index):
  source, target, _, instruction = world.edit(index, _edit_of(index))
  captions = instructed(target.captions, f'@video_1, but {instruction}')
  return target, dict(
    captions=captions, references=(record_lib.Reference('video', source.frames, None),)
  )


KINDS: dict[str, Callable] = dict(
  images=image,
  clips=clip,
  sounds=sound,
  edits=edit,
  image_ref=image_ref,
  audio_ref=audio_ref,
  video_ref=video_ref,
)


def renamed(caption: str, thing: scene.Object, name: str) -> str:
  """The caption with an object called by another name."""
  return caption.replace(captions_lib.article(thing.name), name, 1)


def told(captions: dict[str, str], short: str, sentence: str) -> dict[str, str]:
  """Captions with one sentence more at the beginning of the longer ones."""
  return {'short': short} | {name: f'{sentence} {captions[name]}' for name in TAGGED}


def instructed(captions: dict[str, str], instruction: str) -> dict[str, str]:
  sentence = f'{instruction[0].upper()}{instruction[1:]}.'
  return told(captions, f'{instruction}: {captions["short"]}', sentence)


def _edit_of(index: int) -> str:
  return world_lib.EDITS[index % len(world_lib.EDITS)]
