"""Checkpoints on disk: each flipped byte is found, what is kept, what is read."""

import itertools
import os
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore

from sr4 import cli
from sr4 import verify
from sr4.core import sharding
from sr4.core import tree
from sr4.core.sharding import P
from sr4.training import checkpoint
from sr4.training import digest
from sr4.training import local
from sr4.training import manifest

PAGE = {'config': {'a': 1}, 'data': {'start': 0}}


def state(seed: float = 0.0) -> dict:
  """Arrays of several kinds; 'x.dual.w' is stacked as layers are."""
  draw = np.random.default_rng(7).standard_normal
  return jax.tree.map(
    jnp.asarray,
    {
      'model': {'x': {'dual': {'w': np.float32(draw((4, 32, 48)) + seed)}}},
      'ema': {'x': {'dual': {'w': np.float32(draw((4, 32, 48)))}}},
      'opt': {'mask': draw(300) > 0, 'half': jnp.bfloat16(draw((7, 5)))},
      'step': np.int32(3),
    },
  )


def like(of) -> dict:
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), of)


def save(directory, steps=(3,), **options):
  with checkpoint.Checkpoints(str(directory), **options) as saves:
    for step in steps:
      saves.save(step, state(), PAGE)


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  directory = tmp_path_factory.mktemp('saved')
  save(directory)
  return directory


def test_a_step_before_those_that_are_there_is_not_lost_in_silence(copy):
  with pytest.raises(checkpoint.CheckpointError, match='has later steps than 2; give a new folder'):
    save(copy, steps=(2,), keep=1)
  assert checkpoint.steps(str(copy)) == [3]


@pytest.fixture
def copy(saved, tmp_path):
  """A folder of checkpoints with step 3, to damage."""
  shutil.copytree(saved, tmp_path / 'copy')
  return tmp_path / 'copy'


def flip(path, at: int, bit: int) -> bytes:
  """Flips a bit of a file; gives what was there."""
  before = path.read_bytes()
  after = bytearray(before)
  after[at] ^= 1 << bit
  path.write_bytes(after)
  return before


def test_100_flipped_bits_anywhere_100_found(copy):
  """At rest and at restore, each as an error of one line."""
  files = sorted(p for p in (copy / '3').rglob('*') if p.is_file())
  sizes = list(itertools.accumulate(p.stat().st_size for p in files))
  draw, found = random.Random(0), 0
  for _ in range(100):
    place = draw.randrange(sizes[-1])
    number = next(i for i, end in enumerate(sizes) if place < end)
    path = files[number]
    before = flip(path, sizes[number] - place - 1, draw.randrange(8))
    assert verify.look(str(copy / '3')).wrong, path
    with pytest.raises(checkpoint.CheckpointError) as error:
      checkpoint.restore(str(copy), 3, like(state()))
    found += '\n' not in str(error.value) and 'damaged' in str(error.value)
    path.write_bytes(before)
  assert found == 100
  assert not verify.look(str(copy / '3')).wrong


def unsealed(copy):
  """Without its manifest, as a kill may leave it; its file of arrays."""
  for part in (copy / '3').glob('files-*'):
    part.unlink()
  return max((copy / '3').rglob('d/*'), key=lambda p: p.stat().st_size)


@pytest.mark.parametrize('how', ['full', 'fast'])
def test_without_a_manifest_the_arrays_show_their_digests(copy, how):
  largest = unsealed(copy)
  checkpoint.restore(str(copy), 3, like(state()), verify=how)
  flip(largest, largest.stat().st_size // 2, 0)
  with pytest.raises(checkpoint.CheckpointError, match='damaged'):
    checkpoint.restore(str(copy), 3, like(state()), verify=how)
  assert any('array' in line for line in verify.look(str(copy / '3')).wrong)


def test_fast_finds_what_is_cut_off_missing_or_small_and_full_the_rest(copy, monkeypatch):
  restore = lambda how: checkpoint.restore(str(copy), 3, like(state()), verify=how)
  largest = max((copy / '3').rglob('d/*'), key=lambda p: p.stat().st_size)
  monkeypatch.setattr(manifest, 'SMALL', largest.stat().st_size - 1)
  before = flip(largest, largest.stat().st_size // 2, 0)
  restore('fast')  # What it does not see.
  with pytest.raises(checkpoint.CheckpointError, match='arrays are not as they were written'):
    restore('full')
  restore('off')
  largest.write_bytes(before[:-1])
  with pytest.raises(checkpoint.CheckpointError, match=f'has {len(before) - 1} bytes, and had'):
    restore('fast')
  largest.write_bytes(before)
  page = copy / '3' / 'page' / 'metadata'
  text = page.read_text()
  page.write_text(text.replace('"start": 0', '"start": 8'))
  assert text != page.read_text()
  with pytest.raises(checkpoint.CheckpointError, match='page/metadata is not as it was'):
    restore('fast')
  page.unlink()
  with pytest.raises(checkpoint.CheckpointError, match='page/metadata is missing'):
    restore('fast')


def test_sr4_verify_names_what_is_damaged_and_exits_1(copy, capsys):
  cli.main(['verify', '--checkpoint', str(copy)])
  assert '5 arrays' in (told := capsys.readouterr().out) and 'whole' in told
  shutil.copytree(copy / '3', copy / '5')
  largest = max((copy / '3').rglob('d/*'), key=lambda p: p.stat().st_size)
  flip(largest, largest.stat().st_size // 2, 3)
  cli.main(['verify', '--checkpoint', str(copy)])  # The latest is another.
  for arguments in (['--step', '3'], ['--all']):
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
      cli.main(['verify', '--checkpoint', str(copy), *arguments])
    told = capsys.readouterr().out
    assert left.value.code == 1 and 'DAMAGED' in told
    assert largest.name in told and "x.dual.w' is not as it was written" in told
  with pytest.raises(SystemExit, match='no checkpoint of step 4'):
    cli.main(['verify', '--checkpoint', str(copy), '--step', '4'])


def test_the_latest_are_kept_and_some_for_ever(tmp_path):
  save(tmp_path, range(1, 10), keep=2, keep_every=4)
  assert checkpoint.steps(str(tmp_path)) == [4, 8, 9]


@pytest.mark.parametrize('shape', [(), (5,), (3, 64, 33), (1, 1), (2, 3, 4, 5)])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'bool', 'int32'])
def test_the_digest_of_chunks_on_disk_is_that_of_the_array(tmp_path, shape, dtype):
  draw = np.random.default_rng(1).standard_normal(shape)
  x = jnp.asarray(draw > 0 if dtype == 'bool' else draw * 100).astype(dtype)
  base = {'driver': 'file', 'path': f'{tmp_path}/'}
  spec = {
    'driver': 'zarr',
    'kvstore': {'driver': 'ocdbt', 'base': base, 'path': 'x/'},
    'metadata': {'chunks': [2] * len(shape)},
  }
  stored = tensorstore.open(spec, create=True, dtype=dtype, shape=shape)
  stored.result().write(np.asarray(x)).result()
  expected = digest.of({'x': x})['x']
  assert digest.at_rest(str(tmp_path), 'x') == (expected, x.nbytes)
  if x.size > 1:  # It knows places.
    assert digest.of({'x': jnp.flip(x)})['x'] != expected


def test_weights_are_read_as_another_dtype(saved):
  """Their digests are of what was written, so they are cast when these have been checked."""
  written = state()['ema']['x']['dual']['w']
  wanted = {
    'x.dual.w': jax.ShapeDtypeStruct(written.shape, jnp.bfloat16, sharding=written.sharding)
  }
  read = checkpoint.restore_named(str(saved), 3, wanted, 'ema.')['x.dual.w']
  assert read.dtype == jnp.bfloat16
  np.testing.assert_array_equal(read, written.astype(jnp.bfloat16))


def test_a_layer_is_read_alone(tmp_path):
  """Of 8 layers of 256 KB one, with its index: the rest stays on disk."""
  w = jnp.asarray(np.random.default_rng(0).standard_normal((8, 256, 256)), jnp.float32)
  with checkpoint.Checkpoints(str(tmp_path)) as saves:
    saves.save(1, {'model': {'dual': {'w': w}}}, PAGE)
  count = lambda: tensorstore.experimental_collect_matching_metrics(
    '/tensorstore/kvstore/file/bytes_read'
  )[0]['values'][0]['value']
  stored = digest.stored(str(tmp_path / '1' / 'arrays'), 'model.dual.w')
  before = count()
  np.testing.assert_array_equal(stored[5].read().result(), w[5])
  assert w[5].nbytes * 0.5 < count() - before < w[5].nbytes * 1.5


@pytest.fixture
def both(tmp_path):
  """(saves, names): step 3 in the workdir; 4, 5 and 6 on the host's own disk."""
  saves = checkpoint.Checkpoints(str(tmp_path / 'main'), local_dir=str(tmp_path / 'own'))
  with saves:
    saves.save(3, state(), PAGE)
    for step in (4, 5, 6):
      saves.save_local(step, state(step), PAGE | {'data': {'start': step}})
  return saves


def first_number(found) -> float:
  return float(
    found['model']['x']['dual']['w'][0, 0, 0] - state()['model']['x']['dual']['w'][0, 0, 0]
  )


def test_the_newest_is_taken_up_wherever_it_is(both):
  assert both.latest(like(state())) == 6
  assert both.page(6)['data'] == {'start': 6}
  found = both.restore(6, like(state()))
  jax.tree.map(np.testing.assert_array_equal, found, state(6))
  with checkpoint.Checkpoints(both.directory) as saves:  # Without the disk, or a new one.
    assert saves.latest(like(state())) == 3
    saves.save(7, state(), PAGE)
  again = checkpoint.Checkpoints(both.directory, local_dir=os.path.dirname(both.local.folder))
  assert again.latest(like(state())) == 7 and again.local.chosen is None
  assert again.page(7)['data'] == {'start': 0}


def test_a_damaged_emergency_checkpoint_gives_way_to_an_older_one(both):
  shards = os.path.join(both.local.folder, '6', 'shards.safetensors')
  with open(shards, 'r+b') as f:
    f.seek(os.path.getsize(shards) // 2)
    f.write(b'x')
  assert both.latest(like(state())) == 5
  jax.tree.map(np.testing.assert_array_equal, both.restore(5, like(state())), state(5))
  assert both.local.steps() == [4, 5, 6]
  both.save_local(7, state(7), PAGE)
  both.local.wait()
  assert both.local.steps() == [4, 5, 7]  # 6 was of no use.


def test_an_emergency_checkpoint_serves_its_own_run_and_layout_alone(both, tmp_path):
  other = checkpoint.Checkpoints(str(tmp_path / 'other'), local_dir=str(tmp_path / 'own'))
  assert other.latest(like(state())) is None
  copied = shutil.copytree(both.directory, tmp_path / 'copied')
  copy = checkpoint.Checkpoints(str(copied), local_dir=str(tmp_path / 'own'))
  assert copy.latest(like(state())) == 3
  with jax.set_mesh(sharding.make_mesh(fsdp=2, devices=jax.devices()[:2])):
    split = jax.NamedSharding(jax.sharding.get_mesh(), P(None, 'fsdp'))
    moved = like(state())
    w = moved['model']['x']['dual']['w']
    moved['model']['x']['dual']['w'] = jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=split)
    assert both.latest(moved) == 3
  # That was a mistake, and what it could not use is there.
  assert both.latest(like(state())) == 6


def test_an_emergency_checkpoint_of_several_devices_and_copies(tmp_path):
  with jax.set_mesh(sharding.make_mesh(data=2, fsdp=2, devices=jax.devices()[:4])):
    split = jax.NamedSharding(jax.sharding.get_mesh(), P(None, 'fsdp'))
    x = {'x': jax.device_put(np.arange(24, dtype=np.float32).reshape(3, 8), split)}
    own = local.Local(str(tmp_path / 'own'), str(tmp_path))
    own.save(2, tree.to_flat(x), PAGE)
    own.wait()
    assert len(local.blocks(x['x'])) == 2  # Not 4: copies are written once.
    assert own.latest(tree.to_flat(like(x)), None) == 2
    found = own.restore(2, tree.to_flat(like(x)))['x']
    np.testing.assert_array_equal(found, x['x'])
    assert found.sharding == split


def test_few_emergency_checkpoints_are_kept(both):
  for step in range(7, 12):
    both.local.save(step, tree.to_flat(state()), PAGE)
  both.local.wait()
  assert both.local.steps() == [9, 10, 11]
