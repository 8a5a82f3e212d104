"""data_pipelines/loader.py: the same batches on any number of hosts, and what bad records do."""

import numpy as np
import pytest

from data_pipelines import loader
from data_pipelines import records
from sr4.core.batch import Size

SIZE = Size(5, 8, 8, 8.0, 5000)


def _record(i: int, frames: int = 5, sound: bool = True, side: int = 8) -> records.Record:
  random = np.random.default_rng(i)
  pixels = random.integers(0, 256, (frames, side, side, 3), np.uint8)
  samples = random.uniform(-0.5, 0.5, (frames * 1000, 1)).astype(np.float32)
  captions = {'short': f'short {i}', 'long': f'long {i}'}
  return records.Record(str(i), pixels, 8.0, samples if sound else None, 8000, captions)


def _text(prompts):
  codes = np.array([[sum(map(ord, p))] for p in prompts], np.float32)
  return codes[:, None], np.ones((len(prompts), 1), bool)


def _loader(folder, rows=4, seed=0, size=SIZE, channels=1, **config):
  bucket = loader.BucketConfig(('clips',), size.frames, size.height, size.width, size.fps, rows)
  data = loader.Config({'clips': bucket}, root=str(folder), **config)
  make = lambda host=0, hosts=1: loader.Loader(
    data, {'clips': size}, _text, 8000, channels, seed=seed, host=host, hosts=hosts
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
    _, _, whole = make().batch(step)
    parts = [make(host, 2).batch(step)[2] for host in range(2)]
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
  _, _, clips = _loader(folder)().batch(0)
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
  _, _, clips = _loader(tmp_path, rows=2, channels=2)().batch(0)
  assert sorted(clips.present.audio) == [False, True]
  silent = int(np.flatnonzero(~clips.present.audio)[0])
  assert not clips.samples[silent].any() and clips.present.video.all()
  np.testing.assert_array_equal(clips.samples[1 - silent, :, 0], clips.samples[1 - silent, :, 1])


def test_a_bad_record_is_replaced_and_the_shape_stays(folder, monkeypatch, capsys):
  make = _loader(folder)
  first = make().schedule.record(0, 0)
  read = loader.Folders.__getitem__

  def broken(self, index):
    if index == first:
      raise records.RecordError('torn')
    return read(self, index)

  monkeypatch.setattr(loader.Folders, '__getitem__', broken)
  _, _, clips = make().batch(0)
  assert clips.frames.shape[0] == 4 and clips.present.video.all()
  assert f'clips[{first}]: torn' in capsys.readouterr().out


def test_rows_without_any_usable_record_are_empty_and_too_many_stop_the_run(folder, monkeypatch):
  def broken(self, index):
    raise records.RecordError('torn')

  monkeypatch.setattr(loader.Folders, '__getitem__', broken)
  load = _loader(folder, rows=2)()
  _, _, clips = load.batch(0)
  assert not clips.present.video.any() and not clips.frames.any()
  with pytest.raises(RuntimeError, match=r'could not be used.*torn.*bad_share'):
    for step in range(1, 5):
      load.batch(step)


def test_captions_by_share(folder):
  seen = {}
  for name in ('short', 'long'):
    share = loader.CaptionConfig(**{'short': 0.0, name: 1.0})
    load = _loader(folder, captions=share)()
    monkey = []
    load.text = lambda prompts, said=monkey: (said.extend(prompts), _text(prompts))[1]
    load.batch(0)
    seen[name] = monkey
  assert all(p.startswith('short') for p in seen['short'])
  assert all(p.startswith('long') for p in seen['long'])


@pytest.mark.parametrize(
  'size, told',
  [
    (Size(5, 16, 8, 8.0, 5000), 'the bucket wants 5 x 16 x 8'),
    (Size(5, 8, 8, 16.0, 2500), 'at 16.0 fps'),
    (Size(9, 8, 8, 8.0, 9000), 'the bucket wants 9'),
  ],
)
def test_a_folder_that_cannot_fill_a_bucket_is_refused(folder, size, told):
  with pytest.raises(loader.DataError, match='clips') as error:
    _loader(folder, size=size)()
  assert told in str(error.value)


def test_sound_at_another_rate_is_refused(folder):
  bucket = loader.BucketConfig(('clips',), 5, 8, 8, 8.0, 4)
  data = loader.Config({'clips': bucket}, root=str(folder))
  with pytest.raises(loader.DataError, match='--sample_rate 16000'):
    loader.Loader(data, {'clips': SIZE}, _text, 16000, 1, seed=0)


def test_the_table_tells_clips_with_sound(tmp_path):
  records.write(tmp_path / 'clips', [_record(i, sound=i < 3) for i in range(8)])
  load = _loader(tmp_path)()
  line = load.table(lambda size: loader.AV(20, 30), steps=16).splitlines()[1].split()
  assert line[:5] == ['clips', '4', '100.00%', '8', '3'] and line[5] == '8.00'
