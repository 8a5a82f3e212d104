"""TFDS datasets of records: what TFDS reads, what we read, what is refused; never TensorFlow."""

import concurrent.futures
import dataclasses
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from data_pipelines import records
from data_pipelines import tfds
from tests.small_records import edited
from tests.small_records import record
from tests.small_records import same

pytest.importorskip('tensorflow_datasets')


@pytest.fixture(name='made', scope='module')
def _made(tmp_path_factory):
  """(root, records of train, of val); the dataset lies in root/tfds."""
  root = tmp_path_factory.mktemp('tfds')
  train, val = [record(i) if i % 3 else edited(i) for i in range(11)], [record(50)]
  for name, some in (('train', train), ('val', val)):
    records.write(root / name, some, shard_size=200_000)
    arguments = ['--records', root / name, '--out', root / 'tfds', '--name', 'my_clips']
    tfds.main([*map(str, arguments), '--split', name])
  return root, train, val


def test_a_config_names_a_split(made):
  root, train, val = made
  source = records.open('tfds:my_clips/1.0.0:train@tfds', root)
  assert len(source) == len(train)
  for i in (10, 0, 6):
    same(train[i], source[i])
  here = records.open('tfds:my_clips/1.0.0:val', root / 'tfds')
  absolute = records.open(f'tfds:my_clips/1.0.0:val@{root}/tfds', '/nowhere')
  same(val[0], here[0])
  same(val[0], absolute[0])
  for i in (-1, 11):
    with pytest.raises(IndexError, match='give 0 to 10'):
      source[i]


def test_the_manifest_comes_along(made):
  root, _, _ = made
  want = records.Source(root / 'train').manifest
  got = tfds.TfdsSource('tfds:my_clips/1.0.0:train@tfds', root).manifest
  assert len(want.shards) == len(got.shards) > 2
  files = {'shards': (), 'bytes': 0}
  assert dataclasses.replace(got, **files) == dataclasses.replace(want, **files)
  assert [s['count'] for s in got.shards] == [s['count'] for s in want.shards]


READ = """
import json, sys
import tensorflow_datasets
from data_pipelines import record
builder = tensorflow_datasets.builder_from_directory(sys.argv[1])
examples = builder.as_data_source('train')
ids = [example['id'].decode() for example in examples]
assert ids == [record.from_bytes(example['record']).id for example in examples]
print(json.dumps([
  ids, sorted(builder.info.splits), str(builder.info.version), builder.info.file_format.value,
  builder.info.splits['train'].num_examples,
  [m for m in sys.modules if m.split('.')[0] in ('tensorflow', 'torch', 'apache_beam')]]))
"""


def test_tfds_reads_it_without_tensorflow(made):
  root, train, _ = made
  folder = root / 'tfds' / 'my_clips' / '1.0.0'
  done = subprocess.run(
    [sys.executable, '-c', READ, str(folder)], capture_output=True, text=True, check=True
  )
  ids = [r.id for r in train]
  assert json.loads(done.stdout) == [ids, ['train', 'val'], '1.0.0', 'array_record', 11, []]
  assert sorted(os.listdir(folder.parent)) == ['1.0.0']


def test_reads_from_threads_and_processes(made):
  root, train, _ = made
  source = pickle.loads(pickle.dumps(tfds.TfdsSource('tfds:my_clips/1.0.0:train@tfds', root)))
  order = np.random.default_rng(0).integers(0, len(train), 100)
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    for i, got in zip(order, pool.map(source.__getitem__, order)):
      same(train[i], got)


@pytest.mark.parametrize(
  'spec, what',
  [
    ('tfds:my_clips:train@tfds', 'give tfds:NAME/VERSION:SPLIT@DATA_DIR'),
    ('tfds:my_clips/1.0.0:train[:10%]@tfds', 'the whole split'),
    ('tfds:clips/1.0.0:train@tfds', 'no clips/1.0.0 in .*has my_clips/1.0.0; correct'),
    ('tfds:my_clips/1.0.1:train@tfds', 'has my_clips/1.0.0; correct'),
    ('tfds:my_clips/1.0.0:train@train', 'has no datasets'),
    ('tfds:my_clips/1.0.0:test@tfds', "no split 'test'; .* has train, val"),
  ],
)
def test_a_name_of_nothing_says_what_there_is(made, spec, what):
  with pytest.raises(records.RecordError, match=what):
    records.open(spec, made[0])


@pytest.mark.parametrize(
  'change, what',
  [
    ({'name': 'My-Clips'}, "name is 'My-Clips'"),
    ({'version': '1.0'}, "version is '1.0'"),
    ({'split': 'a b'}, "split is 'a b'"),
    ({}, "has a split 'train' already"),
  ],
)
def test_what_cannot_be_written(made, change, what):
  source = records.Source(made[0] / 'train')
  arguments = {'name': 'my_clips', 'version': '1.0.0', 'split': 'train'} | change
  with pytest.raises(records.RecordError, match=what):
    tfds.write(source, made[0] / 'tfds', **arguments)


def test_a_flipped_byte_stops_the_writing_and_leaves_nothing(made, tmp_path):
  subprocess.run(['cp', '-r', made[0] / 'train', tmp_path / 'train'], check=True)
  source = records.Source(tmp_path / 'train')
  path = tmp_path / 'train' / source.manifest.shards[1]['name']
  path.write_bytes(flipped(path.read_bytes()))
  with pytest.raises(records.RecordError, match=path.name):
    tfds.write(source, tmp_path / 'tfds', 'my_clips', '1.0.0')
  assert os.listdir(tmp_path / 'tfds' / 'my_clips') == []


def test_latents_are_refused(made, tmp_path):
  source = records.Source(made[0] / 'val')
  source.manifest = dataclasses.replace(source.manifest, latents={})
  with pytest.raises(records.RecordError, match='val holds latents'):
    tfds.write(source, tmp_path / 'tfds', 'my_clips', '1.0.0')
  assert not (tmp_path / 'tfds').exists()


def flipped(data):
  data = bytearray(data)
  data[len(data) // 10] ^= 4
  return data


def test_a_damaged_dataset_says_where(made, tmp_path):
  subprocess.run(['cp', '-r', made[0] / 'tfds', tmp_path / 'tfds'], check=True)
  folder, spec = tmp_path / 'tfds' / 'my_clips' / '1.0.0', 'tfds:my_clips/1.0.0:train@tfds'
  source = records.open(spec, tmp_path)
  path = folder / source.manifest.shards[1]['name']
  whole = path.read_bytes()
  path.write_bytes(flipped(whole))
  source, bad = records.open(spec, tmp_path), 0
  for i in range(len(source)):
    try:
      source[i]
    except records.RecordError as e:
      assert f'{path.name} (index {i})' in str(e)
      bad += 1
  assert bad == 1
  path.write_bytes(whole[:-5])
  with pytest.raises(records.RecordError, match='the manifest says'):
    records.open(spec, tmp_path)
  path.write_bytes(whole)
  (folder / 'metadata.json').write_text('{}')
  with pytest.raises(records.RecordError, match='a dataset of .*, not of records'):
    records.open(spec, tmp_path)


def test_another_dataset_is_left_alone(made, tmp_path):
  subprocess.run(['cp', '-r', made[0] / 'tfds', tmp_path / 'tfds'], check=True)
  folder = tmp_path / 'tfds' / 'my_clips' / '1.0.0'
  features = (folder / 'features.json').read_text()
  (folder / 'features.json').write_text(features.replace('"record"', '"video"'))
  before = sorted(os.listdir(folder))
  with pytest.raises(records.RecordError, match='a dataset of .*video.*, not of records'):
    records.open('tfds:my_clips/1.0.0:train@tfds', tmp_path)
  with pytest.raises(records.RecordError, match='take another --name'):
    source = records.Source(made[0] / 'val')
    tfds.write(source, tmp_path / 'tfds', 'my_clips', '1.0.0', 'more')
  assert sorted(os.listdir(folder)) == before


def test_without_the_library_it_says_what_to_install(made, monkeypatch):
  monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)
  with pytest.raises(records.RecordError, match=r"pip install 'sr4\[tfds\]'"):
    records.open('tfds:my_clips/1.0.0:train@tfds', made[0])
