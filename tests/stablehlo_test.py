"""sr4 export --format stablehlo: one program for all sizes, and a runner that needs no sr4."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors

from data_pipelines import collate
from data_pipelines import tasks
from sr4 import cli
from sr4 import stablehlo
from sr4.core import config as config_lib
from sr4.core import errors
from sr4.core import sharding
from sr4.core import tree
from sr4.core.av import AV
from sr4.core.batch import Latents
from sr4.core.batch import Size
from sr4.flow import conditioning
from sr4.flow import guidance
from sr4.flow import solver
from sr4.models import system as system_lib
from sr4.training import checkpoint
from tests import small_run

STEPS, SCALE = 4, 3.0
SAMPLE = dict(shift=3.0, audio_shift=2.0, modality_scale=1.5)


def built(randomized, path='nowhere', **model):
  """(system, a model whose every weight says something, config)."""
  config = small_run.config(path)
  config.model.update(model)
  config.sample.update(SAMPLE)
  page = config_lib.to_json(config)
  system = system_lib.build(page)
  return system, randomized(tree.abstract(system.model, jax.random.key(0)), std=0.1), page


def filled(shapes, seed=0):
  """Numbers in place of shapes, of which no two are alike."""
  random = np.random.default_rng(seed)

  def draw(x):
    values = random.standard_normal(x.shape, np.float32)
    return values > -1 if x.dtype == bool else values

  return jax.tree.map(draw, shapes)


@pytest.mark.parametrize('head', [32, 128])
def test_one_program_has_the_bits_of_the_model_at_two_sizes(randomized, relative, head):
  """Where no mesh is set, so that nothing is padded; 128 channels are those of kernels."""
  system, model, _ = built(randomized, width=2 * head)
  program = jax.export.deserialize(bytearray(stablehlo.program(system)))
  assert program.platforms == ('cpu', 'cuda', 'tpu')
  flat = {name: np.asarray(x) for name, x in tree.to_flat(model).items()}
  few, many = Size(5, 16, 24, 8.0, 4000), Size(9, 112, 112, 8.0, 4000)  # Attention's two ways.
  odd = Size(9, 112, 112, 8.0, 700)  # Rounded elsewhere.
  with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
    for seed, size in enumerate((few, many, odd)):
      args = filled(stablehlo.arguments(system, size), seed)
      found = program.call(flat, *args)
      wanted = jax.jit(stablehlo.velocity(model))(flat, *args)
      for name, x in wanted.items():
        assert np.std(x) > 0.01 and relative(found[name], x) <= (2e-6 if size is odd else 0)


def test_a_model_of_sounds_alone_has_no_program():
  config = small_run.config('nowhere')
  config.data.buckets = dict(sounds=dict(records=('sounds',), rows=4, frames=0, seconds=1.0))
  with pytest.raises(errors.UserError, match='makes sounds alone.* --format diffusers'):
    stablehlo.trained(system_lib.build(config), config_lib.to_json(config))


def test_its_memory_does_not_grow_with_the_square_of_the_tokens(randomized):
  system, _, _ = built(randomized)
  program = jax.export.deserialize(bytearray(stablehlo.program(system)))
  like = jax.eval_shape(system.model, jax.random.key(0))
  flat = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in tree.to_flat(like).items()}
  args = stablehlo.arguments(system, Size(9, 384, 384, 8.0, 700))
  tokens = args[2]['video_positions'].shape[1]
  memory = jax.jit(program.call).lower(flat, *args).compile().memory_analysis()
  assert tokens == 6912 and memory.temp_size_in_bytes < 4 * tokens**2


@pytest.fixture(scope='module')
def home(tmp_path_factory, randomized):
  path = tmp_path_factory.mktemp('stablehlo')
  system, model, page = built(randomized, path)
  with checkpoint.Checkpoints(str(path / 'checkpoints')) as saves:
    saves.save(1, {'ema': model}, {'config': page})
  args = '--checkpoint', path / 'checkpoints', '--out', path / 'out', '--format', 'stablehlo'
  cli.main(['export', *map(str, args)])
  return path, system, model


def run(folder, *args):
  """The runner where sr4 cannot be imported."""
  told = f'import sys, runpy; sys.modules["sr4"] = None; sys.argv = {["run.py", *map(str, args)]!r}'
  command = [sys.executable, '-c', f'{told}; runpy.run_path("run.py")']
  subprocess.run(command, cwd=folder, check=True, capture_output=True)


def test_the_runner_samples_as_we_do(home, tmp_path, relative):
  path, system, model = home
  file = tmp_path / 'latents.safetensors'
  run(
    path / 'out',
    *('--inputs', 'inputs.safetensors', '--out', file),
    *('--steps', STEPS, '--scale', SCALE, '--seed', 5),
  )
  found, told = (safetensors.load_file(x) for x in (file, path / 'out' / 'inputs.safetensors'))
  random = np.random.default_rng(5)
  size = system.size(5, 16, 16, 8.0)
  shapes = (1, *system.codecs.video.latent_shape(5, 16, 16)), (1, 20, system.codecs.audio.channels)
  x = AV(*((random.standard_normal(shape, np.float32),) for shape in shapes))
  wanted = stablehlo.inputs(system, size, 'a red circle')
  assert wanted.keys() == told.keys() and wanted['text_valid'].any()
  for name, array in wanted.items():
    np.testing.assert_array_equal(told[name], array)
  row = tasks.Row(caption='a red circle')
  text = told['text'], told['text_valid']
  clips = collate.collate([row], size, collate.fields_of([row]), *text, 1)
  clips = dataclasses.replace(
    sharding.rows(clips), present=AV(*[sharding.rows(np.ones(1, bool))] * 2)
  )
  cond = conditioning.condition(system.codecs, size, system.config.patch, clips, Latents())

  @jax.jit
  def sampled(model, x, cond):
    scales = guidance.Scales(text=AV(SCALE, SCALE), modality=AV(1.5, 1.5))
    velocity = guidance.guided(model, cond, scales)
    return solver.euler(velocity, x, solver.times(STEPS, AV(SAMPLE['shift'], 2.0)))

  made = sampled(model, sharding.rows(x), cond)
  for name in found:
    assert relative(found[name], getattr(made, name)[0]) < 1e-5


def test_a_sparse_program_is_of_one_size(randomized, relative):
  """A Refiner: video alone, tiles of its size."""
  sparse = dict(tile=(4, 4, 4), sparsity=0.5)
  system, model, _ = built(randomized, audio=False, sparse=sparse, patch=(1, 1, 1))
  size = system.size(9, 32, 32, 8.0, sound=False)
  program = jax.export.deserialize(bytearray(stablehlo.program(system, size)))
  args = filled(stablehlo.arguments(system, size))
  assert list(args[0]) == ['video'] and 'audio_positions' not in args[2]
  flat = {name: np.asarray(x) for name, x in tree.to_flat(model).items()}
  with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
    found = program.call(flat, *args)
    wanted = jax.jit(stablehlo.velocity(model))(flat, *args)
  assert np.std(wanted['video']) > 0.01 and relative(found['video'], wanted['video']) < 1e-5


def test_the_folder_is_whole(home):
  path, _, _ = home
  names = {'velocity.stablehlo', 'weights.safetensors', 'inputs.safetensors', 'run.py', 'sr4.json'}
  assert {x.name for x in (path / 'out').iterdir()} == names | {'sha256.json'}
  assert set(json.loads((path / 'out' / 'sha256.json').read_text())) == names
  with pytest.raises(SystemExit, match='--dtype=bfloat16 is for --format diffusers'):
    cli.main(
      ['export', '--checkpoint', str(path / 'checkpoints'), '--out', str(path / 'half')]
      + ['--format', 'stablehlo', '--dtype', 'bfloat16']
    )
  with pytest.raises(SystemExit, match='is of StableHLO'):
    cli.main(['import', '--export', str(path / 'out'), '--out', str(path / 'back')])
