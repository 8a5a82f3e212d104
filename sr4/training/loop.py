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
from sr4.training import data
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


@dataclasses.dataclass(frozen=True)
class Sections:
  """The sections of a config, built: what is wrong in one is told before any work."""

  train: Config
  flow: flow_loss.Config
  step: step_lib.Config
  optimizer: optimizer.Config
  init: dict[str, begin.InitConfig]
  validate: validation.Config
  preview: PreviewConfig
  sample: pipeline.Config
  mesh: MeshConfig

  @classmethod
  def of(cls, config) -> 'Sections':
    given = {f.name: config.get(f.name, {}) for f in dataclasses.fields(cls)}
    if 'steps' in given['train']:
      given['optimizer'] = dict(given['optimizer']) | {'steps': given['train']['steps']}
    return config_lib.build(cls, given)


def run(config, workdir: str, progress: bool = True) -> state_lib.State:
  """Trains what the config describes, from where the workdir left off, to its end or SIGTERM."""
  system, c = system_lib.build(config), Sections.of(config)
  mesh = sharding.make_mesh(**dataclasses.asdict(c.mesh))
  load = data.make_loader(config, system, c.train.seed, os.path.join(workdir, 'dropped.jsonl'))
  data.check_rows({b.name: b.rows for b in load.schedule.buckets}, mesh, c.step.accumulate)
  say(load.table(system.tokens, c.train.steps, jax.device_count()))
  tx = optimizer.make(c.optimizer)
  init = lambda key: state_lib.init(system.model, tx, prng.named(key, 'init'))
  directory = os.path.join(workdir, 'checkpoints')
  with (
    jax.set_mesh(mesh),
    preemption.Preemption() as stop,
    checkpoint.Checkpoints(directory, c.train.keep) as saves,
  ):
    key = jax.random.key(c.train.seed)
    phase = {'schedule': load.schedule.fingerprint(), 'phase': load.config.phase, 'start': 0}
    # The order of resuming: 1. the latest whole checkpoint, 2. its data is ours, 3. its arrays,
    # 4. the loader at its step.  The step is all the random state there is.
    if (latest := saves.latest()) is None:
      state = begin.start(init, key, workdir, c.init)
    else:
      _, page = checkpoint.page(directory, latest)
      phase = begin.data_phase(page['data'], phase['schedule'], phase['phase'], latest)
      state = checkpoint.restore(directory, latest, tree.abstract(init, key))
    page = {'config': config_lib.to_json(config), 'data': phase}
    start = int(state.step)
    say(
      f'{tree.count(state.model) / 1e6:.1f} M parameters, step {start} of {c.train.steps}, '
      f'mesh {dict(mesh.shape)}'
    )
    batches = load(start - phase['start'], c.train.steps - phase['start'])
    look = looks(config, c, system, load.schedule.buckets, key, workdir)
    updates = [
      jax.jit(functools.partial(update, tx, system, b.size, c.flow, c.step), donate_argnums=0)
      for b in load.schedule.buckets
    ]
    names = [b.name if len(updates) > 1 else '' for b in load.schedule.buckets]
    begun, done, last = time.monotonic(), start, start >= c.train.steps
    with metrics_lib.Metrics(workdir, c.train.steps, start, c.train.log_every, progress) as metrics:
      if not start:
        look(metrics, 0, state.ema)
      while not last:
        asked = time.monotonic()
        _, bucket, clips = next(batches)
        waited = time.monotonic() - asked
        state, measured = updates[bucket](state, key, sharding.rows(clips))
        done += 1
        check(metrics.push(done, measured, len(clips.text), waited, names[bucket]), c.step)
        late = c.train.max_seconds and time.monotonic() - begun > c.train.max_seconds
        last = late or done == c.train.steps or stop.reached(done)
        if last or done % c.train.save_every == 0:
          check(metrics.flush(), c.step)
          saves.save(done, state, page)
          metrics.pause()
        look(metrics, done, state.ema)
  say(f'step {done} of {c.train.steps} is saved in {directory}')
  return state


def looks(config, c: Sections, system, buckets, key, workdir: str):
  """(metrics, step, model) -> None: held-out losses and previews where they are due."""
  held_out = None
  if c.validate.every:
    load = data.make_held_out(config, system, c.train.seed, c.validate.root, c.validate.batches)
    held_out = validation.HeldOut(system, c.flow, load, key)
  size = max(buckets, key=lambda b: b.weight).size

  def look(metrics, done: int, model):
    if held_out and (done % c.validate.every == 0 or done == c.train.steps):
      check(metrics.flush(), c.step)
      metrics.write(done, held_out(model))
      metrics.pause()
    if c.preview.every and done and done % c.preview.every == 0:
      folder = os.path.join(workdir, 'previews', f'{done:07d}')
      write_previews(system, model, size, c.sample, c.preview.prompts, folder)
      metrics.pause()

  return look


def update(tx, system, size, flow, c, state, key, clips):
  """Media to latents and one step, in one program."""
  batch = conditioning.encode(system.codecs, size, system.config.patch, clips)
  return step_lib.update(tx, flow, c, state, key, batch)


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
