"""Latents made ahead: the same batches, whole after a kill, refused where they are stale."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import jax
import ml_collections
import numpy as np
import pytest

from data_pipelines import factory
from data_pipelines import loader
from data_pipelines import records
from data_pipelines import tasks
from data_pipelines import units
from sr4.convert import weights
from sr4.core import config as config_lib
from sr4.core import sharding
from sr4.core import tree
from sr4.core.av import AV
from sr4.core.prompt import Prompt
from sr4.flow import conditioning
from sr4.models import system as system_lib
from sr4.training import data
from sr4.training import loop
from sr4.training import metrics
from tests import small_run
from tests import small_text

COUNT = 11
FRAMES = 5, 5, 12, 5, 5, 11, 5, 5, 5, 5, 5  # Two of them are two clips.


def _record(i: int, references=()) -> records.Record:
  random = np.random.default_rng(i)
  pixels = random.integers(0, 256, (FRAMES[i], 16, 16, 3), np.uint8)
  samples = random.uniform(-0.5, 0.5, (FRAMES[i] * 1000, 1)).astype(np.float32)
  texts = {'short': f'a red circle {i}', 'long': f'a long one {i}'}
  heard = samples if i != 3 else None
  return records.Record(str(i), pixels, 8.0, heard, 8000, texts, references=references)


def _pictured(i: int) -> records.Record:
  random = np.random.default_rng(100 + i)
  picture = lambda t: random.integers(0, 256, (t, 16, 16, 3), np.uint8)
  found = [records.Reference('image', picture(1), None) for _ in range(1 + i % 2)]
  if i % 3:
    found.append(records.Reference('video', picture(9), None))
  voice = random.uniform(-0.5, 0.5, (3000, 1)).astype(np.float32)
  found.append(records.Reference('audio', None, voice))
  made = _record(i, tuple(found))
  named = ' '.join(records.record_lib.names(made.references))
  return dataclasses.replace(made, captions={'short': f'{named} in a circle'})


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  path = tmp_path_factory.mktemp('encode')
  records.write(path / 'clips', map(_record, range(COUNT)))
  records.write(path / 'pictured', map(_pictured, range(COUNT)))
  config = small_run.config(path, steps=4)
  factory.run(config, 'clips', str(path / 'made'), unit=4)
  return path, config


def changed(config, **bucket) -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict(config.to_dict())
  config.data.buckets.clips.update(bucket)
  return config


def visible(batch):
  """A batch with zeros where nobody looks: padding of prompts and of references."""
  cond = batch.cond

  def one(segment):
    if segment.generated:
      return segment
    rows, length = segment.known.shape[:2]
    seen = segment.valid.reshape(rows, length, -1)[:, :, 0]
    seen = seen.reshape(rows, length, *(1,) * (segment.known.ndim - 2))
    return dataclasses.replace(segment, known=np.where(seen, segment.known, 0))

  segments = AV(*(of and tuple(map(one, of)) for of in cond.segments))
  text = np.where(cond.text_valid[..., None], cond.text, 0)
  return dataclasses.replace(batch, cond=dataclasses.replace(cond, segments=segments, text=text))


def batches(config, system, seed: int = 0):
  """Batches of some steps."""
  load = data.make_loader(config, system, seed)
  size = load.schedule.buckets[0].size

  @jax.jit
  def batch(system, clips):
    clips = system.embedded(clips)
    return conditioning.encode(system.codecs, size, system.config.patch, clips)

  with jax.set_mesh(sharding.make_mesh(jax.devices()[:1])):
    system = weights.load(system)
    clips = (sharding.rows(load.batch(step)[2]) for step in range(4))
    return [visible(jax.device_get(batch(system, x))) for x in clips]


def alike(ahead, now):
  near = lambda a, b: np.testing.assert_allclose(
    np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=0.01, atol=0.02
  )
  jax.tree.map(near, ahead, now)


def test_clips_end_to_end_and_what_the_manifest_says(home):
  path, _ = home
  source = records.open('latents:made', str(path))
  assert [x.id for x in source] == ['0', '1', '2', '2+1', '3', '4', '5', '5+1', *'6789', '10']
  manifest = source.manifest
  assert (manifest.count, manifest.video, manifest.audio, manifest.audio_video) == (13, 13, 12, 12)
  assert manifest.sizes == {'5 16 16': 13} and manifest.codec == 'latents'
  assert manifest.seconds == 13 * 0.625 and len(manifest.shards) == 3
  one = source[0]
  assert one.latents.video.shape == (2, 4, 4, 16) and one.latents.video.dtype == 'bfloat16'
  assert one.captions == {'short': 'a red circle 0'} and source[4].latents.audio is None
  assert not os.path.exists(path / 'made.units')


@pytest.mark.parametrize('named', [None, {'t2av': 1, 't2v': 1}, {'i2v': 1, 'extend': 1}])
def test_batches_are_those_of_the_media(home, named):
  """Of records that are one clip each: a longer one is cut anywhere when it is read as media."""
  path, config = home
  records_of = lambda folder: changed(config, records=(folder,), tasks=named or {})
  short = path / 'short'
  if not short.exists():
    records.write(short, (_record(i) for i in range(COUNT) if FRAMES[i] == 5))
    factory.run(records_of('short'), 'clips', str(path / 'short_made'), unit=4)
  system = system_lib.build(config)
  alike(*(batches(records_of(name), system) for name in ('latents:short_made', 'short')))


TASKS = {'image_ref': 1, 'video_ref': 1, 'audio_ref': 1, 't2v': 1}
SLOTS = dict(reference_images=2, reference_frames=9, reference_seconds=0.5)


def test_references_and_what_an_encoder_sees_of_them(tmp_path):
  """Pictures are shown to the encoder where the task shows them, and nowhere else."""
  short = [i for i in range(COUNT) if FRAMES[i] == 5 and i % 3]
  records.write(tmp_path / 'pictured', map(_pictured, short))
  small_text.write(tmp_path / 'qwen')
  config = small_run.config(tmp_path)
  config.text = ml_collections.ConfigDict(
    small_text.FIELDS | dict(name='qwen3-vl-8b', weights=str(tmp_path / 'qwen'))
  )
  config = changed(config, records=('pictured',), tasks=TASKS, rows=8, **SLOTS)
  factory.run(config, 'clips', str(tmp_path / 'made'))
  made = records.open('latents:made', str(tmp_path))
  views = {view for x in made for view in x.text['short']}
  assert views == {('image', 'video'), ('image',), ()}
  system = system_lib.build(config)
  ahead = batches(changed(config, records=('latents:made',)), system)
  now = batches(config, system)
  alike(ahead, now)
  assert len({row.tobytes() for row in now[0].cond.text_valid}) > 1


def _large(i: int) -> records.Record:
  made = _record(i)
  pixels = np.random.default_rng(i).integers(0, 256, (9, 32, 32, 3), np.uint8)
  return dataclasses.replace(made, frames=pixels, samples=None)


CASCADE = {
  'a base model, which makes two frames larger': (
    dict(frames=9, keyframes=3, keyframe_scale=2, tasks={'t2v': 1, 'i2v': 1}),
    {},
  ),
  'a Refiner': (
    dict(frames=9, height=32, width=32, sound=False, tasks={'t2v': 1, 'i2v': 1, 'inpaint': 2})
    | dict(low=dict(frames=5, height=16, width=16, keyframes=2, degrade=0.0)),
    dict(audio=False),
  ),
}


@pytest.mark.parametrize('name', CASCADE)
def test_both_models_of_a_cascade(name, tmp_path, monkeypatch):
  """Where all latents have keyframes, and nothing is degraded, nothing is drawn for good."""
  monkeypatch.setattr(tasks, 'NO_KEYFRAMES', 0.0)
  bucket, model = CASCADE[name]
  records.write(tmp_path / 'large', map(_large, range(8)))
  config = changed(small_run.config(tmp_path), records=('large',), **bucket)
  config.model.update(model)
  factory.run(config, 'clips', str(tmp_path / 'made'))
  coded = records.open('latents:made', str(tmp_path))[0]
  assert (
    coded.latents.keyframes.shape[1:3] == (8, 8) and coded.at.tolist() == [0, 4, 8][: len(coded.at)]
  )
  system = system_lib.build(config)
  ahead = batches(changed(config, records=('latents:made',)), system)
  now = batches(config, system)
  alike(ahead, now)
  known = [np.asarray(x.cond.segments.video[-1].mask) for x in now]
  assert any(x.any() for x in known) and not all(x.all() for x in known)


def test_what_a_cascade_draws_is_drawn_once_for_a_record(tmp_path):
  bucket, model = CASCADE['a Refiner']
  records.write(tmp_path / 'large', map(_large, range(8)))
  config = changed(small_run.config(tmp_path), records=('large',), **bucket)
  config.model.update(model)
  config.data.buckets.clips.low.update(keyframes=1, degrade=1.0)
  for name, rows in (('one', 8), ('two', 16)):
    factory.run(config, 'clips', str(tmp_path / name), rows=rows)
  one, two = (list(records.Source(tmp_path / name)) for name in ('one', 'two'))
  near = lambda a, b: np.testing.assert_allclose(np.float32(a), np.float32(b), atol=0.02)
  for a, b in zip(one, two):
    near(a.latents.low, b.latents.low)
    assert a.at == b.at
  assert len({int(x.at[0]) for x in one}) > 1
  refused = changed(config, records=('latents:one',), tasks={'edit': 1})
  with pytest.raises(loader.DataError, match="task 'edit' hides a part.*inpaint"):
    data.make_loader(refused, system_lib.build(config), 0)


def test_a_run_on_latents_has_no_other_weights(home, tmp_path, monkeypatch):
  """It trains; neither encoder nor vocoder are read, and of the VAE steps hold black latents."""
  path, config = home
  small_text.write(tmp_path / 'qwen')
  config = ml_collections.ConfigDict(config.to_dict())
  config.text = ml_collections.ConfigDict(
    small_text.FIELDS | dict(name='qwen3-vl-8b', weights=str(tmp_path / 'qwen'))
  )
  config.video_codec = ml_collections.ConfigDict(
    dict(name='wan2.1', weights='random', width=8, channels=4, mean=(0.0,) * 4, std=(1.0,) * 4)
  )
  factory.run(config, 'clips', str(tmp_path / 'made'))
  config = changed(config, records=('latents:made',), tasks={'i2v': 1})
  config.data.root, given = str(tmp_path), []
  records.write(tmp_path / 'clips', records.open('clips', str(path)))
  loaded = weights.load(system_lib.build(config))
  assert all(map(jax.tree.leaves, (loaded.text, loaded.codecs.video)))
  train = loop.train
  monkeypatch.setattr(
    loop, 'train', lambda c, ready, *args: given.append(ready.given[0]) or train(c, ready, *args)
  )
  monkeypatch.setattr(weights, 'text', lambda like: pytest.fail('the encoder is loaded'))
  config.validate = ml_collections.ConfigDict(dict(every=2, batches=1, root=str(tmp_path)))
  loop.run(config, str(tmp_path / 'run'), progress=False)
  held = {name: x.shape for name, x in tree.to_flat(given[0]).items()}
  assert list(held) == ['codecs.video.blacks.5 16 16']
  rows = metrics.read(str(tmp_path / 'run' / 'metrics.jsonl'))
  losses = [row['loss'] for row in rows if 'loss' in row]
  assert len(losses) == 4 and np.all(np.isfinite(losses))


def test_statistics_are_those_of_the_latents(home):
  path, _ = home
  told = json.loads((path / 'made' / factory.STATISTICS).read_text())
  source = records.open('latents:made', str(path))
  for name, length in (('video', 2 * 4 * 4), ('audio', 20)):
    found = [getattr(x.latents, name) for x in source]
    x = np.concatenate([y.reshape(-1, y.shape[-1]) for y in found if y is not None])
    assert told[name]['count'] == len(x) and len(x) % length == 0
    x = x.astype(np.float64)
    np.testing.assert_allclose(told[name]['mean'], x.mean(0), atol=2e-3)
    np.testing.assert_allclose(told[name]['std'], x.std(0), rtol=0.01, atol=1e-3)


def same_records(a, b):
  one, two = (records.Source(x) for x in (a, b))
  assert len(one) == len(two)
  for i in range(len(one)):
    assert one.read(i)[1] == two.read(i)[1]
  files = lambda x: json.loads((x / factory.STATISTICS).read_text())
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7), files(a), files(b)
  )


def test_a_kill_costs_one_unit_and_nothing_is_made_twice(home, tmp_path):
  path, config = home
  small_run.write_config(tmp_path / 'config.py', config)
  command = [sys.executable, '-m', 'data_pipelines.encode', '--config', tmp_path / 'config.py']
  command += ['--bucket', 'clips', '--out', tmp_path / 'made', '--unit', '1']
  first = tmp_path / 'made.units' / 'unit-000002.facts'
  process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
  while not first.exists():
    assert process.poll() is None, process.communicate()[0]
    time.sleep(0.002)
  process.send_signal(signal.SIGKILL)
  process.wait()
  done = [path.stem for path in (tmp_path / 'made.units').glob('unit-*.facts')]
  assert 3 <= len(done) < COUNT and not (tmp_path / 'made').exists()
  (tmp_path / 'kept').mkdir()
  for name in done:  # Hard links keep their inodes in use.
    os.link(tmp_path / 'made.units' / name, tmp_path / 'kept' / name)
  out = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout
  assert f'{len(done)} of 11 units are done' in out and '13 clips' in out
  inodes = lambda folder, names: {path.stat().st_ino for path in folder.glob(names)}
  assert inodes(tmp_path / 'kept', 'unit-*') <= inodes(tmp_path / 'made', 'part-*')
  same_records(tmp_path / 'made', path / 'made')


def test_each_process_takes_its_share_and_the_last_joins_them(home, tmp_path, monkeypatch, capsys):
  path, config = home
  out = tmp_path / 'made'
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  for process in (1, 0):
    assert not out.exists()
    monkeypatch.setattr(jax, 'process_index', lambda process=process: process)
    factory.run(config, 'clips', str(out), unit=2)
  told = capsys.readouterr().out
  assert '3 of 6 units are not done' in told and '13 clips' in told
  same_records(out, path / 'made')


def test_several_clips_at_a_time_are_the_same(home, tmp_path):
  path, config = home
  factory.run(config, 'clips', str(tmp_path / 'made'), rows=16)
  one, two = (records.Source(x) for x in (tmp_path / 'made', path / 'made'))
  for a, b in zip(one, two):
    assert a.id == b.id
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(*(np.float32(z) for z in (x, y)), atol=0.02),
      a.latents,
      b.latents,
    )


@pytest.mark.parametrize(
  'section, change, told',
  [
    ('video_codec', dict(channels=12), 'another video codec'),
    ('audio_codec', dict(bands=16), 'another audio codec'),
    ('text', dict(tokens=9), 'another text encoder'),
    ('bucket', dict(frames=9), 'frames 5 for 9'),
    ('bucket', dict(reference_images=1), 'reference_images 0 for 1'),
    ('captions', dict(long=1.0), 'no long captions'),
  ],
)
def test_stale_latents_are_refused(home, section, change, told):
  _, config = home
  config = changed(config, records=('latents:made',))
  if section == 'bucket':
    config.data.buckets.clips.update(change)
  elif section == 'captions':
    config.data.captions = ml_collections.ConfigDict(change)
  else:
    config[section].update(change)
  with pytest.raises(records.RecordError, match=f'{told}.*stale; make them anew'):
    data.make_loader(config, system_lib.build(config), 0)


def test_tasks_that_need_pixels_are_refused(home):
  _, config = home
  config = changed(config, records=('latents:made',), tasks={'inpaint': 1})
  with pytest.raises(loader.DataError, match="task 'inpaint' hides a part.*records of media"):
    data.make_loader(config, system_lib.build(config), 0)


def test_names_say_what_a_folder_holds(home):
  path, _ = home
  with pytest.raises(records.RecordError, match='holds latents; write its name as latents:made'):
    records.open('made', str(path))
  with pytest.raises(records.RecordError, match='holds media; write its name as'):
    records.open('latents:clips', str(path))
  with pytest.raises(config_lib.ConfigError, match=r'all are latents:\.\.\. or none is'):
    config_lib.build(loader.BucketConfig, dict(records=('a', 'latents:b'), rows=4), 'bucket')


def test_work_of_another_config_is_not_gone_on_with(home, tmp_path):
  path, config = home
  units.Units(tmp_path / 'made', {'made': 1, 'unit': 64}, 3)
  with pytest.raises(
    records.RecordError, match='begun with another captions, kinds, made, records'
  ):
    factory.run(config, 'clips', str(tmp_path / 'made'))
  with pytest.raises(records.RecordError, match='made exists; it is done, or remove it'):
    factory.run(config, 'clips', str(path / 'made'))


def test_what_cannot_be_is_told_before_any_work(home, tmp_path):
  _, config = home
  out = str(tmp_path / 'made')
  for bucket, change, told in (
    ('other', {}, '--bucket=other is not among clips'),
    ('clips', dict(records=('latents:made',)), 'are latents; name the media'),
    ('clips', dict(height=32), 'the bucket wants'),
  ):
    with pytest.raises((config_lib.ConfigError, loader.DataError), match=told):
      factory.run(changed(config, **change), bucket, out)
  with pytest.raises(config_lib.ConfigError, match='give --out DIR, or config.text.cache'):
    factory.run(config, 'clips', None)
  for name, value in (('rows', -8), ('unit', 0), ('threads', 0)):
    with pytest.raises(config_lib.ConfigError, match=f'--{name}={value} must be 1 or more'):
      factory.run(config, 'clips', out, **{name: value})
  assert not os.path.exists(out)


def test_a_record_that_does_not_fit_is_left_out_and_told(home, tmp_path, capsys):
  _, config = home
  odd = dataclasses.replace(_record(1), fps=4.0, samples=None)
  records.write(tmp_path / 'clips', [_record(0), odd, _record(3)])
  config = ml_collections.ConfigDict(config.to_dict())
  config.data.root = str(tmp_path)
  factory.run(config, 'clips', str(tmp_path / 'made'))
  told = capsys.readouterr().out
  assert 'left out: record 1: (16, 16) at 4 fps, but the bucket is' in told
  assert [x.id for x in records.Source(tmp_path / 'made')] == ['0', '3']


def test_a_record_that_a_cache_leaves_out_is_told(home, tmp_path, capsys):
  _, config = home
  odd = dataclasses.replace(_record(1), fps=4.0, samples=None)
  records.write(tmp_path / 'clips', [_record(0), odd])
  small_text.write(tmp_path / 'qwen')
  config = changed(config)
  config.data.root = str(tmp_path)
  config.text = ml_collections.ConfigDict(
    small_text.FIELDS
    | dict(name='qwen3-vl-8b', weights=str(tmp_path / 'qwen'), cache=str(tmp_path / 'cache'))
  )
  factory.run(config, 'clips', None)
  assert 'left out: record 1: (16, 16) at 4 fps' in capsys.readouterr().out


def test_a_cache_of_embeddings_serves_training_on_media(home, tmp_path):
  """The run needs no weights of the encoder: it reads them from the folder."""
  _, config = home
  small_text.write(tmp_path / 'qwen')
  config = changed(config)
  config.text = ml_collections.ConfigDict(
    small_text.FIELDS
    | dict(name='qwen3-vl-8b', weights=str(tmp_path / 'qwen'), cache=str(tmp_path / 'cache'))
  )
  config.preview.prompts = ('a blue square',)
  factory.run(config, 'clips', None)
  system = system_lib.build(config)
  assert not jax.tree.leaves(system.text)
  asked = [Prompt('a blue square'), Prompt('')]  # What previews ask for.
  assert all(system.text.find(prompt) is not None for prompt in asked)
  bare = changed(config)
  del bare.text['cache']
  alike(batches(config, system), batches(bare, system_lib.build(bare)))
