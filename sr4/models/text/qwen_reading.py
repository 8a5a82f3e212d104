"""Prompts to what Qwen3-VL computes on: tokens, patches, and where each stands.

    <template's beginning>@image_1: <picture>
    @video_1: <0.2 seconds><picture><1.2 seconds><picture>
    <the prompt><template's end>

A picture is <|vision_start|>, as many <|image_pad|> as it has tokens, <|vision_end|>.  Words of a
prompt never become one of these, whatever they say.
"""

import dataclasses
import functools
import math
import os
from typing import Any

import jax
import numpy as np

from sr4.core.batch import Size
from sr4.core.prompt import Prompt
from sr4.core.prompt import PromptError
from sr4.models import kinds

TEMPLATE = (
  '<|im_start|>system\nDescribe the video and its sound: the subjects, their looks and motion, the '
  'place, the light, the camera, and all that is heard.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n'
  '<|im_start|>assistant\n'
)
SPECIAL = ('<|vision_start|>', '<|image_pad|>', '<|video_pad|>', '<|vision_end|>')
UNIT = 128  # the number of tokens is a multiple of it
LEAST = 64  # tokens of a picture: a smaller one is enlarged
FEWEST = 4  # frames looked at, of a clip that has so many


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pictures:
  """q to a row; a picture of fewer patches, or none, is padded."""

  patches: Any  # uint8 [b q p c]
  grid: Any  # int32 [b q 2]: rows and columns of patches


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Read:
  ids: Any  # int32 [b m]
  valid: Any  # bool [b m]: the template too
  positions: Any  # int32 [b 3 m]: time, row, column (M-RoPE)
  source: Any  # int32 [b m]: which token of the row's pictures, q after q; -1: a word
  pictures: Pictures | None  # None: the size has no slots for any


def shapes(c, rows: int, size: Size) -> tuple[Read, jax.ShapeDtypeStruct]:
  """What `read` gives for so many prompts."""
  array = lambda *shape, dtype=np.int32: jax.ShapeDtypeStruct((rows, *shape), dtype)
  count = slots(c, size)
  length = -(-(c.tokens + count * c.picture_tokens) // UNIT) * UNIT
  v, valid = c.vision, array(length, dtype=bool)
  pictures = None
  if count:
    patches = count, c.picture_tokens * v.merge**2, 3 * v.frames * v.patch**2
    pictures = Pictures(array(*patches, dtype=np.uint8), array(count, 2))
  return Read(array(length), valid, array(3, length), array(length), pictures), valid


def slots(c, size: Size) -> int:
  clip = size.reference_frames
  return size.reference_images + (len(looked_at(c, clip, size.fps)) if clip else 0)


def read(c, prompts: list[Prompt], size: Size) -> tuple[Read, np.ndarray]:
  """(what `QwenVL.encode` takes, bool [b m]: the tokens that tell of the prompt).

  Raises:
    PromptError: a prompt has more pictures than the size has slots, or the tokenizer is none.
  """
  like, told = shapes(c, len(prompts), size)
  out, told = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), (like, told))
  out.source[:] = -1
  for row, prompt in enumerate(prompts):
    pictures, runs = spelt(c, prompt, slots(c, size))
    taken = slice(0, sum(len(run.ids) for run in runs))
    out.ids[row, taken] = np.concatenate([run.ids for run in runs])
    out.positions[row, :, taken] = positions(runs)
    out.source[row, taken] = sources(runs, c.picture_tokens)
    out.valid[row, taken] = True
    told[row, len(runs[0].ids) : taken.stop] = True
    for i, picture in enumerate(pictures):
      patches, grid = cut(c.vision, picture)
      out.pictures.patches[row, i, : len(patches)] = patches
      out.pictures.grid[row, i] = grid
  return out, told


@dataclasses.dataclass(frozen=True)
class Run:
  """Tokens in a row: words, or those of a picture with its rows and columns."""

  ids: list[int]
  grid: tuple[int, int] | None = None


def spelt(c, prompt: Prompt, most: int) -> tuple[list[np.ndarray], list[Run]]:
  """(pictures, uint8 [2 h w 3] of the size that is looked at, and all tokens)."""
  words = lexicon(tokenizer_of(c), c.template)
  if words.size > c.vocabulary:
    raise PromptError(
      f'the tokenizer has {words.size} tokens, and config.text.vocabulary={c.vocabulary}: they are '
      'not of one model; give the tokenizer.json beside the weights'
    )
  start, image, video, end = words.special
  shown = [(f'@image_{i}: ', '\n', image, np.stack([x, x])) for i, x in enumerate(prompt.images, 1)]
  if prompt.clip is not None:
    at = looked_at(c, len(prompt.clip), prompt.fps)
    for i, pair in enumerate(at):
      name = f'<{sum(pair) / 2 / prompt.fps:.1f} seconds>'
      name, rest = ('' if i else '@video_1: ') + name, '\n' if i == len(at) - 1 else ''
      shown.append((name, rest, video, prompt.clip[list(pair)]))
  if len(shown) > most:
    raise PromptError(
      f'{len(shown)} pictures are shown with {prompt.text[:40]!r}, frames of a clip two by two, '
      f'and there is room for {most}; raise reference_images and reference_frames of the size'
    )
  runs, pictures = [Run(words.before)], []
  for name, rest, pad, picture in shown:
    picture = resized(c, picture)
    unit = c.vision.patch * c.vision.merge
    grid = picture.shape[1] // unit, picture.shape[2] // unit
    runs += [Run(words(name) + [start]), Run([pad] * math.prod(grid), grid)]
    runs.append(Run([end] + words(rest)))
    pictures.append(picture)
  room = c.tokens - len(words.after) - sum(len(run.ids) for run in runs if run.grid is None)
  if room < 1:
    raise PromptError(
      f'config.text.tokens={c.tokens} has no room for a prompt beside its template and the names '
      f'of {len(pictures)} pictures; raise it by {1 - room} or more'
    )
  return pictures, [*runs, Run(words(prompt.text.strip())[:room]), Run(words.after)]


def positions(runs: list[Run]) -> np.ndarray:
  """int [3 m] of M-RoPE: words count on; a picture has one time, and its rows and columns.

  What follows a picture goes on from the longer of its sides.
  """
  found, at = [], 0
  for run in runs:
    if run.grid is None:
      found.append(np.tile(at + np.arange(len(run.ids)), (3, 1)))
      at += len(run.ids)
    else:
      found.append(at + np.indices((1, *run.grid)).reshape(3, -1))
      at += max(run.grid)
  return np.concatenate(found, 1)


def sources(runs: list[Run], most: int) -> np.ndarray:
  """int [m]: Read.source; picture q has the tokens q * most and on."""
  found, pictures = [], 0
  for run in runs:
    if run.grid is None:
      found.append(np.full(len(run.ids), -1))
    else:
      found.append(pictures * most + np.arange(len(run.ids)))
      pictures += 1
  return np.concatenate(found)


def looked_at(c, frames: int, fps: float) -> list[tuple[int, int]]:
  """Which frames of a clip are looked at, evenly, two to a picture."""
  count = min(max(int(frames / fps * c.clip_fps), FEWEST), frames)
  at = np.linspace(0, frames - 1, count).round().astype(int).tolist()
  at += at[-1:] * (len(at) % 2)
  return list(zip(at[::2], at[1::2]))


def resized(c, picture: np.ndarray) -> np.ndarray:
  """uint8 [2 h w 3] to sides that divide into tokens, as many as are allowed (Qwen's rule)."""
  from PIL import Image  # Beside the tokenizer in the extra: the byte encoder needs neither.

  sides = fit(*picture.shape[1:3], c.vision.patch * c.vision.merge, LEAST, c.picture_tokens)
  if sides == picture.shape[1:3]:
    return picture
  bicubic = lambda x: Image.fromarray(x).resize(sides[::-1], Image.Resampling.BICUBIC)
  return np.stack([np.asarray(bicubic(frame)) for frame in picture])


def fit(height: int, width: int, unit: int, least: int, most: int) -> tuple[int, int]:
  """Sides that are multiples of unit, of about the same aspect, with least..most units in all."""
  area, sides = height * width, [max(unit, round(x / unit) * unit) for x in (height, width)]
  least = min(least, most)
  if math.prod(sides) > most * unit**2:
    scale = math.sqrt(area / (most * unit**2))
    sides = [max(unit, math.floor(x / scale / unit) * unit) for x in (height, width)]
  elif math.prod(sides) < least * unit**2:
    scale = math.sqrt(least * unit**2 / area)
    sides = [math.ceil(x * scale / unit) * unit for x in (height, width)]
  # A long strip: the short side is one unit, whatever the long one.
  short, long = sorted(sides)
  if short * long > most * unit**2:
    sides = [min(x, most * unit**2 // short // unit * unit) for x in sides]
  return tuple(sides)


def cut(v, picture: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
  """uint8 [2 h w 3] -> ([p c], (rows, columns)): patches in blocks of merge x merge."""
  t, h, w, _ = picture.shape
  rows, columns = h // v.patch, w // v.patch
  split = picture.reshape(
    *(t, rows // v.merge, v.merge, v.patch, columns // v.merge, v.merge, v.patch, 3)
  )
  return split.transpose(1, 4, 2, 5, 7, 0, 3, 6).reshape(rows * columns, -1), (rows, columns)


class Lexicon:
  """Words to tokens."""

  def __init__(self, path: str, template: str):
    try:
      import tokenizers
    except ImportError as error:
      raise PromptError(
        "Qwen's encoder needs tokenizers and pillow: pip install 'sr4[text]'"
      ) from error
    if not os.path.isfile(path):
      raise PromptError(
        f'there is no tokenizer at {path}; give the tokenizer.json of the published files as '
        'config.text.tokenizer'
      )
    try:
      marked, self.plain = (tokenizers.Tokenizer.from_file(path) for _ in range(2))
    except Exception as error:  # What it raises has no class of its own.
      raise PromptError(f'{path} is no tokenizer.json ({error}); fetch it again') from error
    for words in (marked, self.plain):  # What a tokenizer last did is in its file, too.
      words.no_truncation()
      words.no_padding()
    self.size = marked.get_vocab_size()
    self.special = tuple(map(marked.token_to_id, SPECIAL))
    if None in self.special:
      missing = [name for name, id_ in zip(SPECIAL, self.special) if id_ is None]
      raise PromptError(f'{path} has no token {missing[0]}; give the tokenizer.json of a Qwen3-VL')
    self.plain.encode_special_tokens = True  # As text: a prompt is not the template.
    encode = lambda text: marked.encode(text, add_special_tokens=False).ids
    self.before, self.after = map(encode, template.split('{}'))

  def __call__(self, text: str) -> list[int]:
    return self.plain.encode(text, add_special_tokens=False).ids


def tokenizer_of(c) -> str:
  return c.tokenizer or kinds.beside(c.weights, 'tokenizer.json')


@functools.lru_cache(maxsize=8)
def lexicon(path: str, template: str) -> Lexicon:
  return Lexicon(path, template)
