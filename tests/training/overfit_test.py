"""The whole model learns: the debug size drives both losses on four captioned clips far down."""

import functools

import jax
import numpy as np

from data_pipelines import world
from sr4.core import sharding
from sr4.core.av import AV
from sr4.core.batch import Clips
from sr4.core.prompt import Prompt
from sr4.flow import conditioning
from sr4.flow import loss as flow_loss
from sr4.models import system as system_lib
from sr4.training import optimizer
from sr4.training import state as state_lib
from sr4.training import step as step_lib

CLIPS, COPIES, STEPS = 4, 4, 250
CONFIG = dict(
  model=dict(size='debug', dtype='float32', remat='none'),
  video_codec=dict(name='dct', space_factor=4, channels=8),
  audio_codec=dict(name='mdct', sample_rate=8000, audio_channels=1, hop=256, bands=16),
  text=dict(name='bytes', width=32, tokens=8),
)


def test_both_losses_fall_below_15_percent():
  system = system_lib.build(CONFIG)
  size = system.size(5, 16, 16, 8.0)
  source = world.World(
    world.Config.simple(height=16, width=16, frames=5, fps=8.0, sample_rate=8000, channels=1)
  )
  heard = [i for i in range(100) if source[i].samples.any()][:CLIPS]
  samples = [source[i] for i in heard * COPIES]
  text, valid = system.text.read([Prompt(s.captions['short']) for s in samples], size)
  has = np.ones(len(samples), bool)
  clips = sharding.rows(
    Clips(
      frames=np.stack([s.frames for s in samples]),
      samples=np.stack([s.samples for s in samples]),
      known=None,
      text=text,
      text_valid=valid,
      present=AV(has, has),
    )
  )
  tx = optimizer.make(optimizer.Config(learning_rate=4e-3, warmup=20, steps=STEPS, decay='cosine'))
  flow = flow_loss.Config(drop=conditioning.DropConfig(text=0.0))
  key = jax.random.key(0)
  batch = jax.jit(lambda c: conditioning.encode(system.codecs, size, system.config.patch, c))(clips)
  state = jax.jit(lambda k: state_lib.init(system.model, tx, k))(key)
  update = jax.jit(
    functools.partial(step_lib.update, tx, flow, step_lib.Config()),
    donate_argnums=0,
    compiler_options={'xla_backend_optimization_level': 2},  # It is run often.
  )
  losses = []
  for _ in range(STEPS):
    state, metrics = update(state, key, batch)
    losses.append(metrics)
  losses = jax.device_get(losses)
  for name in ('video', 'audio'):
    rows = [float(row[name]) for row in losses]
    start, end = np.mean(rows[:5]), np.mean(rows[-20:])
    print(name, start, end)
    assert end < 0.15 * start, f'{name}: {start:.3f} -> {end:.3f}'
