"""sr4/planning/page.py: a page that stands alone and says what is fact and what is model."""

import copy

import pytest

from sr4.planning import page
from tests import report_test

ROW = dict(
  name='clips-<81>',
  rows=8,
  tokens=dict(video=75600, audio=218),
  fits=True,
  hbm_gib=dict(
    parameters=1.0,
    optimizer=2.0,
    batch=0.5,
    activations=4.0,
    temporaries=3.0,
    total=10.5,
    capacity=15.75,
    host=0.0,
  ),
  flops=dict(model=3e15, compiled=3.6e15),
  recompute=1.2,
  rematerialised=1.1,
  collectives=[
    {'kind': 'all-gather', 'axes': 'fsdp', 'gib': 2.5, 'count': 7, 'async': True},
    {'kind': 'all-reduce', 'axes': 'data', 'gib': 1e-6, 'count': 1, 'async': False},
  ],
  step_seconds=2.5,
  step_range=[2.2, 2.9],
  mfu=0.456,
  exposed=0.05,
  seconds=dict(matmul=1.5, attention=0.5, memory=0.3, host=0.0, fsdp=0.2),
  chip_seconds_per_sample=1.25,
  days=3.5,
  usd=12345.0,
)
PLAN = dict(
  config='configs/x.py:joint',
  topology='v5e:2x2',
  chips=4,
  mesh=dict(data=1, fsdp=4),
  options={'xla_flag': 'true'},
  assumptions={'achieved': 0.75},
  buckets=[ROW],
)


def large() -> dict:
  """It does not fit: there are no times."""
  row = copy.deepcopy(ROW) | dict(name='large', fits=False)
  row['hbm_gib']['total'] = 31.5
  none = ('step_seconds', 'step_range', 'mfu', 'exposed', 'seconds', 'chip_seconds_per_sample')
  tried = [{'change': '--config.model.remat=full', 'total': 20.0}]
  nearest = {'fits': False, 'change': '', 'tried': tried}
  return row | dict.fromkeys((*none, 'days', 'usd')) | {'nearest': nearest}


def test_the_page():
  text = page.page(PLAN)
  shown = report_test.Page(text)
  words = ' '.join(' '.join(shown.words).split())
  assert not shown.addresses and '<script' not in text and 'http' not in text
  for told in ('1 of 1 buckets fit', 'clips-<81>', '10.5 GiB', '2.50 s, MFU 45.6%', 'all-gather'):
    assert told in words, told
  assert 'all-reduce' not in words  # Too little to matter.
  assert {'fact', 'model'} <= set(shown.words) and '12,345' in words and 'xla_flag' in words
  pictures = [attrs['aria-label'] for tag, attrs in shown.tags if tag == 'svg']
  assert len(pictures) == 3


def test_bars_are_to_scale():
  text = page.page(PLAN)
  drawn = [a for tag, a in report_test.Page(text).tags if tag == 'rect']
  widths, starts = ([float(a[name]) for a in drawn] for name in ('width', 'x'))
  parts = [ROW['hbm_gib'][part] for part in page.MEMORY]
  assert widths[: len(parts)] == pytest.approx([p / 15.75 * 580 for p in parts], abs=0.06)
  ends = [a + b for a, b in zip(starts, widths)]
  assert starts[1 : len(parts)] == pytest.approx(ends[: len(parts) - 1], abs=0.11)


def test_what_does_not_fit():
  words = ' '.join(report_test.Page(page.page(PLAN | {'buckets': [ROW, large()]})).words)
  assert '1 of 2 buckets fit' in words and '31.5 GiB, does not fit' in words
  assert 'none of the 1 changes that were compiled fits: --config.model.remat=full' in words
  assert words.count(', MFU ') == 1
  page.page(PLAN | {'buckets': [large()]})  # No times at all.


def test_every_figure_is_fact_or_model():
  """Keys of the JSON, apart from what is asked for, are explained."""
  told = ', '.join([*page.FACTS, *page.MODEL])
  for key in ROW.keys() - {'name', 'rows', 'tokens', 'flops'}:
    assert key in told, key
  assert 'flops.model' in told and 'flops.compiled' in told
