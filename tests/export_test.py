"""sr4 export: a folder of diffusers, whole or not at all; and sr4 import of it."""

import contextlib
import io
import json
import os
import pathlib
import shutil

import diffusers
import jax
import ml_collections
import numpy as np
import pytest
import safetensors.numpy
import torch

from sr4 import cli
from sr4 import pipeline
from sr4.convert import mmaudio
from sr4.convert import rules
from sr4.convert import shards
from sr4.convert import twin
from sr4.convert import wan
from sr4.core import tree
from sr4.models import system as system_lib
from sr4.torch import mmdit as torch_mmdit
from sr4.torch import SkyReelsV4Pipeline
from sr4.training import checkpoint
from tests import small_codecs
from tests import small_run

STEP = 7


@pytest.fixture(scope='module')
def home(tmp_path_factory, randomized):
  """(folder, config, moving average): a checkpoint with codecs that have weights, exported."""
  path = tmp_path_factory.mktemp('export')
  config = small_run.config(path)
  for name, fields in small_codecs.write(path).items():
    config[name] = ml_collections.ConfigDict(fields)
  config = config.to_dict() | dict(sample=dict(shift=3.0, audio_shift=2.0))
  system = system_lib.build(config)
  like = tree.abstract(system.model, jax.random.key(0))
  model, ema = (randomized(like, seed=seed) for seed in (1, 2))
  with checkpoint.Checkpoints(str(path / 'checkpoints')) as saves:
    saves.save(STEP, {'model': model, 'ema': ema}, {'config': config})
  out = run('export', '--checkpoint', path / 'checkpoints', '--out', path / 'out')
  assert f'step {STEP}, ' in out and ' MB/s' in out
  return path, config, ema


def run(*args, code=0) -> str:
  """What a verb says."""
  out = io.StringIO()
  with contextlib.redirect_stdout(out):
    try:
      cli.main([str(arg) for arg in args])
    except SystemExit as end:
      assert code == 1
      return str(end)
  assert code == 0
  return out.getvalue()


def test_a_program_of_a_model_whose_codecs_have_weights(home):
  path, *_ = home
  run('export', '--checkpoint', path / 'checkpoints', '--out', path / 'p', '--format', 'stablehlo')
  told = safetensors.numpy.load_file(path / 'p' / 'inputs.safetensors')
  assert np.all(np.isfinite(told['known'])) and np.any(told['known']) and not np.any(told['mask'])


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_a_sound_is_heard_in_half_precision(home, dtype):
  path, *_ = home
  pipe = SkyReelsV4Pipeline.from_pretrained(path / 'out', torch_dtype=dtype)
  sound = np.random.default_rng(0).uniform(-0.5, 0.5, (5000, 1)).astype(np.float32)
  ask = dict(num_frames=5, height=16, width=16, fps=8.0, num_inference_steps=1)
  out = pipe('@audio_1 of a red circle', audio=sound, ref_audio=sound[:2048], **ask)
  np.testing.assert_array_equal(out.audio[0], sound)
  assert torch.all(torch.isfinite(out.video_latents))


def test_a_damaged_config_is_not_passed_on(home, tmp_path):
  path, _, _ = home
  shutil.copytree(path / 'checkpoints', tmp_path / 'damaged')
  page = tmp_path / 'damaged' / str(STEP) / 'page' / 'metadata'
  page.write_text(page.read_text().replace('8000', '9000', 1))
  damaged = ('export', '--checkpoint', tmp_path / 'damaged', '--out', tmp_path / 'out')
  assert 'page/metadata is not as it was written' in run(*damaged, code=1)
  assert not (tmp_path / 'out').exists()


def test_diffusers_reads_every_component(home):
  path, _, ema = home
  model = torch_mmdit.MMDiT.from_pretrained(path / 'out' / 'transformer')
  wanted = rules.export(ema, twin.table)
  found = {name: x.numpy() for name, x in model.state_dict().items()}
  assert found.keys() == wanted.keys()
  for name, x in wanted.items():
    np.testing.assert_array_equal(found[name], x)
  video, sound = small_codecs.video(), small_codecs.audio()
  own = {n: x for n, x in tree.to_flat(sound).items() if not n.startswith('vocoder.')}
  for part, kind, arrays in (
    ('vae', 'AutoencoderKLWan', rules.export(video, wan.diffusers(video.config))),
    ('audio_vae', 'MMAudioVAE', rules.export(own, mmaudio.vae(sound.config))),
    (
      'vocoder',
      'MMAudioVocoder',
      rules.export(sound.vocoder, mmaudio.bigvgan(sound.config.vocoder)),
    ),
  ):
    theirs = getattr(diffusers, kind)
    loaded, told = theirs.from_pretrained(path / 'out' / part, output_loading_info=True)
    assert not told['missing_keys'] and not told['unexpected_keys']
    fresh = theirs.from_config(loaded.config).state_dict()
    for name, x in loaded.state_dict().items():
      # What is no weight is as the class makes it.
      wanted = torch.tensor(np.array(arrays[name])) if name in arrays else fresh[name]
      torch.testing.assert_close(x, wanted, rtol=0, atol=0 if name in arrays else 1e-6)
  scheduler = diffusers.FlowMatchEulerDiscreteScheduler
  shifts = [
    scheduler.from_pretrained(path / 'out' / name).config.shift
    for name in ('scheduler', 'audio_scheduler')
  ]
  assert shifts == [3.0, 2.0]


def test_import_gives_the_same_bytes(home):
  path, config, _ = home
  run('import', '--export', path / 'out', '--out', path / 'back')
  assert 'back/7: whole' in run('verify', '--checkpoint', path / 'back')
  told = checkpoint.page(str(path / 'checkpoints'))[1]['digests']
  step, page = checkpoint.page(str(path / 'back'))
  assert step == STEP
  assert page['digests'] == {n: x for n, x in told.items() if n.startswith('ema.')}
  assert page['config']['video_codec']['weights'] == str(path / 'out' / 'vae')
  assert page['config']['model'] == config['model']
  with pytest.raises(checkpoint.CheckpointError, match='has a moving average alone; leave out'):
    pipeline.load(str(path / 'back'), ema=False)
  assert 'is not empty' in run('import', '--export', path / 'out', '--out', path / 'back', code=1)


def test_raw_weights_in_bfloat16(home):
  path, _, ema = home
  args = '--checkpoint', path / 'checkpoints', '--out', path / 'raw', '--raw', '--dtype', 'bfloat16'
  (path / '.raw.partial-0').mkdir()  # As an export that was killed leaves it.
  run('export', *args)
  assert not list(path.glob('.raw*'))
  file = path / 'raw' / 'transformer' / 'diffusion_pytorch_model.safetensors'
  found = safetensors.numpy.load_file(file)
  assert {str(x.dtype) for x in found.values()} == {'bfloat16'}
  (_, raw, _), average = pipeline.load(str(path / 'checkpoints'), ema=False), tree.to_flat(ema)
  assert all(np.any(x != average[name]) for name, x in tree.to_flat(raw).items())
  for name, x in rules.export(raw, twin.table).items():
    np.testing.assert_array_equal(found[name], np.asarray(x).astype(found[name].dtype), name)
  run('import', '--export', path / 'raw', '--out', path / 'raw back')
  page = checkpoint.page(str(path / 'raw back'))[1]
  assert {name.split('.')[0] for name in page['digests']} == {'model'}
  told = run('export', '--checkpoint', path / 'raw back', '--out', path / 'x', code=1)
  assert 'raw back has weights alone; give --raw' in told
  with pytest.raises(checkpoint.CheckpointError, match='give --raw'):
    pipeline.load(str(path / 'raw back'))


def test_a_flipped_byte_is_not_passed_on(home, tmp_path):
  _, config, ema = home
  source = tmp_path / 'checkpoints'
  with checkpoint.Checkpoints(str(source)) as saves:
    saves.save(STEP, {'ema': ema}, {'config': config})
  flip(max(source.rglob('ocdbt.process_0/d/*'), key=lambda file: file.stat().st_size))
  told = run('export', '--checkpoint', source, '--out', tmp_path / 'out', code=1)
  assert 'damaged' in told and os.listdir(tmp_path) == ['checkpoints']


def flip(path: pathlib.Path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def test_what_is_wrong_with_a_folder_is_told(home, tmp_path):
  path, _, _ = home
  full = run('export', '--checkpoint', path / 'checkpoints', '--out', path / 'out', code=1)
  assert 'is not empty; give a new folder' in full
  nothing = run('import', '--export', path / 'checkpoints', '--out', tmp_path / 'x', code=1)
  assert 'give a folder that `sr4 export` wrote' in nothing
  place = path / 'out' / 'transformer' / 'diffusion_pytorch_model.safetensors'
  whole = place.read_bytes()
  flip(place)
  assert 'is not as it was written' in run(
    'import', '--export', path / 'out', '--out', tmp_path / 'x', code=1
  )
  place.unlink()
  assert 'is missing' in run('import', '--export', path / 'out', '--out', tmp_path / 'x', code=1)
  place.write_bytes(whole)


def test_several_files_and_their_index(tmp_path):
  arrays = {f'x{i}': np.full((3, i + 1), i, np.float32) for i in range(5)}
  with shards.appearing(str(tmp_path / 'out')) as folder:
    shapes = {name: x.shape for name, x in arrays.items()}
    folder.tensors('part/model', shapes, arrays.values(), 'float32', most=40)
  names = sorted(os.listdir(tmp_path / 'out' / 'part'))
  assert names == [*(f'model-0000{i}-of-00004.safetensors' for i in range(1, 5)), names[-1]]
  index = json.loads((tmp_path / 'out' / 'part' / 'model.safetensors.index.json').read_text())
  assert index['metadata'] == {'total_size': 180}
  for name, file in index['weight_map'].items():
    found = safetensors.numpy.load_file(tmp_path / 'out' / 'part' / file)
    np.testing.assert_array_equal(found[name], arrays[name])
  shards.check(str(tmp_path / 'out'))


def test_what_breaks_half_way_leaves_nothing(tmp_path):
  with pytest.raises(ValueError, match=r'a is \(2,\), and was to be \(3,\)'):
    with shards.appearing(str(tmp_path / 'out')) as folder:
      folder.tensors('model', {'a': (3,)}, [np.zeros(2, np.float32)], 'float32')
  assert not list(tmp_path.iterdir())
