"""Directories of records: complete or not there, damage is told, read from anywhere."""

import concurrent.futures
import dataclasses
import errno
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from data_pipelines import mp4
from data_pipelines import records
from tests.small_records import edited
from tests.small_records import record
from tests.small_records import same


@pytest.fixture(name='written', scope='module')
def _written(tmp_path_factory):
  folder = tmp_path_factory.mktemp('records') / 'a'
  made = [record(i, sound=i % 3 > 0, video=i % 4 > 0 or i % 3 == 0) for i in range(23)]
  return folder, made, records.write(folder, iter(made), shard_size=100_000)


def test_directory_and_manifest(written):
  folder, made, manifest = written
  source = records.Source(folder)
  assert source.manifest == records.load_manifest(folder) and len(source) == len(made)
  assert [r.id for r in source] == [r.id for r in made]  # By index, across shards.
  for i in (22, 0, 11):
    same(made[i], source[i])
  assert len(manifest.shards) > 2 and manifest.schema == 2
  assert manifest.count == 23 and manifest.audio == sum(r.has_audio for r in made)
  assert manifest.video == sum(r.has_video for r in made)
  assert manifest.audio_video == sum(r.has_video and r.has_audio for r in made)
  assert manifest.sizes == {'9 32 32': manifest.video} and manifest.fps == (16.0,)
  assert manifest.seconds == pytest.approx(23 * 9 / 16)
  assert sorted(os.listdir(folder)) == ['manifest.json'] + [s['name'] for s in manifest.shards]
  assert manifest.shards[0]['name'] == f'part-00000-of-{len(manifest.shards):05d}'
  for i in (-1, 23):
    with pytest.raises(IndexError, match='give 0 to 22'):
      source[i]
  assert manifest.masks == 0 and set(manifest.references.values()) == {0}
  with pytest.raises(records.RecordError, match='not empty'):
    records.write(folder, made)


def test_manifest_counts_masks_and_references(tmp_path):
  made = [record(), edited(1), edited(2), record(3)]
  few = dataclasses.replace(edited(4), mask=None, references=edited(4).references[:1])
  manifest = records.write(tmp_path / 'a', [*made, few], codec='mp4')
  assert manifest.masks == 2 and records.load_manifest(tmp_path / 'a').masks == 2
  assert manifest.references == {
    'image': 3,
    'video': 2,
    'audio': 2,
    'max image': 2,
    'max video': 2,
    'max audio': 1,
    'max sounds': 3,
    'max video frames': 9,
    'max audio samples': 9000,
  }
  source = records.Source(tmp_path / 'a')
  for want, got in zip([*made, few], source):
    same(want, got, 3, 0.02)
  meta, data = source.read(1)
  assert meta['id'] == 'clip-1' and data == records.to_bytes(made[1], 'mp4')


def test_open_joins_the_root(written):
  folder, made, _ = written
  source = records.open('a', folder.parent)
  assert isinstance(source, records.Source) and len(source) == len(made)
  assert len(records.open(str(folder))) == len(made)


def test_other_files_in_the_folder_are_left_alone(written, tmp_path):
  folder, _ = copy(written, tmp_path)
  (folder / 'dropped.jsonl').write_text('{}')
  assert len(records.Source(folder)) == 23


def test_reads_from_threads_and_processes(written):
  folder, made, _ = written
  source = pickle.loads(pickle.dumps(records.Source(folder)))
  source[3]
  source = pickle.loads(pickle.dumps(source))  # With a reader open, too.
  order = np.random.default_rng(0).integers(0, len(made), 400)
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    for i, got in zip(order, pool.map(source.__getitem__, order)):
      same(made[i], got)


def copy(written, tmp_path):
  folder = tmp_path / 'copy'
  subprocess.run(['cp', '-r', written[0], folder], check=True)
  return folder, json.loads((folder / 'manifest.json').read_text())


def test_a_flipped_byte_on_disk_names_shard_and_index(written, tmp_path):
  folder, manifest = copy(written, tmp_path)
  path, first = folder / manifest['shards'][1]['name'], manifest['shards'][0]['count']
  data = bytearray(path.read_bytes())
  data[len(data) // 10] ^= 4
  path.write_bytes(data)
  source, bad = records.Source(folder), 0
  for i in range(len(source)):
    try:
      same(written[1][i], source[i])
    except records.RecordError as e:
      bad += 1
      assert f'{path.name}, record {i - first} (index {i})' in str(e)
  assert bad == 1


def test_our_checksum_guards_where_the_shards_does_not(written, tmp_path):
  """Bytes that changed before they reached the shard."""
  folder, _ = copy(written, tmp_path)
  source = records.Source(folder)
  reader = source._reader(0)

  class Flips:
    def read(self, k):
      data = bytearray(reader.read(k)[0])
      data[-1] ^= 1
      return [bytes(data)]

  source._readers[0] = Flips()
  with pytest.raises(records.RecordError, match=r'part-00000-of-.*index 2\): the checksum'):
    source[2]


def test_damaged_directories_say_what_is_wrong(written, tmp_path):
  folder, manifest = copy(written, tmp_path)
  path = folder / 'manifest.json'

  def broken(what, **change):
    path.write_text(json.dumps(manifest | change))
    with pytest.raises(records.RecordError, match=what):
      records.Source(folder)

  broken('count is 22, but its shards hold 23', count=22)
  broken('schema version 1, this program reads 2', schema=1)
  broken('damaged', shards=5)
  broken('damaged', colour='red')
  shards = manifest['shards']
  broken('bytes, the manifest says 5', shards=[shards[0] | {'bytes': 5}, *shards[1:]])
  broken('missing', shards=[shards[0] | {'name': 'x'}, *shards[1:]])
  moved = [
    shards[0] | {'count': shards[0]['count'] + 1},
    shards[1] | {'count': shards[1]['count'] - 1},
    *shards[2:],
  ]
  path.write_text(json.dumps(manifest | {'shards': moved}))
  with pytest.raises(records.RecordError, match='it holds'):
    records.Source(folder)[0]
  path.write_text('{')
  with pytest.raises(records.RecordError, match='damaged'):
    records.Source(folder)
  path.unlink()
  with pytest.raises(records.RecordError, match=r'no manifest.json'):
    records.Source(folder)
  with pytest.raises(records.RecordError, match='no such folder'):
    records.Source(tmp_path / 'none')


def test_a_write_that_fails_leaves_nothing(tmp_path):
  def failing():
    yield from (record(i) for i in range(5))
    raise KeyError('stop')

  with pytest.raises(KeyError):
    records.write(tmp_path / 'a', failing(), shard_size=10)
  with pytest.raises(records.RecordError, match='no record'):
    records.write(tmp_path / 'a', [])
  (tmp_path / 'file').write_text('')
  with pytest.raises(OSError, match='file/a'):
    records.write(tmp_path / 'file' / 'a', [record()])
  assert os.listdir(tmp_path) == ['file']
  (tmp_path / 'a').mkdir()
  assert records.write(tmp_path / 'a', [record()]).count == 1  # An empty folder may be filled.


KILLED = """
import os, signal, sys
from data_pipelines import records
from tests import small_records
def clips():
  yield from (small_records.record(i) for i in range(4))
  os.kill(os.getpid(), signal.SIGKILL)
records.write(sys.argv[1], clips(), shard_size=10)
"""


def test_a_killed_write_is_not_taken_for_a_complete_one(tmp_path):
  done = subprocess.run([sys.executable, '-c', KILLED, str(tmp_path / 'a')], check=False)
  assert done.returncode == -9
  (left,) = os.listdir(tmp_path)
  assert left.startswith('.a.partial-')
  for folder in (tmp_path / 'a', tmp_path / left):
    with pytest.raises(records.RecordError):
      records.Source(folder)
  assert records.write(tmp_path / 'a', [record()]).count == 1
  assert os.listdir(tmp_path) == ['a']  # What the killed one left is gone.


WAITS = """
import sys
from data_pipelines import records
from tests import small_records
def clips():
  yield small_records.record()
  print('begun', flush=True)
  sys.stdin.read()
records.write(sys.argv[1], clips())
"""


def test_what_a_living_writer_fills_is_left_alone(tmp_path):
  pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'text': True}
  with subprocess.Popen([sys.executable, '-c', WAITS, str(tmp_path / 'a')], **pipes) as other:
    assert other.stdout.readline() == 'begun\n'
    (theirs,) = os.listdir(tmp_path)
    (tmp_path / '.b.partial-0').mkdir()  # Of another folder.

    def failing():
      yield record()
      raise KeyError

    with pytest.raises(KeyError):
      records.write(tmp_path / 'a', failing())
    assert sorted(os.listdir(tmp_path)) == sorted([theirs, '.b.partial-0'])
    other.stdin.close()
  assert other.returncode == 0 and len(records.Source(tmp_path / 'a')) == 1


FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
from data_pipelines import records
from tests import small_records
try:
  records.write(sys.argv[1], (small_records.record(i, 60) for i in range(9)))
except OSError as e:
  print(e.errno, e.filename)
"""


def test_a_disk_that_fills_up_leaves_nothing(tmp_path):
  done = subprocess.run(
    [sys.executable, '-c', FULL, str(tmp_path / 'a')], check=True, capture_output=True, text=True
  )
  assert done.stdout.split() == [str(errno.EIO), str(tmp_path / 'a')]
  assert not os.listdir(tmp_path)


@pytest.mark.skipif(os.getuid() != 0, reason='only root may mount a small disk')
def test_a_small_disk_that_is_really_full(tmp_path):
  disk = tmp_path / 'disk'
  disk.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=300k', 'tmpfs', str(disk)]
  if subprocess.run(mount, capture_output=True, check=False).returncode:
    pytest.skip('a small disk cannot be mounted here')
  try:
    with pytest.raises(OSError, match='disk/a') as e:
      records.write(disk / 'a', (record(i, 60) for i in range(9)))
    assert e.value.errno == errno.ENOSPC and not os.listdir(disk)
    noise = np.random.default_rng(0).integers(0, 256, (60, 64, 64, 3), np.uint8)
    with pytest.raises(OSError, match='disk/a.mp4') as e:
      mp4.write(disk / 'a.mp4', noise, 16, crf=4)
    assert e.value.errno == errno.ENOSPC and not os.listdir(disk)
  finally:
    subprocess.run(['umount', str(disk)], check=True)
