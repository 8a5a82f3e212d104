"""The smallest run there is, for tests of whole programs: 5 frames of 16x16 and their sound."""

import contextlib
import io
import json
import os
import pathlib
import subprocess
import sys

import jax
import ml_collections
import numpy as np

from data_pipelines import records
from data_pipelines import world
from sr4 import cli
from sr4.core import config as config_lib
from sr4.core import tree
from sr4.models import system as system_lib
from sr4.training import checkpoint

STEPS = 12


def config(data, sound: bool = True, **train) -> ml_collections.ConfigDict:
  """Trains for STEPS on the records in DATA/clips.  Without sound it compiles in a third."""
  layers = dict(dual_layers=1, single_layers=1, audio=sound)
  clips = dict(frames=5, height=16, width=16, fps=8.0, sound=sound)
  return ml_collections.ConfigDict(
    dict(
      model=dict(size='debug', dtype='float32', remat='none', **layers),
      video_codec=dict(name='dct', space_factor=4, channels=16),
      audio_codec=dict(name='mdct', sample_rate=8000, audio_channels=1, hop=256, bands=32),
      text=dict(name='bytes', width=32, tokens=8),
      data=dict(root=str(data), buckets=dict(clips=clips | dict(records=('clips',), rows=4))),
      flow=dict(),
      optimizer=dict(learning_rate=1e-3, warmup=1),
      step=dict(),
      mesh=dict(fsdp=1),
      sample=dict(num_inference_steps=2),
      preview=dict(every=0, prompts=('a red circle',)),
      train=dict(steps=STEPS, save_every=3, log_every=1) | train,
    )
  )


def write_clips(folder, count: int = 16, sound: bool = True, seed: int = 0):
  """Records of SR4-World, silent ones if asked."""
  drawn = world.Config.simple(height=16, width=16, frames=5, fps=8.0, sample_rate=8000, channels=1)
  source = world.World(drawn, seed)
  samples = [source[i] for i in range(count)]
  records.write(
    folder,
    (
      records.Record(str(i), s.frames, 8.0, s.samples if sound else None, 8000, s.captions)
      for i, s in enumerate(samples)
    ),
  )


def write_config(path: pathlib.Path, run: ml_collections.ConfigDict):
  """A config program that says what `run` does."""
  page = json.dumps(config_lib.to_json(run))
  path.write_text(
    'import json\nimport ml_collections\n\n'
    f'def get_config():\n  return ml_collections.ConfigDict(json.loads({page!r}))\n'
  )


def model(system: system_lib.System):
  """A model whose every weight says something; drawn on the host, for programs cost more."""
  random = np.random.default_rng(1)

  def draw(path, x):
    about = 1.0 if tree.name_of(path).endswith('norm.scale') else 0.0
    value = (about + 0.06 * random.standard_normal(x.shape)).astype(x.dtype)
    return jax.device_put(value, x.sharding)

  like = tree.abstract(system.model, jax.random.key(0))
  return jax.tree_util.tree_map_with_path(draw, like)


def write_checkpoint(workdir, run: ml_collections.ConfigDict):
  """What sampling needs of a run, as if it had come to step 2."""
  with checkpoint.Checkpoints(str(workdir / 'checkpoints')) as checkpoints:
    made = model(system_lib.build(run))
    checkpoints.save(2, {'ema': made}, {'config': config_lib.to_json(run)})


def run(verb: str, *arguments, code: int = 0) -> str:
  """What `sr4 VERB` printed, in this process; fails if it did not exit with `code`.

  An error that is not the user's is raised here, instead of printed there.
  """
  said, found = io.StringIO(), 0
  with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
    try:
      cli.main([verb, *map(str, arguments)])
    except SystemExit as end:  # As the interpreter does: words are printed, and are a 1.
      found = end.code or 0
      if isinstance(found, str):
        print(found)
        found = 1
  assert found == code, said.getvalue()
  return said.getvalue()


def start(verb: str, *arguments) -> subprocess.Popen:
  """`sr4 VERB` in a process of its own, on one device: to be killed, or to begin anew."""
  flags = '--xla_backend_optimization_level=0'
  if verb not in ('plan', 'sweep'):  # The TPU compiler ends a process over a flag of the CPU's.
    flags += ' --xla_cpu_use_fusion_emitters=false'
  env = os.environ | {'XLA_FLAGS': flags}
  return subprocess.Popen(
    [sys.executable, '-m', 'sr4', verb, *map(str, arguments)],
    env=env,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(process: subprocess.Popen, code: int = 0) -> str:
  """What `start` printed; fails if it did not exit with `code`."""
  out, _ = process.communicate(timeout=300)
  assert process.returncode == code, out
  return out
