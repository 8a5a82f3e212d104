"""The training loop: batch, update, measure, save, sample."""

import dataclasses
import functools
import os
import time

import jax

from sr4 import pipeline
from sr4.core import config as config_lib
from sr4.core import errors
from sr4.core import prng
from sr4.core import sharding
from sr4.core import tree
from sr4.flow import conditioning
from sr4.flow import loss as flow_loss
from sr4.models import system as system_lib
from sr4.training import begin
from sr4.training import checkpoint
from sr4.training import metrics as metrics_lib
from sr4.training import optimizer
from sr4.training import preemption
from sr4.training import state as state_lib
from sr4.training import step as step_lib
from sr4.training import validation


class Diverged(errors.UserError):
  """Too many steps in a row had no usable gradient."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each axis; fsdp = -1 takes what is left."""

  data: int = 1
  fsdp: int = -1
  seq: int = 1
  tensor: int = 1


@dataclasses.dataclass(frozen=True)
class PreviewConfig:
  """Clips sampled while training; every = 0: none."""

  every: int = 0
  prompts: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Config:
  """What the loop itself reads, apart from the sections of others."""

  steps: int
  seed: int = 0
  save_every: int = 1000
  keep: int = 3
  log_every: int = 10
  max_seconds: float = 0.0  # stop (and save) after so long; 0: no limit


def run(config, workdir: str, progress: bool = True) -> state_lib.State:
  """Trains what the config describes, from where the workdir left off, to its end or SIGTERM."""
  system = system_lib.build(config)
  c = config_lib.build(Config, config['train'], 'config.train')
  flow = config_lib.build(flow_loss.Config, config['flow'], 'config.flow')
  step_config = config_lib.build(step_lib.Config, config['step'], 'config.step')
  optim = config_lib.build(
    optimizer.Config, dict(config['optimizer']) | {'steps': c.steps}, 'config.optimizer'
  )
  preview = config_lib.build(PreviewConfig, config['preview'], 'config.preview')
  sources = {
    name: config_lib.build(begin.InitConfig, node, f'config.init.{name}')
    for name, node in config.get('init', {}).items()
  }
  sampling = config_lib.build(pipeline.Config, config['sample'], 'config.sample')
  mesh = sharding.make_mesh(
    **dataclasses.asdict(config_lib.build(MeshConfig, config['mesh'], 'config.mesh'))
  )
  load = make_loader(config, system, c.seed, os.path.join(workdir, 'dropped.jsonl'))
  check_rows(load.schedule, mesh, step_config.accumulate)
  validate = config_lib.build(validation.Config, config.get('validate', {}), 'config.validate')
  say(load.table(system.tokens, c.steps, jax.device_count()))
  tx = optimizer.make(optim)
  init = lambda key: state_lib.init(system.model, tx, prng.named(key, 'init'))
  data = {'schedule': load.schedule.fingerprint(), 'phase': load.config.phase, 'start': 0}
  directory = os.path.join(workdir, 'checkpoints')

  with (
    jax.set_mesh(mesh),
    preemption.Preemption() as stop,
    checkpoint.Checkpoints(directory, c.keep) as saves,
  ):
    key = jax.random.key(c.seed)
    # The order of resuming: 1. the latest whole checkpoint, 2. its data is ours, 3. its arrays,
    # 4. the loader at its step.  The step is all the random state there is.
    if (latest := saves.latest()) is None:
      state = begin.start(init, key, workdir, sources)
    else:
      _, page = checkpoint.page(directory, latest)
      data = begin.data_phase(page['data'], data['schedule'], data['phase'], latest)
      state = checkpoint.restore(directory, latest, tree.abstract(init, key))
    page = {'config': config_lib.to_json(config), 'data': data}
    start = int(state.step)
    say(
      f'{tree.count(state.model) / 1e6:.1f} M parameters, step {start} of {c.steps}, '
      f'mesh {dict(mesh.shape)}'
    )
    updates = [
      jax.jit(functools.partial(update, tx, system, b.size, flow, step_config), donate_argnums=0)
      for b in load.schedule.buckets
    ]
    shown = max(load.schedule.buckets, key=lambda b: b.weight).size
    names = [b.name for b in load.schedule.buckets]
    held_out = validate.every and held_out_losses(config, validate, system, flow, c.seed, key)
    batches = load(start - data['start'], c.steps - data['start'])
    begun, done = time.monotonic(), start
    with metrics_lib.Metrics(workdir, c.steps, start, c.log_every, progress) as metrics:
      if held_out and not start:
        metrics.write(0, held_out(state.ema))
        metrics.pause()
      while done < c.steps:
        asked = time.monotonic()
        _, bucket, clips = next(batches)
        waited = time.monotonic() - asked
        state, measured = updates[bucket](state, key, sharding.rows(clips))
        done += 1
        name = names[bucket] if len(names) > 1 else ''
        check(metrics.push(done, measured, len(clips.text), waited, name), step_config)
        late = c.max_seconds and time.monotonic() - begun > c.max_seconds
        last = late or done == c.steps or stop.reached(done)
        if last or done % c.save_every == 0:
          check(metrics.flush(), step_config)
          saves.save(done, state, page)
          metrics.pause()
        if held_out and (last or done % validate.every == 0):
          check(metrics.flush(), step_config)
          metrics.write(done, held_out(state.ema))
          metrics.pause()
        if preview.every and done % preview.every == 0:
          write_previews(
            system,
            state.ema,
            shown,
            sampling,
            preview.prompts,
            os.path.join(workdir, 'previews', f'{done:07d}'),
          )
          metrics.pause()
        if last:
          break
  say(f'step {done} of {c.steps} is saved in {directory}')
  return state


def make_loader(config, system: system_lib.System, seed: int, dropped=None, **changes):
  """The loader of config.data, for what the system's codecs and encoder take.

  Args:
    dropped: file for the records that could not be used.
    changes: fields of loader.Config to change, and `cycle` of the schedule.
  """
  from data_pipelines import buckets  # Media libraries: only who trains needs them.
  from data_pipelines import loader

  cycle = changes.pop('cycle', buckets.CYCLE)
  data = config_lib.build(loader.Config, config['data'], 'config.data')
  data, audio = dataclasses.replace(data, **changes), system.codecs.audio
  return loader.Loader(
    data,
    {name: system.size(**b.size()) for name, b in data.buckets.items()},
    system.text,
    audio.sample_rate,
    audio.audio_channels,
    system.codecs.video.time_factor,
    seed=seed,
    host=jax.process_index(),
    hosts=jax.process_count(),
    dropped=dropped,
    cycle=cycle,
  )


def held_out_losses(config, validate, system, flow, seed: int, key) -> validation.HeldOut:
  """Each bucket as often as the others, on the held-out counterparts of its folders."""
  even = {name: dict(node) | {'weight': 1.0} for name, node in config['data']['buckets'].items()}
  data = dict(config['data']) | {'buckets': even}
  load = make_loader(
    {'data': data}, system, seed, root=validate.root, cycle=len(even) * validate.batches
  )
  return validation.HeldOut(system, flow, load, key, validate.batches)


def update(tx, system, size, flow, c, state, key, clips):
  """Media to latents and one step, in one program."""
  batch = conditioning.encode(system.codecs, size, system.config.patch, clips)
  return step_lib.update(tx, flow, c, state, key, batch)


def check_rows(schedule, mesh, accumulate: int):
  """ConfigError where a bucket's rows do not spread over the mesh."""
  unit = mesh.shape['data'] * mesh.shape['fsdp'] * accumulate
  for b in schedule.buckets:
    if b.rows % unit:
      raise config_lib.ConfigError(
        f'config.data.buckets.{b.name}.rows={b.rows} must be a multiple of data x fsdp x '
        f'accumulate = {unit}; use {-(-b.rows // unit) * unit}, or a smaller mesh'
      )


def check(row: dict | None, c: step_lib.Config):
  """Stops a run that only skips."""
  if row and row['skipped_in_a_row'] >= c.patience:
    raise Diverged(
      f'{c.patience} steps in a row had a loss or gradient that is not finite or spikes '
      f'(the last: loss {row["loss"]:.3g}, gradient norm {row["grad_norm"]:.3g}); lower '
      'optimizer.learning_rate or look at the data, then resume'
    )


def write_previews(system, model, size, sampling, prompts, folder):
  from data_pipelines import mp4

  sampler = pipeline.Pipeline(system, model, size, sampling)
  clips = sampler(prompts, range(len(prompts)))
  if jax.process_index() == 0:
    os.makedirs(folder, exist_ok=True)
    for i, clip in enumerate(clips):
      mp4.write(
        os.path.join(folder, f'{i:02d}.mp4'),
        clip.frames,
        size.fps,
        clip.samples,
        system.codecs.audio.sample_rate,
        metadata={'comment': clip.prompt},
      )


def say(text: str):
  if jax.process_index() == 0:
    print(text, flush=True)
