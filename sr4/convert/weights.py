"""The weights of a system's codecs and text encoder, from the files that its config names."""

import dataclasses
import os

import jax

from sr4.convert import files
from sr4.convert import imported
from sr4.convert import mmaudio
from sr4.convert import qwen
from sr4.convert import rules
from sr4.convert import wan
from sr4.core import config as config_lib
from sr4.core import sharding
from sr4.core import tree
from sr4.core.av import AV
from sr4.models import audio_vae
from sr4.models import codec
from sr4.models import kinds
from sr4.models import system as system_lib
from sr4.models import video_vae
from sr4.models.text import encoder
from sr4.models.text import qwen_vl

RANDOM = 'random'


def load(system: system_lib.System, media: bool = True) -> system_lib.System:
  """The system with weights in place of their shapes, laid out on the mesh that is set.

  Args:
    media: whether there will be any, or prompts.  Where latents and embeddings are all that is
      read, the video codec alone is loaded, for what it makes of black frames.
  Raises:
    ConfigError: a part has weights and its config names no file.
    ConvertError, FileError: of the file.
  """
  with sharding.default_mesh():
    like = system.placed()
    others = like.codecs.audio, like.text
    heard, read = (audio(others[0]), text(others[1])) if media else map(tree.without_leaves, others)
    return dataclasses.replace(system, codecs=AV(video(like.codecs.video), heard), text=read)


def text(like):
  if not isinstance(like, qwen_vl.QwenVL):
    return like
  c = like.config
  if c.weights == RANDOM or imported.there(c.weights):
    return whole(like, 'text', encoder.qwen)
  source = files.source(given(c.weights, 'text.weights'))
  qwen.check(c, c.weights)
  return rules.load(like, qwen.table(c, source), source, qwen.unused(c))


def video(like):
  if not isinstance(like, video_vae.VideoVAE):
    return like
  c = like.config
  if c.weights == RANDOM or imported.there(c.weights):
    return whole(like, 'video_codec', codec.wan)
  source = files.source(given(c.weights, 'video_codec.weights'))
  check_page(c.weights, wan.page(c), 'AutoencoderKLWan', 'video_codec')
  return rules.load(like, wan.table(c, source), source)


def audio(like):
  if not isinstance(like, audio_vae.AudioVAE):
    return like
  c, flat = like.config, tree.to_flat(like)
  one = [path for path in (c.weights, c.vocoder.weights) if path == RANDOM or imported.there(path)]
  if one and c.weights != c.vocoder.weights:
    raise config_lib.ConfigError(
      f'config.audio_codec.weights={c.weights!r} and vocoder.weights={c.vocoder.weights!r}: '
      f"both are files, or both are '{RANDOM}' or one folder of `sr4 import`"
    )
  if one:
    return whole(like, 'audio_codec', codec.mmaudio)
  vae = files.source(given(c.weights, 'audio_codec.weights'))
  voice = files.source(given(c.vocoder.weights, 'audio_codec.vocoder.weights'))
  pages = mmaudio.pages(c)
  check_page(c.weights, pages[0], 'MMAudioVAE', 'audio_codec')
  check_page(c.vocoder.weights, pages[1], 'MMAudioVocoder', 'audio_codec.vocoder')
  prefix = 'vocoder.'
  own = {name: x for name, x in flat.items() if not name.startswith(prefix)}
  heard = {name.removeprefix(prefix): x for name, x in flat.items() if name.startswith(prefix)}
  own = rules.load(own, mmaudio.vae(c), vae, mmaudio.UNUSED)
  heard = rules.load(heard, mmaudio.bigvgan(c.vocoder), voice, mmaudio.UNUSED)
  return tree.from_flat(like, own | {prefix + name: x for name, x in heard.items()})


def check_page(path: str, page: dict, kind: str, section: str):
  """ConvertError where a config.json of diffusers beside the weights tells of another model."""
  place = kinds.beside(path, 'config.json')
  if not os.path.isfile(place) or '_class_name' not in (theirs := files.page(place)):
    return
  ours = page | {'_class_name': kind}
  wrong = [
    f'{name} is {theirs[name]} there and {ours[name]} here'
    for name in ours.keys() & theirs.keys()
    if theirs[name] != ours[name]
  ]
  if wrong:
    raise rules.ConvertError(
      f'{place} tells of another model than config.{section}: {rules.some(sorted(wrong))}; give '
      "the model's own file, or the fields that it was made with"
    )


def given(path: str, key: str) -> str:
  if not path:
    raise config_lib.ConfigError(
      f'config.{key} names no file; give a .safetensors file or the folder of one, or '
      f"'{RANDOM}' for weights that have learnt nothing"
    )
  return path


def whole(like, section: str, make):
  """A part from a folder of `sr4 import`, or drawn: the same random weights on every host.

  Args:
    make: config -> the part.
  """
  if like.config.weights != RANDOM:
    return imported.read(like.config.weights, section, like)
  layout = jax.tree.map(lambda x: x.sharding, like)
  return jax.jit(lambda: make(like.config), out_shardings=layout)()
