"""The training loop: batch, update, measure, save, look."""

from collections.abc import Iterator
import contextlib
import dataclasses
import functools
import os
import sys
import time

import jax
import tqdm

from sr4 import pipeline
from sr4.convert import weights
from sr4.core import config as config_lib
from sr4.core import errors
from sr4.core import flags
from sr4.core import prng
from sr4.core import sharding
from sr4.core import tree
from sr4.flow import conditioning
from sr4.flow import loss as flow_loss
from sr4.models import system as system_lib
from sr4.training import accounting
from sr4.training import begin
from sr4.training import checkpoint
from sr4.training import compiled
from sr4.training import data
from sr4.training import goodput
from sr4.training import looks
from sr4.training import metrics as metrics_lib
from sr4.training import optimizer
from sr4.training import preemption
from sr4.training import profile
from sr4.training import state as state_lib
from sr4.training import step as step_lib
from sr4.training import validation


class Diverged(errors.UserError):
  """Too many steps in a row had no usable gradient."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each axis; data or fsdp = -1 takes what is left."""

  data: int = 1
  fsdp: int = -1
  seq: int = 1
  tensor: int = 1


@dataclasses.dataclass(frozen=True)
class Config:
  """What the loop itself reads, apart from the sections of others."""

  steps: int
  seed: int = 0
  save_every: int = 1000
  keep: int = 3  # the latest so many checkpoints
  keep_every: int = 0  # and for ever those of the steps that it divides; 0: none
  verify: str = 'full'  # what a restore looks at: full, fast or off; docs/checkpoints.md
  local_every: int = 0  # steps between emergency checkpoints on each host's own disk; 0: none
  local_dir: str = ''  # a folder of that disk
  log_every: int = 10
  max_seconds: float = 0.0  # stop (and save) after so long; 0: no limit
  compile_cache: str = ''  # folder of compiled programs; '': the user's own; 'off': none
  profile: tuple[int, int] = (0, 3)  # trace from this step (0: on SIGUSR1 alone), so many steps

  def __post_init__(self):
    for name in ('steps', 'save_every', 'keep', 'log_every'):
      if getattr(self, name) < 1:
        raise ValueError(f'train.{name}={getattr(self, name)} must be 1 or more')
    for name in ('keep_every', 'local_every', 'max_seconds'):
      if getattr(self, name) < 0:
        raise ValueError(f'train.{name}={getattr(self, name)} must be 0 (off) or more')
    if self.profile[0] < 0 or self.profile[1] < 1:
      raise ValueError(f'profile={self.profile} is (a step or 0, 1 step or more)')
    if self.verify not in checkpoint.VERIFY:
      raise ValueError(f'verify={self.verify!r} is not among {", ".join(checkpoint.VERIFY)}')
    if self.local_every and not self.local_dir:
      raise ValueError(
        f'local_every={self.local_every} needs local_dir, a folder on the disk of each host'
      )


@dataclasses.dataclass(frozen=True)
class Sections:
  """The sections of a config, built: what is wrong in one is told before any work."""

  train: Config
  flow: flow_loss.Config
  step: step_lib.Config
  optimizer: optimizer.Config
  init: dict[str, begin.InitConfig]
  validate: validation.Config
  preview: looks.PreviewConfig
  sample: pipeline.Config
  mesh: MeshConfig

  @classmethod
  def of(cls, config) -> 'Sections':
    given = {f.name: config.get(f.name, {}) for f in dataclasses.fields(cls)}
    if 'steps' in given['train']:
      given['optimizer'] = dict(given['optimizer']) | {'steps': given['train']['steps']}
    return config_lib.build(cls, given)


def run(
  config, workdir: str, progress: bool = True, began: float | None = None
) -> tuple[state_lib.State, int]:
  """Trains what the config describes, from where the workdir left off, to its end or SIGTERM.

  Args:
    began: when the process did, in seconds since 1970; what it did since is accounted for, too.
  Returns:
    (the last state, the exit code: watch.RESTART where a pod was asked to stop before its end).
  """
  began = began or time.time()
  system, c = system_lib.build(config), Sections.of(config)
  if c.step.sparsify and not system.config.sparse.tile:
    raise errors.UserError(
      f'step.sparsify={c.step.sparsify} is for sparse attention, and model.sparse.tile=() is '
      'dense; give a tile, or leave it out'
    )
  cache, past = compiled.use_cache(c.train.compile_cache), {'imports': time.time()}
  mesh = sharding.make_mesh(**dataclasses.asdict(c.mesh))
  past['tpu_init'] = time.time()
  with jax.set_mesh(mesh):
    load = data.make_loader(config, system, c.train.seed, os.path.join(workdir, 'dropped.jsonl'))
  data.check_rows({b.name: b.rows for b in load.schedule.buckets}, mesh.shape, c.step.accumulate)
  past['open_data'] = time.time()
  os.makedirs(workdir, exist_ok=True)
  with (
    jax.set_mesh(mesh),
    preemption.Preemption() as stop,
    profile.Profile(os.path.join(workdir, 'profiles'), *c.train.profile) as trace,
    goodput.Recorder(log_path(workdir), began, past, say) as log,
    log.leaving(
      'checkpoint_save',
      checkpoint.Checkpoints(
        os.path.join(workdir, 'checkpoints'),
        c.train.keep,
        c.train.keep_every,
        c.train.verify,
        c.train.local_dir if c.train.local_every else '',
      ),
    ) as saves,
  ):
    with log.span('training_prep'):
      say(load.table(system.tokens, c.train.steps, jax.sharding.get_mesh().size))
      say(f'compiled programs are kept in {cache}' if cache else 'no compiled programs are kept')
      media = load.media or c.preview.every
      system = weights.load(system, media).remembering(b.size for b in load.schedule.buckets)
      system = system if media else system.without_weights()
      ready = prepare(config, c, system, load, saves, workdir, log)
    state = train(c, ready, workdir, progress, stop, trace, log, saves)
  say(f'step {int(state.step)} of {c.train.steps} is saved in {saves.directory}')
  if jax.process_index() == 0:
    say(goodput.of(workdir).table())
  return state, 0 if int(state.step) >= c.train.steps else stop.code()


@dataclasses.dataclass(frozen=True)
class Ready:
  """All that the first step waits for."""

  state: state_lib.State
  given: tuple  # what each step takes beside the state: System, root key, Pace
  page: dict  # of a checkpoint
  batches: Iterator
  names: list[str]  # of buckets; '' where there is one
  programs: list[compiled.Program]
  works: list[accounting.Work]
  look: looks.Looks


def prepare(config, c: Sections, system, load, saves, workdir: str, log) -> Ready:
  """Compiles every bucket's step, and takes up the latest checkpoint or begins."""
  tx, key = optimizer.make(c.optimizer), jax.random.key(c.train.seed)
  init = lambda key: state_lib.init(system.model, tx, prng.named(key, 'init'))
  buckets, like = load.schedule.buckets, tree.abstract(init, key)
  optimizer.check_frozen(c.optimizer, tree.to_flat(like.model))
  given = system, key, optimizer.Pace.of(c.optimizer)
  phase = {'schedule': load.schedule.fingerprint(), 'phase': load.config.phase, 'start': 0}
  look = looks.Looks(
    config, c, system, buckets, key, workdir
  )  # An error where held-out records are missing.
  # The order of resuming: 1. the latest whole checkpoint, 2. its data is ours, 3. the programs,
  # before they have memory to fill, 4. its arrays, 5. the loader at its step.  The step is all the
  # random state there is.  A run that begins looks for its sources in place of 1 and 2.
  if (latest := saves.latest(like)) is None:
    sources = begin.sources(tree.to_flat(like.model), workdir, c.init)
  else:
    page = saves.page(latest)
    phase = begin.data_phase(page['data'], phase['schedule'], phase['phase'], latest)
  limit = accounting.limit_gib(jax.local_devices())
  options = flags.of(accounting.TPUS.get(jax.local_devices()[0].device_kind))
  start, shapes, programs, works = latest or 0, data.shapes(config, system), [], []
  for b in buckets if start < c.train.steps else ():
    size, clips = shapes[b.name]
    step = jax.jit(functools.partial(update, c, size), donate_argnums=0)
    with log.span('compile'):
      programs.append(compiled.compile_step(b.name, step, like, given, clips, limit, options, say))
    works.append(accounting.work(system, size, clips))
  with log.span('checkpoint_restore' if latest is not None else 'init'):
    state = begin.start(init, key, sources) if latest is None else saves.restore(latest, like)
  say(
    f'{tree.count(state.model) / 1e6:.1f} M parameters, step {start} of {c.train.steps}, '
    f'mesh {dict(jax.sharding.get_mesh().shape)}'
  )
  return Ready(
    state,
    given,
    {'config': config_lib.to_json(config), 'data': phase},
    load(start - phase['start'], c.train.steps - phase['start']),
    [b.name if len(buckets) > 1 else '' for b in buckets],
    programs,
    works,
    look,
  )


def train(c: Sections, ready: Ready, workdir, progress, stop, trace, log, saves) -> state_lib.State:
  """Batch, update, measure, save, look, until the last step or until told to stop."""
  state, begun = ready.state, time.monotonic()
  start = done = int(state.step)
  last = start >= c.train.steps
  with metrics_lib.Metrics(workdir, c.train.steps, start, c.train.log_every, progress) as metrics:

    @contextlib.contextmanager
    def aside(name: str):
      """Something between two steps, which is no step's time; the steps before it are over."""
      check(metrics.flush(), c.step)
      with log.span(name):
        yield
      metrics.pause()

    def look():
      for kind in ready.look.due(done):
        with aside(kind):
          if told := ready.look(kind, done, state.ema):
            metrics.write(done, told)

    if not start:
      look()
    while not last:
      if trace.due(done + 1):
        with aside('profile'):
          say(trace.turn(done + 1))
      with log.span('data_loading') as waited:
        _, bucket, clips = next(ready.batches)
      log.step(done + 1)
      with jax.profiler.StepTraceAnnotation('train', step_num=done + 1):
        state, measured = ready.programs[bucket](state, ready.given, sharding.rows(clips))
      done += 1
      row = metrics.push(done, measured, ready.works[bucket], waited.seconds, ready.names[bucket])
      check(row, c.step)
      if c.train.max_seconds and time.monotonic() - begun > c.train.max_seconds:
        stop.time_is_up()
      last = stop.reached(done) or done == c.train.steps
      if last or done % c.train.save_every == 0:
        with aside('checkpoint_save'):
          saves.save(done, state, ready.page)
      elif c.train.local_every and done % c.train.local_every == 0:
        with aside('checkpoint_save'):
          saves.save_local(done, state, ready.page)
      look()
  return state


def update(c: Sections, size, state, given, clips):
  """Media to latents and one step, in one program.  given: (System, root key, Pace)."""
  system, key, pace = given
  tx = optimizer.make(c.optimizer, pace)
  batch = conditioning.encode(system.codecs, size, system.config.patch, system.embedded(clips))
  return step_lib.update(tx, c.flow, c.step, state, key, batch, c.optimizer.frozen)


def check(row: dict | None, c: step_lib.Config):
  """Stops a run that only skips."""
  if row and row['skipped_in_a_row'] >= c.patience:
    raise Diverged(
      f'{c.patience} steps in a row had a loss or gradient that is not finite or spikes '
      f'(the last: loss {row["loss"]:.3g}, gradient norm {row["grad_norm"]:.3g}); lower '
      'optimizer.learning_rate or look at the data, then resume'
    )


def say(text: str):
  if jax.process_index() == 0:
    tqdm.tqdm.write(text)  # Above the bar.
    sys.stdout.flush()


def log_path(workdir: str) -> str | None:
  """Of the goodput's log, which one host writes."""
  return os.path.join(workdir, goodput.NAME) if jax.process_index() == 0 else None
