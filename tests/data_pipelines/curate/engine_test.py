"""The engine: each file ends in one of two tables, whatever is wrong with it."""

import dataclasses
import io
import json
import os
import zlib

import av
import numpy as np
import pytest

from data_pipelines import entries
from data_pipelines import media
from data_pipelines import mp4
from data_pipelines import real
from data_pipelines.curate import __main__ as command
from data_pipelines.curate import engine
from data_pipelines.curate import rules
from data_pipelines.curate import tables

RATE = 16_000
SCORERS = """
class Sounds:
  provides = ('audio_class', 'embedding', 'caption')
  reads = {'rate': 8000}

  def __call__(self, excerpt):
    if excerpt.samples is None:
      return dict.fromkeys(self.provides)
    assert excerpt.sample_rate == 8000
    high = abs(excerpt.samples[1:] - excerpt.samples[:-1]).mean() > 0.05
    return {'audio_class': 'effect' if high else 'speech', 'embedding': [1.0, float(high)],
            'caption': 'a hiss' if high else None}

class Broken:
  provides = ('aesthetics',)

  def __call__(self, excerpt):
    raise ZeroDivisionError('no weights')

class Unmade(Broken):
  def __init__(self):
    raise MemoryError('the weights do not fit')
"""


@pytest.fixture(scope='module', autouse=True)
def scorers(tmp_path_factory):
  folder = tmp_path_factory.mktemp('scorers')
  (folder / 'curate_scorers.py').write_text(SCORERS)
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(folder)
    yield


def moving(seconds, seed=0, fps=16, size=(64, 64)):
  """Coarse noise that drifts to the right: sharp, in motion, unlike any of another seed."""
  rng = np.random.default_rng(seed)
  coarse = rng.integers(0, 256, (size[0] // 8, size[1] // 8, 3), np.uint8)
  picture = coarse.repeat(8, 0).repeat(8, 1)
  return np.stack([np.roll(picture, 16 * k // fps, 1) for k in range(round(seconds * fps))])


def noise(seconds, seed=0, rate=RATE, level=0.1):
  rng = np.random.default_rng(seed)
  return (level * rng.standard_normal((round(seconds * rate), 1))).clip(-1, 1).astype(np.float32)


def wav(path, samples, rate=RATE, layout='mono'):
  with av.open(str(path), 'w', format='wav') as container:
    stream = container.add_stream('pcm_s16le', rate=rate, layout=layout)
    x = np.rint(samples * 32767).astype(np.int16).reshape(1, -1)
    frame = av.AudioFrame.from_ndarray(x, 's16', layout)
    frame.sample_rate = rate
    container.mux(stream.encode(frame))


def png(height, width, pixels=None) -> bytes:
  """By hand, so that the header may promise what is not there."""
  chunk = lambda name, data: (
    len(data).to_bytes(4, 'big') + name + data + zlib.crc32(name + data).to_bytes(4, 'big')
  )
  head = width.to_bytes(4, 'big') + height.to_bytes(4, 'big') + bytes([8, 2, 0, 0, 0])
  if pixels is None:
    pixels = np.zeros((1, 3), np.uint8)[None]
  rows = b''.join(b'\0' + row.tobytes() for row in pixels)
  return (
    b'\x89PNG\r\n\x1a\n'
    + chunk(b'IHDR', head)
    + chunk(b'IDAT', zlib.compress(rows))
    + chunk(b'IEND', b'')
  )


def surround(path, seconds=3.0):
  """A clip with sound in 5.1."""
  with av.open(str(path), 'w', format='mp4') as container:
    video = container.add_stream('libx264', rate=16)
    video.width, video.height, video.pix_fmt = 64, 64, 'yuv420p'
    audio = container.add_stream('aac', rate=48_000, layout='5.1')
    for i, x in enumerate(moving(seconds, 5)):
      frame = av.VideoFrame.from_ndarray(x, 'rgb24')
      frame.pts = i
      container.mux(video.encode(frame))
    container.mux(video.encode())
    x = np.repeat(noise(seconds, 5, 48_000), 6, 1)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(x.T), 'fltp', '5.1')
    frame.sample_rate = 48_000
    container.mux(audio.encode(frame))
    container.mux(audio.encode())


def corrupt(data: bytes, every: int) -> bytes:
  """Every n-th picture overwritten, but for its first two bytes."""
  broken = bytearray(data)
  with av.open(io.BytesIO(data)) as container:
    packets = [p for p in container.demux(video=0) if p.size]
  for p in packets[1::every]:
    broken[p.pos + 2 : p.pos + p.size] = b'\xff' * (p.size - 2)
  return bytes(broken)


def bad_media(folder):
  """Good files and bad ones; name to the rule that drops it, None for what is kept."""
  folder.mkdir()
  good = mp4.write(None, moving(3), 16, noise(3), RATE)
  picture = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
  flat = np.random.default_rng(8).integers(0, 256, (20, 64, 64, 3), np.uint8)
  contents = {
    'again.mp4': (good, None),
    'good.mp4': (good, 'exact duplicate'),  # The first by its name stays.
    'smaller.mp4': (mp4.write(None, moving(3)[:, :48], 16), 'height'),
    'recoded.mp4': (mp4.write(None, moving(3), 16, crf=30), 'near duplicate'),
    'half.mp4': (good[: len(good) // 2], 'error'),
    'empty.mp4': (b'', 'error'),
    'playlist.mp4': (b'#EXTM3U\n#EXTINF:10,\nfile:///etc/hostname\n', 'error'),
    'words.mp4': (b'words, words, words ' * 99, 'error'),
    'picture.mp4': (png(64, 64, picture), 'error'),
    'clip.png': (good, 'error'),
    'bomb.png': (png(15_000, 15_000), 'error'),
    'dot.png': (png(1, 1), 'width'),
    'picture.png': (png(64, 64, picture), None),
    'damaged.mp4': (corrupt(mp4.write(None, moving(3, 6), 16, gop=1), 3), 'error'),
    'slow.mp4': (mp4.write(None, moving(4, 7, fps=10), 10), 'fps'),
    'short.mp4': (mp4.write(None, flat, 16), 'duration'),
    'notes.doc': (b'words', 'suffix'),
  }
  for name, (data, _) in contents.items():
    (folder / name).write_bytes(data)
  (folder / 'good.txt').write_text('noise that drifts')
  surround(folder / 'surround.mp4')
  wav(folder / 'hiss.wav', noise(3, 2))
  wav(folder / 'quiet.wav', np.zeros((3 * RATE, 1), np.float32))
  (folder / 'sound.mp4').write_bytes((folder / 'hiss.wav').read_bytes())
  more = {'surround.mp4': None, 'hiss.wav': None, 'quiet.wav': 'volume', 'sound.mp4': 'error'}
  return {name: rule for name, (_, rule) in contents.items()} | more


SMALL = tuple(
  dataclasses.replace(rule, least=64) if rule.score in ('width', 'height') else rule
  for rule in rules.DEFAULT
)


def curate(folder, out, judged=SMALL, *more):
  """Through the command line: (kept, dropped), by id."""
  path = out.parent / f'{out.name}.rules.json'
  path.write_text(rules.to_json(judged))
  args = command._parse(['--media', str(folder), '--out', str(out), '--rules', str(path), *more])
  _, kept, dropped = command.curate(args)
  return {line['id']: line for line in kept}, {line['id']: line for line in dropped}


@pytest.fixture(scope='module')
def bad(tmp_path_factory):
  place = tmp_path_factory.mktemp('bad')
  want = bad_media(place / 'media')
  kept, dropped = curate(place / 'media', place / 'out')
  return place, want, kept, dropped


def test_nothing_is_lost_and_each_loss_has_its_reason(bad):
  _, want, kept, dropped = bad
  got = dict.fromkeys(kept) | {name: line['rule'] for name, line in dropped.items()}
  assert got == want
  assert len(kept) + len(dropped) == len(want)
  assert all(line['reason'] for line in dropped.values())
  assert (dropped['slow.mp4']['value'], dropped['slow.mp4']['least']) == (10, 16)
  assert 'pixels' in dropped['bomb.png']['reason'] and dropped['bomb.png']['stage'] == 'open'
  assert 'packets are broken' in dropped['damaged.mp4']['reason']
  assert 'again.mp4' in dropped['good.mp4']['reason']
  assert 'again.mp4' in dropped['recoded.mp4']['reason']
  assert dropped['good.mp4']['caption'] == 'noise that drifts'


def test_what_is_kept_is_what_ingest_takes(bad):
  place, _, kept, _ = bad
  found = entries.find(place / 'out' / tables.KEPT, '')
  assert len(found) == len(kept) and not any(entry.fault for entry in found)
  for entry, line in zip(found, kept.values()):
    kind = next(kind for kind in rules.KINDS if kind in line)
    assert getattr(entry, kind).exists()
    if kind != 'image':
      assert (entry.start, entry.end) == (line['start'], line['end'])
      assert entry.end - entry.start == pytest.approx(3, abs=0.1)


def test_the_same_media_give_the_same_bytes(bad, tmp_path):
  place, _, _, _ = bad
  curate(place / 'media', tmp_path / 'out')
  for name in (tables.KEPT, tables.DROPPED, 'rules.json', 'index.html'):
    assert (tmp_path / 'out' / name).read_bytes() == (place / 'out' / name).read_bytes(), name


def test_names_that_are_not_utf8_cost_their_files(tmp_path):
  (tmp_path / 'media').mkdir()
  for name in (b'a.wav', b'\xe9.wav', b'\xe9.doc'):
    wav(tmp_path / 'media' / os.fsdecode(name), noise(2))
  kept, dropped = curate(tmp_path / 'media', tmp_path / 'out', ())
  assert [*kept] == ['a.wav']
  got = {name: line['rule'] for name, line in dropped.items()}
  assert got == {'\\udce9.wav': 'metadata', '\\udce9.doc': 'suffix'}


def test_the_account_sees_what_is_lost_or_twice(bad):
  place, _, kept, dropped = bad
  items = engine.found(place / 'media')
  kept, dropped = list(kept.values()), list(dropped.values())
  tables.account(items, kept, dropped)
  for a, b, what in (
    (kept[1:], dropped, '0 of 1 segments'),
    (kept, dropped[:-1], '0 of 1 segments'),
    (kept + kept[:1], dropped, 'twice'),
    (kept, dropped + kept[:1], 'twice'),
    ([{**kept[0], 'entry': 'x', 'id': 'x'}, *kept], dropped, 'not in the media'),
  ):
    with pytest.raises(tables.AccountError, match=what):
      tables.account(items, a, b)


def test_the_account_sees_a_gap():
  items = [tables.Item('a', 'a', 'video', '/a')]
  line = {'entry': 'a', 'pieces': 2}
  first, last = {'id': 'a#0', 'start': 0, 'end': 4}, {'id': 'a#1', 'start': 4, 'end': 9}
  tables.account(items, [line | first], [line | last])
  for start in (3, 5):
    with pytest.raises(tables.AccountError, match='lost or comes twice'):
      tables.account(items, [line | first, line | last | {'start': start}], [])
  with pytest.raises(tables.AccountError, match='1 of 2 segments'):
    tables.account(items, [line | first], [])


def test_shots_become_segments_and_references_come_along(tmp_path):
  folder = tmp_path / 'media'
  folder.mkdir()
  pixels = np.concatenate([moving(3, 1), moving(1, 2), moving(7, 3)])
  mp4.write(folder / 'a.mp4', pixels, 16)
  row = {'video': 'a.mp4', 'long': 'three shots', 'reference_image': 'face.png', 'end': 10}
  rows = [row, {'audio': '', 'caption': 'nothing'}, {'video': 'gone.mp4', 'caption': 'gone'}]
  (folder / 'metadata.json').write_text(json.dumps(rows))
  kept, dropped = curate(folder, tmp_path / 'out', SMALL, '--seconds', '4')
  times = [(line['start'], line['end']) for line in kept.values()]
  assert times == [(0, 3), (4, 7), (7, 10)]
  line = dropped.pop('a.mp4#0001')
  assert (line['rule'], line['value'], line['least'], line['start']) == ('duration', 1, 2, 3)
  assert {name: line['rule'] for name, line in dropped.items()} == {
    'row 2': 'metadata',
    'gone.mp4': 'error',
  }
  entry = entries.find(tmp_path / 'out' / tables.KEPT, '')[0]
  assert entry.captions == {'long': 'three shots'}
  assert entry.references == (entries.ReferenceFile('image', folder / 'face.png'),)


def test_short_sounds_of_a_class_are_joined_and_a_scorer_may_caption(tmp_path):
  folder = tmp_path / 'media'
  folder.mkdir()
  smooth = lambda seconds, seed: np.cumsum(noise(seconds, seed, level=0.02), 0).clip(-1, 1)
  keep = tuple(rule for rule in rules.DEFAULT if rule.score == 'silence')
  for seed, seconds in enumerate((3, 2, 4, 7, 2.4)):
    wav(folder / f'hiss{seed}.wav', noise(seconds, seed))
    wav(folder / f'low{seed}.wav', smooth(seconds, seed))
  kept, dropped = curate(
    folder, tmp_path / 'out', keep, '--seconds', '6', '--scorer', 'curate_scorers:Sounds'
  )
  assert not dropped
  joined = {name: line for name, line in kept.items() if 'parts' in line}
  parts = {name: [part['id'] for part in line['parts']] for name, line in joined.items()}
  assert parts == {
    'joined/effect/000000.flac': ['hiss0.wav', 'hiss1.wav'],
    'joined/speech/000000.flac': ['low0.wav', 'low1.wav'],
  }
  hiss = joined['joined/effect/000000.flac']
  assert (hiss['class'], hiss['caption'], hiss['end']) == ('effect', 'a hiss', 5)
  got = media.read_audio(
    tmp_path / 'out' / hiss['audio'], count=5 * RATE, sample_rate=RATE, channels=1
  )
  want = np.concatenate([noise(3, 0), noise(2, 1)])
  np.testing.assert_allclose(got, want, atol=1e-4)
  assert {line['class'] for line in kept.values()} == {'effect', 'speech'}
  assert sum(name.startswith('hiss3.wav#') for name in kept) == 2  # Chunks stay apart.


def test_balance_needs_what_it_balances_and_keeps_the_cap(tmp_path):
  folder = tmp_path / 'media'
  folder.mkdir()
  for seed in range(4):
    wav(folder / f'{seed}.wav', noise(2, seed))
  with pytest.raises(engine.CurationError, match='--per_concept needs concepts'):
    curate(folder, tmp_path / 'a', SMALL, '--per_concept', '1')
  kept, dropped = curate(
    folder, tmp_path / 'b', (), '--per_concept', '1', '--scorer', 'curate_scorers:Sounds'
  )
  assert len(kept) == 1 and {line['rule'] for line in dropped.values()} == {'concept balance'}


def test_motion_is_balanced_by_octaves(tmp_path):
  scores = [0.3, 0.4, 0.26, 0.6, 0.01]
  made = [
    tables.Item(f'{i}', f'{i}', 'video', '/x', pieces=1, scores={'motion': x})
    for i, x in enumerate(scores)
  ]
  settings = engine.Settings(str(tmp_path), (), per_motion=2)
  left = engine.selection.select(settings, made)
  assert [item.dropped is None for item in left][3:] == [True, True]
  assert sum(item.dropped is None for item in left[:3]) == 2
  gone = tables.drop(made[0], 'rules', 'volume', 'quiet')
  left = engine.selection.select(settings, [gone, *made[1:]])
  assert left[0] == gone and not any(item.dropped for item in left[1:])


def test_a_scorer_that_fails_drops_the_clip_and_one_that_cannot_be_made_ends_the_run(tmp_path):
  (tmp_path / 'media').mkdir()
  wav(tmp_path / 'media' / 'a.wav', noise(2))
  kept, dropped = curate(
    tmp_path / 'media', tmp_path / 'out', (), '--scorer', 'curate_scorers:Broken'
  )
  assert not kept and dropped['a.wav']['reason'] == 'ZeroDivisionError: no weights'
  with pytest.raises(Exception, match='the weights do not fit'):
    curate(tmp_path / 'media', tmp_path / 'b', (), '--scorer', 'curate_scorers:Unmade')


@pytest.mark.parametrize(
  'more, what',
  [
    (['--seconds', '3'], 'needs at least 4'),
    (['--scorer', 'json:loads'], 'provides'),
    (['--scorer', 'curate_scorers:Broken', '--scorer', 'curate_scorers:Broken'], 'measured twice'),
    (['--media', '/no/such/folder'], 'no such file'),
    (['--out', '/'], 'not empty'),
    (['--beam', '--runner=NoRunner'], 'NoRunner'),
  ],
)
def test_what_cannot_be_done_says_so_in_one_line(tmp_path, more, what):
  (tmp_path / 'media').mkdir()
  wav(tmp_path / 'media' / 'a.wav', noise(2))
  with pytest.raises(SystemExit, match=f'^error: .*{what}') as e:
    command.main(['--media', str(tmp_path / 'media'), '--out', str(tmp_path / 'out'), *more])
  assert '\n' not in str(e.value)


def test_a_run_that_keeps_nothing_is_no_success(tmp_path, capsys):
  (tmp_path / 'media').mkdir()
  wav(tmp_path / 'media' / 'a.wav', np.zeros((2 * RATE, 1), np.float32))
  with pytest.raises(SystemExit, match='nothing is kept'):
    command.main(['--media', str(tmp_path / 'media'), '--out', str(tmp_path / 'out')])
  assert '1 volume' in capsys.readouterr().out


@pytest.mark.real_media
def test_real_clips(tmp_path_factory, tmp_path):
  clips = real.fetch(tmp_path_factory.getbasetemp().parent / 'sr4_real_media')
  if not clips:
    pytest.skip('the real clips cannot be fetched here')
  sizes = tuple(rule for rule in rules.DEFAULT if rule.score not in ('width', 'height'))
  kept, dropped = curate(clips[0].path.parent, tmp_path / 'out', sizes)
  by_rule = {name: line['rule'] for name, line in dropped.items()}
  assert by_rule.pop('carphone_distorted.mp4') == 'near duplicate'  # The sharper one stays.
  assert set(by_rule.values()) == {'duration'} and all(name.startswith('bikes') for name in by_rule)
  assert {'bigbuckbunny.mp4', 'carphone_pristine.mp4'} <= set(kept)
  starts = [line['start'] for name, line in kept.items() if name.startswith('bikes')]
  np.testing.assert_allclose(starts, [3.04, 5.48, 7.48], atol=0.05)
  assert kept['bigbuckbunny.mp4']['caption'] == clips[0].caption
