"""The loader that a config asks for, fitted to its system and its mesh."""

import dataclasses

import jax

from data_pipelines import buckets
from data_pipelines import collate
from data_pipelines import loader
from data_pipelines import tasks
from sr4.core import config as config_lib
from sr4.models import system as system_lib


def make_loader(config, system: system_lib.System, seed: int, dropped=None, **changes):
  """The loader of config.data, for what the system's codecs and encoder take.

  Args:
    dropped: file for the records that could not be used.
    changes: fields of loader.Config to change, and `cycle` of the schedule.
  """
  cycle = changes.pop('cycle', buckets.CYCLE)
  data = config_lib.build(loader.Config, config['data'], 'config.data')
  data, audio = dataclasses.replace(data, **changes), system.codecs.audio
  return loader.Loader(
    data,
    {name: system.size(**b.size()) for name, b in data.buckets.items()},
    system.text.read,
    audio.sample_rate,
    audio.audio_channels,
    system.codecs.video.time_factor,
    seed=seed,
    host=jax.process_index(),
    hosts=jax.process_count(),
    dropped=dropped,
    cycle=cycle,
  )


def make_held_out(config, system: system_lib.System, seed: int, root: str, batches: int):
  """A loader of the held-out counterparts of all buckets, `batches` of each."""
  even = {name: dict(node) | {'weight': 1.0} for name, node in config['data']['buckets'].items()}
  data = dict(config['data']) | {'buckets': even}
  # A cycle of so few steps: the shares of the tasks hold in it.
  return make_loader({'data': data}, system, seed, root=root, cycle=len(even) * batches)


def shapes(config, system: system_lib.System) -> dict:
  """{bucket: (Size, Clips of shapes and dtypes)}: what a config's steps take, without its data."""
  data, found = config_lib.build(loader.Config, config['data'], 'config.data'), {}
  channels = system.codecs.audio.audio_channels
  for name, b in sorted(data.buckets.items()):
    size = system.size(**b.size())
    named = b.tasks or (tasks.natural(size),)
    found[name] = (
      size,
      collate.shapes(b.rows, size, named, system.text.shapes(b.rows, size), channels),
    )
  return found


def check_rows(rows: dict[str, int], mesh, accumulate: int):
  """ConfigError where a bucket's rows do not spread over the mesh.  rows: of each bucket."""
  ways = mesh.shape['data'] * mesh.shape['fsdp']
  for name, count in rows.items():
    unit = ways * min(accumulate, max(1, count // ways))
    if count % unit:
      raise config_lib.ConfigError(
        f'config.data.buckets.{name}.rows={count} must be a multiple of data x fsdp x accumulate '
        f'= {unit}; use {-(-count // unit) * unit}, or a smaller mesh'
      )
