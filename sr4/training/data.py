"""The loader that a config asks for, fitted to its system and its mesh."""

from collections.abc import Mapping
import dataclasses

import jax
import jax.numpy as jnp

from data_pipelines import buckets
from data_pipelines import coded
from data_pipelines import collate
from data_pipelines import loader
from data_pipelines import records
from data_pipelines import tasks
from sr4.core import config as config_lib
from sr4.core import errors
from sr4.core import sharding
from sr4.core.batch import Latents
from sr4.models import system as system_lib


def make_loader(config, system: system_lib.System, seed: int, dropped=None, **changes):
  """The loader of config.data, for a system's codecs and encoder, and this host's part of the mesh.

  Args:
    dropped: file for the records that could not be used.
    changes: fields of loader.Config to change, and `cycle` of the schedule.
  """
  cycle = changes.pop('cycle', buckets.CYCLE)
  data = config_lib.build(loader.Config, config['data'], 'config.data')
  data, audio = dataclasses.replace(data, **changes), system.codecs.audio
  parts, of = sharding.parts()
  sizes = {name: system.size(**b.size()) for name, b in data.buckets.items()}
  return loader.Loader(
    data,
    sizes,
    system.text.read,
    audio.sample_rate,
    audio.audio_channels,
    system.codecs.video.time_factor,
    seed=seed,
    coded={name: fit(system, sizes[name], data) for name, b in data.buckets.items() if b.coded},
    parts=parts,
    of=of,
    dropped=dropped,
    cycle=cycle,
  )


def fit(system: system_lib.System, size, data: loader.Config) -> coded.Fit:
  """What latents must be that were made ahead for this size."""
  _, valid = system.text.shapes(1, size)
  read = tuple(name for name, share in dataclasses.asdict(data.captions).items() if share)
  shape = valid.shape[1], system.text.width
  return coded.Fit(system.made(), latents(system, size), shape, read)


def latents(system: system_lib.System, size) -> Latents:
  """Of shapes in bf16, without rows."""
  video, audio = system.codecs
  array = lambda shape: jax.ShapeDtypeStruct(tuple(shape), jnp.bfloat16)
  frames = lambda count, scale=1: video.latent_shape(count, size.height * scale, size.width * scale)
  sound = lambda samples: (audio.latent_length(samples), audio.channels)
  low = size.low
  keyframes = size.keyframes or (low.keyframes if low else 0)
  return Latents(
    video=array(frames(size.frames)) if size.frames else None,
    audio=array(sound(size.samples)) if size.samples else None,
    images=array((size.reference_images, *frames(1)[1:])) if size.reference_images else None,
    clip=array(frames(size.reference_frames)) if size.reference_frames else None,
    sound=array(sound(size.reference_samples)) if size.reference_samples else None,
    low=array(video.latent_shape(low.frames, low.height, low.width)) if low else None,
    keyframes=array((keyframes, *frames(1, size.keyframe_scale)[1:])) if keyframes else None,
  )


def make_held_out(config, system: system_lib.System, seed: int, root: str, batches: int):
  """A loader of the held-out counterparts of all buckets, `batches` of each."""
  even = {name: dict(node) | {'weight': 1.0} for name, node in config['data']['buckets'].items()}
  data = dict(config['data']) | {'buckets': even}
  try:  # A cycle of so few steps: the shares of the tasks hold in it.
    return make_loader({'data': data}, system, seed, root=root, cycle=len(even) * batches)
  except records.RecordError as error:
    raise errors.UserError(
      f'what is held out (config.validate.root={root!r}): {error}  Without held-out losses: '
      '--config.validate.every=0'
    ) from error


def shapes(config, system: system_lib.System) -> dict:
  """{bucket: (Size, Clips of shapes and dtypes)}: what a config's steps take, without its data."""
  data, found = config_lib.build(loader.Config, config['data'], 'config.data'), {}
  channels = system.codecs.audio.audio_channels
  for name, b in sorted(data.buckets.items()):
    size = system.size(**b.size())
    named = b.tasks or (tasks.natural(size),)
    text, made = system.text.shapes(b.rows, size), Latents()
    if b.coded:
      made = latents(system, size)
      embeddings = (*text[1].shape, system.text.width)
      text = jax.ShapeDtypeStruct(embeddings, jnp.bfloat16), text[1]
    has = collate.fields(named, size, made)
    found[name] = size, collate.shapes(b.rows, size, has, text, channels)
  return found


def check_rows(rows: dict[str, int], shape: Mapping[str, int], accumulate: int):
  """ConfigError where a bucket's rows do not spread over the mesh.

  Args:
    rows: of each bucket; shape: devices along each axis of the mesh.
  """
  ways = shape['data'] * shape['fsdp']
  for name, count in rows.items():
    unit = ways * min(accumulate, max(1, count // ways))
    if count % unit:
      raise config_lib.ConfigError(
        f'config.data.buckets.{name}.rows={count} must be a multiple of data x fsdp x accumulate '
        f'= {unit}; use {-(-count // unit) * unit}, or a smaller mesh'
      )
