"""data_pipelines/loader.py: the same batches on any number of hosts, and what bad records do."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from data_pipelines import loader
from data_pipelines import records
from sr4.core.av import AV
from sr4.core.batch import Size

SIZE = Size(5, 8, 8, 8.0, 5000)


def _record(i: int, frames: int = 5, sound: bool = True, side: int = 8) -> records.Record:
  random = np.random.default_rng(i)
  pixels = random.integers(0, 256, (frames, side, side, 3), np.uint8)
  samples = random.uniform(-0.5, 0.5, (frames * 1000, 1)).astype(np.float32)
  captions = {'short': f'short {i}', 'long': f'long {i}'}
  return records.Record(str(i), pixels, 8.0, samples if sound else None, 8000, captions)


def _text(prompts, size):
  codes = np.array([[sum(map(ord, p.text))] for p in prompts], np.float32)
  return codes[:, None], np.ones((len(prompts), 1), bool)


def _loader(folder, rows=4, seed=0, size=SIZE, channels=1, tasks=None, dropped=None, **config):
  bucket = loader.BucketConfig(
    ('clips',), rows, size.frames, size.height, size.width, size.fps, tasks=tasks or {}
  )
  data = loader.Config({'clips': bucket}, root=str(folder), **config)
  make = lambda parts=(0,), of=1: loader.Loader(
    data,
    {'clips': size},
    _text,
    8000,
    channels,
    4,
    seed=seed,
    parts=parts,
    of=of,
    dropped=dropped,
  )
  return make


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('loader')
  records.write(path / 'clips', (_record(i, frames=5 + 2 * (i % 2)) for i in range(10)))
  return path


def test_hosts_share_what_one_host_sees(folder):
  make = _loader(folder)
  for step in (0, 3, 17):
    whole = make().batch(step)[2]
    parts = [make((part,), 2).batch(step)[2] for part in range(2)]
    for name in ('frames', 'samples', 'text'):
      joined = np.concatenate([getattr(part, name) for part in parts])
      np.testing.assert_array_equal(joined, getattr(whole, name))


def test_iterating_is_seeking(folder):
  make = _loader(folder, threads=2)
  for start in (0, 7):
    for step, bucket, clips in make()(start, 12):
      np.testing.assert_array_equal(clips.frames, make().batch(step)[2].frames)
      assert bucket == 0
    assert step == 11


def test_shapes_and_a_long_clip_cropped_in_time_with_its_sound(folder):
  clips = _loader(folder)().batch(0)[2]
  assert clips.frames.shape == (4, 5, 8, 8, 3) and clips.frames.dtype == np.uint8
  assert clips.samples.shape == (4, 5000, 1) and clips.samples.dtype == np.float32
  assert clips.present.video.all() and clips.present.audio.all()
  source = records.Source(folder / 'clips')
  for frames, samples in zip(clips.frames, clips.samples):
    found = [
      (record, start)
      for record in source
      for start in range(len(record.frames) - 4)
      if np.array_equal(record.frames[start : start + 5], frames)
    ]
    ((record, start),) = found
    heard = record.samples[start * 1000 :][:5000]
    np.testing.assert_array_equal(samples[: len(heard)], heard)


def test_a_silent_clip_is_not_present_and_stereo_is_made_of_mono(tmp_path):
  records.write(tmp_path / 'clips', [_record(0), _record(1, sound=False)])
  clips = _loader(tmp_path, rows=2, channels=2)().batch(0)[2]
  assert sorted(clips.present.audio) == [False, True]
  silent = int(np.flatnonzero(~clips.present.audio)[0])
  assert not clips.samples[silent].any() and clips.present.video.all()
  np.testing.assert_array_equal(clips.samples[1 - silent, :, 0], clips.samples[1 - silent, :, 1])


def test_a_bad_record_is_replaced_written_down_and_the_shape_stays(folder, monkeypatch, tmp_path):
  make = _loader(folder, dropped=str(tmp_path / 'dropped.jsonl'))
  first = make().schedule.record(0, 0)
  read = loader.Folders.__getitem__

  def broken(self, index):
    if index == first:
      raise records.RecordError('torn')
    return read(self, index)

  monkeypatch.setattr(loader.Folders, '__getitem__', broken)
  ((_, _, clips),) = make()(0, 1)
  assert clips.frames.shape[0] == 4 and clips.present.video.all()
  (line,) = (tmp_path / 'dropped.jsonl').read_text().splitlines()
  assert json.loads(line) == {'step': 0, 'reason': f'clips[{first}] for t2av: torn'}


def test_rows_without_any_usable_record_are_empty_and_too_many_stop_the_run(folder, monkeypatch):
  def broken(self, index):
    raise records.RecordError('torn')

  monkeypatch.setattr(loader.Folders, '__getitem__', broken)
  load = _loader(folder, rows=2)()
  clips = load.batch(0)[2]
  assert not clips.present.video.any() and not clips.frames.any()
  with pytest.raises(loader.DataError, match=r'could not be used.*torn.*bad_share'):
    for _ in load(0, 5):
      pass


def test_the_share_that_may_be_bad(folder):
  """A tenth here; and ten of any number, so that the first rows end no run."""
  load = _loader(folder, bad_share=0.1)()
  load.count(0, 10, ('torn',) * 10)
  load.count(1, 100, ('torn',))
  load.count(2, 90, ('torn',) * 9)  # 20 of 200
  with pytest.raises(loader.DataError, match='^21 of 200 records could not be used, the last: x'):
    load.count(3, 0, ('x',))


def test_captions_by_share(folder):
  seen = {}
  for name in ('short', 'long'):
    share = loader.CaptionConfig(**{'short': 0.0, name: 1.0})
    load = _loader(folder, captions=share)()
    monkey = []
    load.read = lambda prompts, _, said=monkey: (said.extend(prompts), _text(prompts, _))[1]
    load.batch(0)
    seen[name] = monkey
  assert seen['short'] and all(p.text.startswith('short') for p in seen['short'])
  assert seen['long'] and all(p.text.startswith('long') for p in seen['long'])


def test_captions_are_mixed_by_their_shares(folder):
  load, said = _loader(folder, captions=loader.CaptionConfig(short=0.25, long=0.75))(), []
  load.read = lambda prompts, _: (said.extend(prompts), _text(prompts, _))[1]
  for step in range(100):
    load.batch(step)
  short = sum(p.text.startswith('short') for p in said)
  assert len(said) >= 400 and abs(short / len(said) - 0.25) < 0.07  # Three deviations of 400.


@pytest.mark.parametrize(
  'size, told',
  [
    (Size(5, 16, 8, 8.0, 5000), 'the bucket wants 5 x 16 x 8'),
    (Size(5, 8, 8, 16.0, 2500), 'at 16 fps'),
    (Size(9, 8, 8, 8.0, 9000), 'the bucket wants 9'),
  ],
)
def test_a_folder_that_cannot_fill_a_bucket_is_refused(folder, size, told):
  with pytest.raises(loader.DataError, match='clips') as error:
    _loader(folder, size=size)()
  assert told in str(error.value)


def test_sound_at_another_rate_is_refused(folder):
  bucket = loader.BucketConfig(('clips',), 4, 5, 8, 8, 8.0)
  data = loader.Config({'clips': bucket}, root=str(folder))
  with pytest.raises(loader.DataError, match='--sample_rate 16000'):
    loader.Loader(data, {'clips': SIZE}, _text, 16000, 1, 4, seed=0)


def test_the_table_has_a_line_for_each_modality(tmp_path):
  records.write(tmp_path / 'clips', [_record(i, sound=i < 3) for i in range(8)])
  load = _loader(tmp_path)()
  video, audio = load.table(lambda size: AV(20, 30), steps=16, devices=2).splitlines()[1:]
  assert video.split() == ['clips', '100.0%', 'video', '8', '8.00', '20', '40', 't2av', '1']
  assert audio.split() == ['clips', '100.0%', 'audio', '3', '8.00', '30', '60']


def test_worker_processes_give_the_same_batches(folder):
  here = list(_loader(folder)()(2, 6))
  there = list(_loader(folder, workers=2)()(2, 6))
  assert [step for step, _, _ in there] == [2, 3, 4, 5]
  for (_, _, a), (_, _, b) in zip(here, there):
    jax.tree.map(np.testing.assert_array_equal, a, b)


HOST = """
import hashlib, json, sys
import numpy as np
from tests.data_pipelines import loader_test

folder, host, hosts, workers, start, stop = json.loads(sys.argv[1])
tasks = {'t2av': 8, 'i2v': 1, 'edit': 1}
load = loader_test._loader(folder, rows=8, tasks=tasks, workers=workers)((host,), hosts)
rows = []
for step, bucket, clips in load(start, stop):
  arrays = [clips.frames, clips.samples, clips.known, clips.text, *clips.present]
  digest = lambda i: hashlib.sha256(b''.join(a[i].tobytes() for a in arrays)).hexdigest()
  rows.append([step, [digest(i) for i in range(len(clips.frames))]])
print(json.dumps(rows))
"""


def _hosts(folder, hosts, start, stop, workers=0):
  """{step: digests of the rows of the global batch}, each host in a process of its own."""
  ask = lambda host: json.dumps([str(folder), host, hosts, workers, start, stop])
  started = [
    subprocess.Popen([sys.executable, '-c', HOST, ask(host)], stdout=subprocess.PIPE, text=True)
    for host in range(hosts)
  ]
  told = [json.loads(process.communicate(timeout=120)[0]) for process in started]
  return {step: [row for rows in told for row in rows[i][1]] for i, (step, _) in enumerate(told[0])}


def test_1_2_4_and_8_hosts_see_one_sequence_and_go_on_with_it(folder):
  """Real processes.  Another number of hosts at a resume continues where the others were."""
  alone = _hosts(folder, 1, 0, 6)
  assert [len(rows) for rows in alone.values()] == [8] * 6
  assert (
    _hosts(folder, 2, 0, 2, workers=1) | _hosts(folder, 4, 2, 4) | _hosts(folder, 8, 4, 6) == alone
  )


def test_one_percent_of_corrupt_records(tmp_path, capsys):
  """Bytes on disk: no shape changes, nothing stops, every one of them is written down."""
  count = 300
  manifest = records.write(
    tmp_path / 'clips', (_record(i) for i in range(count)), shard_size=1 << 16
  )
  source, bad = records.Source(tmp_path / 'clips'), {17, 101, 299}
  pixels = [source[index].frames[0].tobytes() for index in bad]
  for shard in manifest.shards:
    path = tmp_path / 'clips' / shard['name']
    data = bytearray(path.read_bytes())
    for place in filter(lambda at: at >= 0, map(data.find, pixels)):
      data[place] ^= 1
    path.write_bytes(data)
  load = _loader(tmp_path, rows=10, dropped=str(tmp_path / 'dropped.jsonl'))()
  shapes = {clips.frames.shape for _, _, clips in load(0, 30)}
  assert shapes == {(10, 5, 8, 8, 3)} and load.seen == 300 and load.bad >= 3
  told = [json.loads(line)['reason'] for line in (tmp_path / 'dropped.jsonl').open()]
  assert len(told) == load.bad
  assert {int(why.partition('[')[2].partition(']')[0]) for why in told} == bad


def test_a_silent_record_gives_way_where_sound_is_given_and_is_no_bad_one(tmp_path):
  records.write(tmp_path / 'clips', (_record(i, sound=i % 2 == 0) for i in range(40)))
  size = Size(5, 8, 8, 8.0, 5000)
  load = _loader(tmp_path, rows=5, size=size, tasks={'v2a': 1})()
  heard = [clips.present.audio.all() for _, _, clips in load(0, 4)]
  assert heard == [True] * 4 and load.seen == 20 and not load.bad
  records.write(tmp_path / 'silent' / 'clips', (_record(i, sound=False) for i in range(4)))
  with pytest.raises(loader.DataError, match="'v2a' needs records with frames and sound"):
    _loader(tmp_path / 'silent', size=size, tasks={'v2a': 1})()


def test_every_batch_of_a_bucket_has_the_same_fields(folder):
  """A batch whose rows happen to have no mask is the same program as one whose rows do."""
  size = Size(5, 8, 8, 8.0, 5000)
  load = _loader(folder, rows=1, size=size, tasks={'t2av': 1, 'edit': 1, 'a2v': 1, 'i2v': 1})()
  shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), load.batch(i)[2]) for i in range(12)]
  assert all(shape == shapes[0] for shape in shapes)
  assert shapes[0].known == ((1, 5, 8, 8), bool) and shapes[0].clean.audio == ((1,), bool)
  assert {load.schedule.task(0, i) for i in range(12)} == {'t2av', 'edit', 'a2v', 'i2v'}


@pytest.mark.parametrize(
  'task, told',
  [
    ('t2x', "'t2x' is not among"),
    ('image_ref', 'reference_images above 0'),
    ('t2i', 'frames=1'),
    ('t2a', 'frames=0'),
  ],
)
def test_a_task_that_the_bucket_cannot_do_is_refused(folder, task, told):
  with pytest.raises(loader.DataError, match="bucket 'clips'") as error:
    _loader(folder, tasks={task: 1})()
  assert told in str(error.value)
