"""`sr4 report`: one page that stands alone."""

import html.parser
import io
import json
import re
import types

import numpy as np
from PIL import Image
import pytest

from data_pipelines import world
from sr4 import evaluate
from sr4 import report
from sr4.core import errors
from sr4.metrics import drawing

VOID = {'meta', 'img', 'br', 'link', 'input', 'hr'}


class Page(html.parser.HTMLParser):
  """Tags that open and close in order, and every address on the page."""

  def __init__(self, text):
    super().__init__()
    self.open, self.addresses, self.tags, self.words = [], [], [], []
    self.feed(text)
    self.close()
    assert not self.open, self.open

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    self.addresses += [
      v for k, v in attrs if k in ('src', 'href', 'srcset', 'poster', 'data', 'action')
    ]
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.handle_starttag(tag, attrs)
    if tag not in VOID:
      self.open.pop()

  def handle_endtag(self, tag):
    assert self.open and self.open[-1] == tag, (tag, self.open[-3:])
    self.open.pop()

  def handle_data(self, data):
    self.words.append(data)


@pytest.fixture
def workdir(tmp_path):
  """As `sr4 train` and `sr4 evaluate` leave it, of two clips of the world itself."""
  source = world.World(world.Config.simple(height=32, width=32, frames=9, channels=1), 3)
  samples = [source[i] for i in range(2)]
  size = types.SimpleNamespace(fps=16.0, height=32, width=32)
  rows = evaluate.look_and_listen(samples, size, 16_000)
  figures = evaluate.scores(rows, [s.truth.objects[0] for s in samples])
  figures |= {f'{prefix}_{k}': v for prefix in ('codec', 'truth') for k, v in list(figures.items())}
  figures |= {
    'steps': 1234,
    'count': 2,
    'seconds': 600.0,
    'seconds_since': 'began',
    'chance_color_accuracy': 1 / 8,
    'chance_shape_accuracy': 1 / 6,
    'diversity': 3.0,
  }
  (tmp_path / 'clips').mkdir()
  for i, s in enumerate(samples):
    path, audio = str(tmp_path / 'clips' / f'{i:03d}'), types.SimpleNamespace(sample_rate=16_000)
    evaluate.save_pair(path, 'a red circle', s, s, size, audio)
  clips = [
    {
      'prompt': f'{s.captions["short"]} <&"{i}">',
      'wanted': s.truth.objects[0].name,
      'made': row,
      'truth': row,
    }
    for i, (s, row) in enumerate(zip(samples, rows))
  ]
  for name, content in (
    ('metrics', figures),
    ('clips', clips),
    ('config', {'model': {'size': 'x'}}),
  ):
    evaluate.write_json(str(tmp_path / f'{name}.json'), content)
  (tmp_path / 'metrics.jsonl').write_text(
    ''.join(
      json.dumps({'step': 10 * i, 'video': 2 / i, 'audio': 1 / i}) + '\n' for i in range(1, 30)
    )
  )
  return tmp_path


def run(workdir, **arguments):
  report.main(
    types.SimpleNamespace(**{'workdir': str(workdir), 'evaluation': None, 'out': None} | arguments)
  )
  return (workdir / 'index.html').read_text()


def test_the_page_is_well_formed_and_loads_nothing(workdir):
  text = run(workdir)
  page = Page(text)
  assert len(page.addresses) == 2 * 2 * 3  # Of each clip and its truth: video, strip, spectrogram.
  assert all(re.match(r'data:(image/png|video/mp4);base64,', a) for a in page.addresses)
  for outside in ('http:', 'https:', '//', '@import', 'url(', '<script', '<link', '<iframe'):
    assert outside not in re.sub(r'base64,[A-Za-z0-9+/=]*', '', text), outside
  assert len(text) < 8e6


def test_the_page_says_what_was_measured(workdir):
  page = Page(run(workdir))
  words = ' '.join(' '.join(page.words).split())
  for told in (
    '1,234 steps',
    '10 minutes',
    'guessing 12.5%',
    '<&"0">',
    '"size": "x"',
    'measured as',
  ):
    assert told in words, told
  for tag, attrs in page.tags:
    if tag in ('svg', 'video'):
      assert attrs.get('aria-label'), tag
  charts = [attrs['aria-label'] for tag, attrs in page.tags if tag == 'svg']
  assert any(label.startswith('Loss by step: video from 2 ') for label in charts)


def test_where_the_time_went(workdir):
  events = [
    {'job_start_time': 100.0},
    {'custom_badput_event_type': 'compile', 'custom_badput_event_start_time': 100.0},
    {'custom_badput_event_type': 'compile', 'custom_badput_event_end_time': 130.0},
    {'step_count': 1, 'step_start_time': 130.0},
    {'job_end_time': 400.0},
  ]
  log = workdir / 'goodput.jsonl'
  log.write_text(''.join(json.dumps(event) + '\n' for event in events))
  words = ' '.join(Page(run(workdir)).words)
  for told in ('5 minutes of training', '1 start of', 'kept 90.0%', 'PROGRAM_STARTUP 10.0%'):
    assert told in words, told
  log.unlink()
  assert 'PROGRAM_STARTUP' not in run(workdir)


def test_what_is_missing_is_left_out_or_told(workdir):
  (workdir / 'metrics.jsonl').unlink()
  figures = json.loads((workdir / 'metrics.json').read_text())
  silent = {name: None for name in figures if 'onset_error' in name}
  evaluate.write_json(str(workdir / 'metrics.json'), figures | silent)
  words = ' '.join(Page(run(workdir)).words)
  assert 'nothing to time' in words and 'Loss of each' not in words
  (workdir / 'clips.json').unlink()
  with pytest.raises(errors.UserError, match='clips.json is missing: run sr4 evaluate'):
    run(workdir)


def test_rows_without_a_loss_are_not_drawn(workdir):
  log = workdir / 'metrics.jsonl'
  rows = [json.loads(line) for line in log.read_text().splitlines()]
  del rows[0]['video'], rows[4]['audio']
  rows[5]['video'] = float('nan')
  write = lambda rows: log.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  write(rows)
  assert 'Loss by step: video from 1 ' in run(workdir)
  write([row | {'audio': float('nan')} for row in rows])
  text = run(workdir)
  assert 'Loss by step: video from 1 ' in text and 'audio from' not in text
  write([row | {'video': float('nan'), 'audio': float('nan')} for row in rows])
  assert 'Loss by step' not in run(workdir)


def test_clips_that_do_not_fit_are_left_out(workdir, monkeypatch):
  whole = run(workdir)
  monkeypatch.setattr(report, 'LARGEST', len(whole) - 1000)
  assert sum(tag == 'video' for tag, _ in Page(run(workdir)).tags) == 2


def test_png_reads_back_elsewhere():
  pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)
  image = Image.open(io.BytesIO(drawing.png(pixels)))
  image.verify()  # The checksums.
  np.testing.assert_array_equal(Image.open(io.BytesIO(drawing.png(pixels))), pixels)


def test_heatmap_has_low_frequencies_below():
  shown = drawing.heatmap(np.array([[drawing.LOUD + 9, drawing.SILENT - 9], [drawing.SILENT] * 2]))
  np.testing.assert_array_equal(shown, [[drawing.HEAT[0]] * 2, [drawing.HEAT[-1], drawing.HEAT[0]]])


def test_filmstrip_runs_from_the_first_frame_to_the_last():
  frames = np.arange(17, dtype=np.uint8)[:, None, None, None] * np.ones((4, 6, 3), np.uint8)
  strip, tall = drawing.filmstrip(frames)
  assert strip.shape == (4, 9 * 6 + 8, 3) and tall == 4 / 62
  assert strip[0, 0, 0] == 0 and strip[0, -1, 0] == 16 and strip[0, 7, 0] == 2
