"""The page: its figures add up, it loads nothing, and its pictures are those of the clips."""

import base64
import html.parser
import re

import av
import numpy as np
import pytest

from data_pipelines import mp4
from data_pipelines.curate import report
from data_pipelines.curate import rules
from data_pipelines.curate import thumbnail

RULES = (rules.Rule('sharpness', least=0.5, kinds=('video',), reason='blurred'),)


def line(name, sharpness=None, **dropped):
  scores = {} if sharpness is None else {'sharpness': sharpness, 'volume': None, 'concept': 'dog'}
  times = {'start': 1.0, 'end': 4.0} if scores else {}
  return {'id': name, 'entry': name, 'video': f'{name}.mp4', 'scores': scores, **times, **dropped}


KEPT = [line('<b>&', 0.7), line('c', 0.9)]
DROPPED = [
  line('d', 0.2, stage='rules', rule='sharpness', reason='blurred', value=0.2, least=0.5),
  line('e', 0.3, stage='rules', rule='sharpness', reason='blurred', value=0.3, least=0.5),
  line('f', 0.8, stage='near', rule='near duplicate', reason='looks like c'),
  line('g', stage='open', rule='error', reason='<script>alert(1)</script>'),
]


class Parser(html.parser.HTMLParser):
  """Every tag is closed, and nothing is loaded."""

  def __init__(self):
    super().__init__()
    self.open, self.tags = [], []

  def handle_starttag(self, tag, attributes):
    self.tags.append(tag)
    for name, value in attributes:
      assert name not in ('src', 'href') or value.startswith('data:image/'), value
    if tag not in ('meta', 'img', 'br'):
      self.open.append(tag)

  def handle_startendtag(self, tag, attributes):
    self.tags.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag


def test_the_page_is_whole_and_says_all_reasons(tmp_path):
  page, parser = report.page(tmp_path, 5, KEPT, DROPPED, RULES), Parser()
  parser.feed(page)
  assert not parser.open and 'script' not in parser.tags and 'url(' not in page
  assert '2 clips of 5 files' in page and '&lt;b&gt;&amp;' in page
  for words in ('blurred', 'looks like c', '&lt;script&gt;', 'at least 0.5', '0.2, at least 0.5'):
    assert words in page
  assert page.count('not readable') == 6  # A figure for each line; none of the files exists.


def test_an_empty_run_has_a_page(tmp_path):
  parser = Parser()
  parser.feed(report.page(tmp_path, 0, [], [], ()))
  assert not parser.open


def test_the_funnel_accounts_for_each_step():
  steps = report.steps(5, KEPT, DROPPED)
  left = {words: (count, lost) for words, count, lost in steps}
  assert left['readable'] == (4, 1) and left['segments they were cut into'] == (5, 0)
  assert left['within the rules'] == (3, 2) and left['unlike to the eye'] == (2, 1)
  assert steps[-1][1] == len(KEPT)
  assert sum(lost for *_, lost in steps) == len(DROPPED)


def test_histograms_count_each_score_once_and_draw_the_bounds():
  svg = report.histogram('x', [0.6, 0.7, 0.7], [0.1, 2.0], [0.5])
  bars = re.findall(r'height="([\d.]+)" fill="var\(--(\w+)\)"', svg)
  unit = 72 / 2  # The tallest bar holds two.
  total = {side: sum(float(h) for h, s in bars if s == side) / unit for side in ('good', 'bad')}
  assert total == pytest.approx({'good': 3, 'bad': 2})
  (x,) = re.findall(r'<line x1="([\d.]+)" x2="\1" y1="14"', svg)
  assert float(x) == pytest.approx((0.5 - 0.1) / (2.0 - 0.1) * 256, abs=0.1)
  assert 'rect' in report.histogram('x', [3.0], [])  # One value has no range.


def test_pictures_are_of_the_middle_of_the_clip(tmp_path):
  pixels = np.zeros((48, 64, 96, 3), np.uint8)
  pixels[16:32] = 200, 40, 40
  mp4.write(tmp_path / 'a.mp4', pixels, 16)
  for start, colour in ((0, (0, 0, 0)), (1, (200, 40, 40)), (2, (0, 0, 0))):
    tag = thumbnail.draw(tmp_path / 'a.mp4', 'video', start, 1)
    data = base64.b64decode(re.search('base64,([^"]+)"', tag)[1])
    (tmp_path / 'a.jpg').write_bytes(data)
    with av.open(str(tmp_path / 'a.jpg')) as container:
      got = next(container.decode(video=0)).to_ndarray(format='rgb24')
    assert got.shape == (96, 144, 3)
    np.testing.assert_allclose(got.mean((0, 1)), colour, atol=6)
