"""Records: what goes in comes out, damage is told, and a command that fails leaves nothing."""

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

from data_pipelines import ingest
from data_pipelines import media
from data_pipelines import mp4
from data_pipelines import real
from data_pipelines import records


def record(i=0, frames=9, fps=16.0, sound=True, video=True, rate=16_000):
  t, h, w = np.ogrid[:frames, :32, :32]
  x = np.stack([20 + 5 * h + t + 0 * w, 30 + 6 * w - t + 0 * h, 50 + 3 * (h + w) + t + 2 * i], -1)
  x = x.astype(np.uint8)
  n = round(frames / fps * rate)
  s = (0.3 * np.sin(np.arange(n)[:, None] * [0.05, 0.07 + i / 100])).astype(np.float32)
  return records.Record(
    f'clip-{i}',
    x if video else None,
    fps,
    s if sound else None,
    rate,
    {'caption': f'a “{i}” ✓', 'long': 'b'},
  )


def same(a, b, pixels=0, level=1 / 32768):
  assert (a.id, a.fps, a.sample_rate, a.captions) == (b.id, b.fps, b.sample_rate, b.captions)
  assert (a.has_audio, a.has_video) == (b.has_audio, b.has_video)
  if a.has_video:
    assert a.frames.shape == b.frames.shape
    assert abs(a.frames.astype(int) - b.frames).mean() <= pixels
  if a.has_audio:
    assert a.samples.shape == b.samples.shape and b.samples.dtype == np.float32
    assert abs(a.samples - b.samples).mean() <= level


@pytest.mark.parametrize(
  'kind',
  [{}, {'sound': False}, {'video': False}, {'frames': 1}, {'fps': 30_000 / 1001, 'rate': 44_100}],
)
@pytest.mark.parametrize('codec, loss', [('raw', (0, 1 / 32768)), ('mp4', (2, 0.02))])
def test_bytes_give_the_record_back(kind, codec, loss):
  want = record(**kind)
  data = records.to_bytes(want, codec)
  same(want, records.from_bytes(data), *loss)
  assert all(records.to_bytes(want, codec) == data for _ in range(8))


def test_raw_sound_is_exact():
  samples = np.arange(-32768, 32768, dtype=np.int16)[:, None]
  got = records.from_bytes(records.to_bytes(dataclasses.replace(record(), samples=samples)))
  np.testing.assert_array_equal(records.to_int16(got.samples), samples)
  loud = np.array([[1.5], [1.0], [-1.0], [-9]], np.float32)
  np.testing.assert_array_equal(records.to_int16(loud)[:, 0], [32767, 32767, -32768, -32768])


@pytest.mark.parametrize(
  'samples', [None, np.zeros((9000, 2), np.float32), np.full((9000, 2), 1e-6, np.float32)]
)
def test_a_silent_clip_has_no_audio(samples):
  got = records.from_bytes(records.to_bytes(dataclasses.replace(record(), samples=samples)))
  assert got.samples is None and not got.has_audio and got.has_video


@pytest.mark.parametrize('codec', records.CODECS)
def test_any_flipped_byte_is_found(codec):
  data = records.to_bytes(record(), codec)
  for at in (*range(16), *np.random.default_rng(0).integers(0, len(data), 200)):
    broken = bytearray(data)
    broken[at] ^= 1 << at % 8
    with pytest.raises(records.RecordError, match='checksum'):
      records.from_bytes(bytes(broken))
  for cut in (0, 3, 11, len(data) - 1):
    with pytest.raises(records.RecordError, match='checksum'):
      records.from_bytes(data[:cut])


@pytest.mark.parametrize(
  'change, codec, what',
  [
    ({}, 'avi', "codec is 'avi'"),
    ({'frames': None, 'samples': None}, 'raw', 'neither'),
    ({'frames': np.zeros((2, 4, 4, 3))}, 'raw', 'frames are float64'),
    ({'samples': np.zeros(4)}, 'raw', r'samples are float64 \[4\]'),
    ({'samples': np.full((4, 1), np.inf)}, 'raw', 'finite'),
    ({'fps': 0.0}, 'raw', 'fps 0.0'),
    ({'sample_rate': 0}, 'raw', 'sample_rate 0'),
    ({'samples': np.ones((4, 1))}, 'mp4', 'gives back round'),
  ],
)
def test_what_is_no_record_says_so(change, codec, what):
  with pytest.raises(records.RecordError, match=what):
    records.to_bytes(dataclasses.replace(record(), **change), codec)


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
  assert len(manifest.shards) > 2 and manifest.schema == 1
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
  with pytest.raises(records.RecordError, match='not empty'):
    records.write(folder, made)


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
  broken('schema version 7, this program reads 1', schema=7)
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
from tests.data_pipelines import records_test
def clips():
  yield from (records_test.record(i) for i in range(4))
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


FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
from data_pipelines import records
from tests.data_pipelines import records_test
try:
  records.write(sys.argv[1], (records_test.record(i, 60) for i in range(9)))
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


def clip(path, seconds=2.0, fps=20, sound=True, level=0.3):
  n = round(seconds * fps)
  frames = np.zeros((n, 32, 48, 3), np.uint8)
  frames += (np.arange(n) * 255 // n).astype(np.uint8)[:, None, None, None]
  tone = level * np.sin(np.arange(media.audio_length(n, fps, 16_000)) / 9)
  mp4.write(path, frames, fps, tone[:, None] if sound else None, 16_000 if sound else None)


def command(*args):
  done = subprocess.run(
    [sys.executable, '-m', 'data_pipelines.ingest', *map(str, args)],
    capture_output=True,
    text=True,
    check=False,
  )
  assert 'Traceback' not in done.stderr
  return done


SMALL = ('--height', 16, '--width', 24, '--frames', 8, '--fps', 8)


@pytest.mark.parametrize('codec', records.CODECS)
def test_command_on_a_folder(tmp_path, codec):
  folder, out = tmp_path / 'in', tmp_path / 'out'
  (folder / 'sub').mkdir(parents=True)
  clip(folder / 'a.mp4', 3.5)
  clip(folder / 'sub' / 'mute.mp4', 1, sound=False)
  clip(folder / 'zeros.mp4', 1, level=0)
  clip(folder / 'short.mp4', 0.8)
  clip(folder / 'cut.mp4', 1)
  (folder / 'cut.mp4').write_bytes((folder / 'cut.mp4').read_bytes()[:700])
  (folder / 'a.txt').write_text('a ramp\n')
  done = command('--media', folder, '--out', out, *SMALL, '--codec', codec, '--caption', 'other')
  assert done.returncode == 0, done.stderr
  source = records.Source(out)
  assert [r.id for r in source] == [
    'a.mp4#0000',
    'a.mp4#0001',
    'a.mp4#0002',
    'sub/mute.mp4#0000',
    'zeros.mp4#0000',
  ]
  assert [r.has_audio for r in source] == [True] * 3 + [False] * 2
  assert [r.captions['caption'] for r in source] == ['a ramp'] * 3 + ['other'] * 2
  assert source[1].frames.shape == (8, 16, 24, 3) and source[1].samples.shape == (16_000, 2)
  assert source[0].frames.mean() < source[1].frames.mean() < source[2].frames.mean()
  for line in (
    'files                          5',
    'clips                          5',
    'clips with sound               3',
    'skipped                        2',
    '1 broken, 1 too short',
    'seconds                     5.00',
  ):
    assert line in done.stdout
  assert 'skipped (broken): cut.mp4' in done.stderr


@pytest.mark.parametrize('form', ['csv', 'json', 'jsonl'])
def test_command_on_metadata(tmp_path, form):
  folder = tmp_path / 'in'
  folder.mkdir()
  clip(folder / 'a.mp4', 1, sound=False)
  clip(folder / 'b.mp4', 2.2, level=0.9)
  rows = [
    {'video': 'a.mp4', 'audio': 'b.mp4', 'caption': 'with sound', 'video_mask': 'm'},
    {'video': 'a.mp4', 'audio': '', 'caption': 'again, without', 'video_mask': ''},
    {'video': '', 'audio': 'b.mp4', 'caption': 'sound alone', 'video_mask': ''},
    {'video': 'none.mp4', 'audio': '', 'caption': 'gone', 'video_mask': ''},
    {'video': 'a.mp4', 'audio': '', 'caption': '', 'video_mask': ''},
  ]
  path = folder / f'metadata.{form}'
  if form == 'csv':
    path.write_text(
      'video,audio,caption,video_mask,mood\n'
      + ''.join(f'{r["video"]},{r["audio"]},"{r["caption"]}",{r["video_mask"]},x\n' for r in rows)
    )
  else:
    rows = [r | {'mood': 'x'} for r in rows]
    path.write_text(json.dumps(rows) if form == 'json' else '\n'.join(map(json.dumps, rows)))
  done = command('--media', folder if form == 'csv' else path, '--out', tmp_path / 'out', *SMALL)
  assert done.returncode == 0, done.stderr
  source = records.Source(tmp_path / 'out')
  assert [(r.id, r.has_video, r.has_audio) for r in source] == [
    ('a.mp4#0000', True, True),
    ('a.mp4~2#0000', True, False),
    ('b.mp4#0000', False, True),
    ('b.mp4#0001', False, True),
  ]
  assert source[1].captions == {'caption': 'again, without'}
  assert abs(source[2].samples - source[3].samples).max() > 0.1  # The next second of it.
  assert 'video_mask: ignored by this command' in done.stdout
  assert 'unknown columns, not stored: mood' in done.stdout
  assert '1 missing file' in done.stdout and '1 no caption' in done.stdout


def test_stride_overlaps(tmp_path):
  (tmp_path / 'in').mkdir()
  clip(tmp_path / 'in' / 'a.mp4', 2)
  done = command(
    '--media', tmp_path / 'in', '--out', tmp_path / 'out', *SMALL, '--stride', 0.25, '--caption', ''
  )
  assert done.returncode == 0 and len(records.Source(tmp_path / 'out')) == 5


@pytest.mark.parametrize(
  'files, what',
  [
    (None, 'no such file or folder'),
    ({}, 'holds no media'),
    ({'a.mp4': 'x'}, 'a.txt beside it'),
    ({'metadata.csv': 'video,captions\na,b\n'}, "Did you mean 'captions'"),
    ({'metadata.csv': 'path,caption\na,b\n'}, 'has the columns path, caption; at least one of'),
    ({'metadata.csv': 'vidoe,caption\na,b\n'}, "Did you mean 'vidoe'"),
    ({'metadata.csv': 'video,caption\n'}, 'has no rows'),
    ({'metadata.json': '[{"video": 1'}, 'not readable as json'),
    ({'metadata.json': '{"video": "a"}'}, 'a list of objects'),
    ({'metadata.csv': 'video\n', 'metadata.json': '[]'}, 'give one to --media'),
    ({'a.mp4': 'x', 'a.txt': 'x'}, 'Skipped: 1 broken'),
  ],
)
def test_wrong_input_is_one_line(tmp_path, capsys, files, what):
  folder = tmp_path / 'in'
  if files is not None:
    folder.mkdir()
    for name, text in files.items():
      (folder / name).write_text(text)
  with pytest.raises(SystemExit) as e:
    ingest.main(['--media', str(folder), '--out', str(tmp_path / 'out')])
  text = str(e.value.code)
  assert text.startswith('error: ') and '\n' not in text and what in text
  assert not (tmp_path / 'out').exists() and 'Traceback' not in capsys.readouterr().err


@pytest.mark.parametrize(
  'args, what',
  [
    (('--frames', '0'), '--frames is 0'),
    (('--stride', '-1'), '--stride is -1'),
    (('--codec', 'mp4', '--height', '63'), 'even sizes, not 63x64'),
  ],
)
def test_wrong_arguments(capsys, args, what):
  with pytest.raises(SystemExit, match='2'):
    ingest.main(['--media', 'x', '--out', 'y', *args])
  assert what in capsys.readouterr().err


def test_help_loads_no_media_library():
  code = (
    'import sys; from data_pipelines import ingest\n'
    'try: ingest.main(["--help"])\n'
    'except SystemExit: print(sorted({"av", "soxr", "jax", "grain"} & set(sys.modules)))'
  )
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert done.stdout.splitlines()[-1] == '[]'


@pytest.mark.real_media
def test_real_clips(tmp_path_factory, tmp_path):
  folder = tmp_path_factory.getbasetemp().parent / 'sr4_real_media'
  if not real.fetch(folder):
    pytest.skip('the real clips cannot be fetched here')
  ingest.main(['--media', str(folder), '--out', str(tmp_path / 'out'), '--codec', 'mp4'])
  source = records.Source(tmp_path / 'out')
  assert len(source) == 8 and source.manifest.audio == 2
  assert source[0].captions['caption'].startswith('A fat grey cartoon rabbit')
