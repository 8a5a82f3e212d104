"""The weights of a system's codecs and text encoder, from the files that its config names."""

import dataclasses

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
from sr4.models import system as system_lib
from sr4.models import video_vae
from sr4.models.text import encoder
from sr4.models.text import qwen_vl

RANDOM = 'random'


def load(system: system_lib.System) -> system_lib.System:
  """The system with weights in place of their shapes, laid out on the mesh that is set.

  Raises:
    ConfigError: a part has weights and its config names no file.
    ConvertError, FileError: of the file.
  """
  with sharding.default_mesh():
    like = system.placed()
    codecs = AV(video(like.codecs.video), audio(like.codecs.audio))
    return dataclasses.replace(system, codecs=codecs, text=text(like.text))


def text(like):
  if not isinstance(like, qwen_vl.QwenVL):
    return like
  c = like.config
  if c.weights == RANDOM:
    return drawn(lambda: encoder.qwen(c), like)
  if imported.there(c.weights):
    return imported.read(c.weights, 'text', like)
  source = files.source(given(c.weights, 'text.weights'))
  qwen.check(c, c.weights)
  return rules.load(like, qwen.table(c, source), source, qwen.unused(c))


def video(like):
  if not isinstance(like, video_vae.VideoVAE):
    return like
  c = like.config
  if c.weights == RANDOM:
    return drawn(lambda: codec.wan(c), like)
  if imported.there(c.weights):
    return imported.read(c.weights, 'video_codec', like)
  source = files.source(given(c.weights, 'video_codec.weights'))
  return rules.load(like, wan.table(c, source), source)


def audio(like):
  if not isinstance(like, audio_vae.AudioVAE):
    return like
  c, flat = like.config, tree.to_flat(like)
  whole = lambda path: path == RANDOM or imported.there(path)
  if c.weights != c.vocoder.weights and any(map(whole, (c.weights, c.vocoder.weights))):
    raise config_lib.ConfigError(
      f'config.audio_codec.weights={c.weights!r} and vocoder.weights={c.vocoder.weights!r}: '
      f"both are files, or both are '{RANDOM}' or one folder of `sr4 import`"
    )
  if c.weights == RANDOM:
    return drawn(lambda: codec.mmaudio(c), like)
  if imported.there(c.weights):
    return imported.read(c.weights, 'audio_codec', like)
  vae = files.source(given(c.weights, 'audio_codec.weights'))
  voice = files.source(given(c.vocoder.weights, 'audio_codec.vocoder.weights'))
  prefix = 'vocoder.'
  own = {name: x for name, x in flat.items() if not name.startswith(prefix)}
  heard = {name.removeprefix(prefix): x for name, x in flat.items() if name.startswith(prefix)}
  own = rules.load(own, mmaudio.vae(c), vae, mmaudio.UNUSED)
  heard = rules.load(heard, mmaudio.bigvgan(c.vocoder), voice, mmaudio.UNUSED)
  return tree.from_flat(like, own | {prefix + name: x for name, x in heard.items()})


def given(path: str, key: str) -> str:
  if not path:
    raise config_lib.ConfigError(
      f'config.{key} names no file; give a .safetensors file or the folder of one, or '
      f"'{RANDOM}' for weights that have learnt nothing"
    )
  return path


def drawn(make, like):
  """The same random weights on every host, laid out as `like`."""
  return jax.jit(make, out_shardings=jax.tree.map(lambda x: x.sharding, like))()
