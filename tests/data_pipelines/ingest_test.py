"""The ingest command: every column, and everything left out with its reason."""

import errno
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from data_pipelines import ingest
from data_pipelines import media
from data_pipelines import mp4
from data_pipelines import real
from data_pipelines import records
from data_pipelines import stills
from tests.small_records import clip


def dropped(out):
  path = out / 'dropped.jsonl'
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  assert all(set(line) == {'id', 'reason', 'detail'} and line['detail'] for line in lines)
  return [(line['id'], line['reason']) for line in lines]


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
    'dropped                        2',
    '1 broken, 1 too short',
    'seconds                     5.00',
  ):
    assert line in done.stdout
  assert 'dropped (broken): cut.mp4' in done.stderr
  assert dropped(out) == [('cut.mp4', 'broken'), ('short.mp4', 'too short')]


@pytest.mark.parametrize('form', ['csv', 'json', 'jsonl'])
def test_command_on_metadata(tmp_path, form):
  folder = tmp_path / 'in'
  folder.mkdir()
  clip(folder / 'a.mp4', 1, sound=False)
  clip(folder / 'b.mp4', 2.2, level=0.9)
  rows = [
    {'video': 'a.mp4', 'audio': 'b.mp4', 'caption': 'with sound', 'long': ''},
    {'video': 'a.mp4', 'audio': '', 'caption': 'again, without', 'long': 'yes, without'},
    {'video': '', 'audio': 'b.mp4', 'caption': 'sound alone', 'long': ''},
    {'video': 'none.mp4', 'audio': '', 'caption': 'gone', 'long': ''},
    {'video': 'a.mp4', 'audio': '', 'caption': '', 'long': ''},
  ]
  path = folder / f'metadata.{form}'
  if form == 'csv':
    path.write_text(
      'video,audio,caption,long,mood\n'
      + ''.join(f'{r["video"]},{r["audio"]},"{r["caption"]}","{r["long"]}",x\n' for r in rows)
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
  assert source[1].captions == {'caption': 'again, without', 'long': 'yes, without'}
  assert abs(source[2].samples - source[3].samples).max() > 0.1  # The next second of it.
  assert 'unknown columns, not stored: mood' in done.stdout
  assert '1 missing file' in done.stdout and '1 no caption' in done.stdout


@pytest.mark.parametrize('form', ['csv', 'jsonl'])
def test_a_caption_may_have_lines(media_folder, tmp_path, form):
  text = 'one\u2028two\x85three'
  row = {'image': str(media_folder / 'red.png'), 'caption': text}
  path = tmp_path / f'metadata.{form}'
  if form == 'csv':
    path.write_text(f'image,caption\n{row["image"]},{text}\n')
  else:
    path.write_text(json.dumps(row, ensure_ascii=False) + '\n')
  ingest.main(['--media', str(path), '--out', str(tmp_path / 'out'), *map(str, SMALL)])
  assert [r.captions['caption'] for r in records.Source(tmp_path / 'out')] == [text]


def test_a_row_with_more_fields_than_columns_is_not_cut(media_folder, tmp_path):
  path, image = tmp_path / 'metadata.csv', media_folder / 'red.png'
  path.write_text(
    f'image,caption\n{image},a man, talking, in a red car\n{image},"a man, talking",,\n'
  )
  ingest.main(['--media', str(path), '--out', str(tmp_path / 'out'), *map(str, SMALL)])
  assert [r.captions['caption'] for r in records.Source(tmp_path / 'out')] == ['a man, talking']
  (line,) = (tmp_path / 'out' / 'dropped.jsonl').read_text().splitlines()
  assert '2 fields more than columns; put quotes around the caption' in line


def test_captions_of_any_editor(media_folder, tmp_path):
  texts = {'bom': b'\xef\xbb\xbfa man', 'latin': 'un café'.encode('latin-1'), 'empty': b'\n'}
  for name, text in texts.items():
    shutil.copy(media_folder / 'red.png', tmp_path / f'{name}.png')
    (tmp_path / f'{name}.txt').write_bytes(text)
  args = ['--media', str(tmp_path), '--out', str(tmp_path / 'out'), *map(str, SMALL)]
  ingest.main([*args, '--caption', 'other'])
  found = {r.id: r.captions['caption'] for r in records.Source(tmp_path / 'out')}
  assert found == {'bom.png': 'a man', 'empty.png': 'other'}
  assert dropped(tmp_path / 'out') == [('latin.png', 'bad row')]
  assert 'latin.txt: byte 6 is not UTF-8' in (tmp_path / 'out' / 'dropped.jsonl').read_text()
  (tmp_path / 'metadata.csv').write_text('image,caption\nbom.png,x\n', encoding='utf-16')
  with pytest.raises(SystemExit, match='error: .*metadata.csv: byte 0 is not UTF-8'):
    ingest.main(args)


def test_what_no_file_can_have_costs_its_row(media_folder, tmp_path):
  for name in 'abcd':
    shutil.copy(media_folder / 'red.png', tmp_path / f'{name}.png')
  told = {'a': 'x', 'b': 'half \ud83d', 'c': 'a \0', 'd': 'whole \U0001f600'}
  rows = [dict(image=f'{name}.png', caption=text) for name, text in told.items()]
  rows += [dict(image='\ud83d.png', caption='x'), dict(image='\0.png', caption='x')]
  (tmp_path / 'metadata.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  ingest.main(['--media', str(tmp_path), '--out', str(tmp_path / 'out'), *map(str, SMALL)])
  found = {r.id: r.captions['caption'] for r in records.Source(tmp_path / 'out')}
  assert found == {'a.png': 'x', 'd.png': told['d']}
  bad = ('\0.png', '\\ud83d.png', 'b.png', 'c.png')
  assert sorted(dropped(tmp_path / 'out')) == [(name, 'bad row') for name in bad]


def test_a_name_that_is_not_utf8_costs_its_file(media_folder, tmp_path):
  for name in (b'a.png', b'\xe9.png', b'\xe8.png'):
    shutil.copy(media_folder / 'red.png', os.path.join(os.fsencode(tmp_path), name))
  args = ['--media', str(tmp_path), '--out', str(tmp_path / 'out'), '--caption', 'x']
  ingest.main([*args, *map(str, SMALL)])
  assert [r.id for r in records.Source(tmp_path / 'out')] == ['a.png']
  assert dropped(tmp_path / 'out') == [('\\udce8.png', 'bad row'), ('\\udce9.png', 'bad row')]


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
    ({'a.mp4': 'x', 'a.txt': 'x'}, 'Dropped: 1 broken; each with its reason in'),
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
  beside = tmp_path / 'out.dropped.jsonl'
  assert beside.exists() == ('Dropped' in what) and (not beside.exists() or str(beside) in text)


@pytest.mark.parametrize(
  'args, what',
  [
    (('--frames', '0'), '--frames is 0'),
    (('--stride', '-1'), '--stride is -1'),
    (('--codec', 'mp4', '--height', '63'), 'even sizes, not 63x64'),
    (('--height', '721', '--width', '1280'), 'even sizes, not 721x1280'),
    (('--reference_size', '64'), 'give HEIGHTxWIDTH'),
    (('--reference_seconds', '0'), '--reference_seconds is 0'),
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


def half(height, width, color, left=True):
  """Black, one half of it in a colour: uint8 [h w 3]."""
  out = np.zeros((height, width, 3), np.uint8)
  out[:, : width // 2] = color if left else 0
  out[:, width // 2 :] = 0 if left else color
  return out


def run(folder, rows, *args):
  """Ingests rows of JSON; (source, {id: reason of a drop})."""
  (folder / 'metadata.json').write_text(json.dumps(rows))
  out = folder / f'out{len(list(folder.glob("out*")))}'
  ingest.main(['--media', str(folder), '--out', str(out), *map(str, SMALL + args)])
  return records.Source(out), dict(dropped(out)) if (out / 'dropped.jsonl').exists() else {}


@pytest.fixture(name='media_folder', scope='module')
def _media_folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('ingest')
  clip(folder / 'a.mp4', 3.5)
  clip(folder / 'tone.mp4', 0.7)
  clip(folder / 'mute.mp4', 3, sound=False)
  for name, pixels in {
    'red': half(40, 20, (255, 0, 0)),
    'wide': half(8, 200, (0, 255, 0)),
    'left': half(32, 48, (255, 255, 255)),
    'thin': half(36, 64, (255, 255, 255), left=False),
    'black': np.zeros((32, 48, 3), np.uint8),
  }.items():
    (folder / f'{name}.png').write_bytes(stills.to_bytes(pixels))
  # White comes half a second into the mask and stays to the end.
  moving = np.repeat(half(32, 48, (255, 255, 255))[None], 40, 0)
  moving[:10] = 0
  mp4.write(folder / 'moving.mp4', moving, 20)
  return folder


def test_references_of_every_kind(media_folder):
  rows = [
    {
      'video': 'a.mp4',
      'short': 'a ramp as @video_1, @image_1 and @image_2 sound like @audio_1',
      'reference_image': 'red.png; wide.png',
      'reference_video': ['a.mp4'],
      'reference_audio': 'tone.mp4',
    }
  ]
  source, lost = run(media_folder, rows, '--codec', 'raw')
  assert len(source) == 3 and not lost
  for record in source:  # The clips of one video share them.
    red, wide, video, audio = record.references
    assert [r.kind for r in record.references] == ['image', 'image', 'video', 'audio']
    assert red.frames.shape == (1, 16, 8, 3) and wide.frames.shape == (1, 1, 24, 3)
    assert red.frames[0, 8, 1, 0] > 200 and red.frames[0, 8, 7, 0] < 50 and red.samples is None
    assert video.frames.shape == (8, 16, 24, 3) and video.samples.shape == (16_000, 2)
    assert audio.frames is None and audio.samples.shape == (round(0.7 * 16_000), 2)
    np.testing.assert_array_equal(video.frames, source[0].frames)
  manifest = source.manifest
  assert manifest.references['image'] == 3 and manifest.references['max image'] == 2

  source, _ = run(media_folder, rows, '--reference_size', '20x400', '--reference_seconds', '0.5')
  red, wide, video, audio = source[0].references
  assert red.frames.shape == (1, 20, 10, 3) and wide.frames.shape == (1, 8, 200, 3)
  assert video.frames.shape == (4, 20, 30, 3) and audio.samples.shape == (8000, 2)


def test_panels_of_a_grid_are_references(media_folder):
  colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]
  top = np.concatenate([half(30, 40, c) for c in colors[:2]], 1)
  bottom = np.concatenate([half(30, 40, colors[2]), np.full((30, 40, 3), 255, np.uint8)], 1)
  grid = np.concatenate([top, bottom])
  (media_folder / 'grid.png').write_bytes(stills.to_bytes(grid))
  rows = [
    {
      'image': 'left.png',
      'caption': '@image_1 @image_2 @image_3 @image_4',
      'reference_image': 'red.png',
      'reference_grid': 'grid.png#2x2',
    },
    {'image': 'left.png', 'caption': '@image_1', 'reference_grid': 'black.png'},
    {'image': 'left.png', 'caption': '@image_1', 'reference_grid': 'grid.png#2'},
    {'image': 'left.png', 'caption': '@image_1', 'reference_grid': 'grid.png#5x2'},
  ]
  source, lost = run(media_folder, rows)
  assert lost == {
    'left.png~2': 'broken reference',
    'left.png~3': 'bad row',
    'left.png~4': 'bad row',
  }
  (record,) = source
  assert record.id == 'left.png' and record.frames.shape == (1, 16, 24, 3)
  assert [r.frames.shape for r in record.references] == [(1, 16, 8, 3)] + 3 * [(1, 16, 21, 3)]
  for reference, color in zip(record.references[1:], colors):
    np.testing.assert_allclose(reference.frames[0, 8, 3], color, atol=12)
    assert reference.frames[0, 8, 18].max() < 12


def test_masks_are_cut_like_the_video(media_folder):
  row = {'video': 'mute.mp4', 'caption': ''}
  rows = [
    row | {'video_mask': 'left.png'},
    row | {'video_mask': 'thin.png'},
    row | {'video_mask': 'moving.mp4'},
    row | {'video_mask': 'black.png'},
    {'image': 'red.png', 'caption': 'x', 'video_mask': 'left.png'},
    {'audio': 'tone.mp4', 'caption': 'x', 'video_mask': 'left.png'},
  ]
  source, lost = run(media_folder, rows, '--caption', 'x', '--codec', 'mp4')
  left = np.broadcast_to(np.arange(24) < 12, (8, 16, 24))
  by_id = {record.id: record for record in source}
  for k in range(3):
    np.testing.assert_array_equal(by_id[f'mute.mp4#{k:04d}'].mask, left)
    np.testing.assert_array_equal(by_id[f'mute.mp4~2#{k:04d}'].mask, ~left)  # 16:9 is cropped.
  late = left & (np.arange(8) >= 4)[:, None, None]  # Half a second at 8 fps.
  np.testing.assert_array_equal(by_id['mute.mp4~3#0000'].mask, late)
  np.testing.assert_array_equal(by_id['mute.mp4~3#0001'].mask, left)
  np.testing.assert_array_equal(by_id['red.png'].mask, left[:1])
  assert len(source) == source.manifest.masks == 9
  assert lost == {
    'mute.mp4~3': 'broken after some clips',  # The mask ends a second before the video.
    'mute.mp4~4#0000': 'empty mask',
    'mute.mp4~4#0001': 'empty mask',
    'mute.mp4~4#0002': 'empty mask',
    'tone.mp4': 'bad row',
  }


def test_start_and_end(media_folder):
  rows = [
    {'video': 'a.mp4', 'caption': 'x', 'start': 1, 'end': '3.1'},
    {'video': 'a.mp4', 'caption': 'x', 'start': 0.5, 'end': 1.4},
    {'video': 'a.mp4', 'caption': 'x', 'start': 'one'},
    {'video': 'a.mp4', 'caption': 'x', 'start': 2, 'end': 2},
    {'audio': 'a.mp4', 'caption': 'x', 'start': 2.5, 'end': 99},
  ]
  source, lost = run(media_folder, rows)
  assert [record.id for record in source] == ['a.mp4#0000', 'a.mp4#0001', 'a.mp4~5#0000']
  assert lost == {'a.mp4~2': 'too short', 'a.mp4~3': 'bad row', 'a.mp4~4': 'bad row'}
  (media_folder / 'metadata.json').write_text(json.dumps([{'video': 'a.mp4', 'caption': 'x'}]))
  whole, _ = run(media_folder, [{'video': 'a.mp4', 'caption': 'x'}])
  np.testing.assert_array_equal(source[0].frames, whole[1].frames)
  np.testing.assert_allclose(source[1].samples, whole[2].samples, atol=1e-3)


@pytest.mark.parametrize(
  'row, reason',
  [
    ({'caption': 'a cat'}, 'unnamed reference'),
    ({'caption': '@image_10 and @Image_1'}, 'unnamed reference'),
    ({'caption': '@image_1', 'long': 'a cat'}, 'unnamed reference'),
    ({'caption': '@image_1 and @image_2'}, 'unknown reference'),
    ({'caption': '@image_1', 'reference_image': 'none.png'}, 'missing file'),
    ({'caption': '@image_1', 'reference_image': 'metadata.json'}, 'broken reference'),
    ({'caption': '@image_1', 'video': '.'}, 'unreadable file'),
    ({'caption': '@image_1', 'video': 'a.mp4/b.mp4'}, 'unreadable file'),
    ({'caption': '@image_1', 'video': 'a man talks ' * 30}, 'unreadable file'),
    ({'caption': '@image_1', 'reference_image': 5}, 'bad row'),
    ({'caption': '@image_1 @audio_1', 'reference_audio': 'mute.mp4'}, 'broken reference'),
    ({'caption': ['a', 'b']}, 'bad row'),
    ({'caption': '@image_1', 'image': 'red.png'}, 'bad row'),
    ({'caption': '@image_1', 'video': ''}, 'bad row'),
    ({}, 'no caption'),
  ],
)
def test_a_row_that_cannot_be_used_is_dropped_with_its_reason(media_folder, row, reason):
  bad = {'video': 'a.mp4', 'reference_image': 'red.png'} | row
  source, lost = run(media_folder, [{'video': 'mute.mp4', 'caption': 'kept'}, bad])
  assert len(source) == 3 and list(lost.values()) == [reason]


def test_a_disk_that_fails_ends_the_run_and_names_the_file(media_folder, monkeypatch):
  def fails(source):
    raise OSError(errno.EIO, 'Input/output error', str(source))

  monkeypatch.setattr(media, 'probe', fails)
  with pytest.raises(SystemExit, match='error: .*Input/output error.*mute.mp4'):
    run(media_folder, [{'video': 'mute.mp4', 'caption': 'x'}])


def test_a_silent_stretch_is_dropped(media_folder):
  tone = np.zeros((48_000, 1), np.float32)
  tone[32_000:] = 0.3
  mp4.write(media_folder / 'late.mp4', np.zeros((60, 16, 16, 3), np.uint8), 20, tone, 16_000)
  source, lost = run(media_folder, [{'audio': 'late.mp4', 'caption': 'x'}])
  assert lost['late.mp4#0000'] == 'silent' and source[-1 + len(source)].id == 'late.mp4#0002'


def test_the_codec_follows_the_size(media_folder):
  rows = [{'video': 'mute.mp4', 'caption': 'x'}]
  assert run(media_folder, rows)[0].manifest.codec == 'raw'
  large = ('--height', 480, '--width', 640, '--frames', 8)
  assert run(media_folder, rows, *large)[0].manifest.codec == 'mp4'


def test_a_later_success_leaves_no_earlier_reasons(media_folder, tmp_path):
  args = ['--media', str(media_folder / 'b.json'), '--out', str(tmp_path / 'deep' / 'out')]
  beside = tmp_path / 'deep' / 'out.dropped.jsonl'
  (media_folder / 'b.json').write_text(json.dumps([{'video': 'none.mp4', 'caption': 'x'}]))
  with pytest.raises(SystemExit, match='out.dropped.jsonl'):
    ingest.main([*args, *map(str, SMALL)])
  assert json.loads(beside.read_text())['reason'] == 'missing file'
  (media_folder / 'b.json').write_text(json.dumps([{'video': 'mute.mp4', 'caption': 'x'}]))
  ingest.main([*args, *map(str, SMALL)])
  assert not beside.exists() and sorted(os.listdir(tmp_path / 'deep')) == ['out']
