"""sr4/planning/sweeping.py: what is compiled next, what is kept, and when it ends."""

import json
import time

import pytest

from sr4.planning import sweep
from sr4.planning import sweeping

CAPACITY = 31.0


def candidate(fsdp, remat, accumulate):
  return sweep.Candidate(8, fsdp, 1, 1, remat, 512, 1024, accumulate)


@pytest.fixture
def compiled(monkeypatch):
  """Names of what was compiled; 64 GiB in one part with all of it kept, half of it with 'full'."""
  names = []

  def plan(arguments, c, path, processes, until):
    names.append(c.name)
    gib = {'results': 64, 'full': 32}[c.remat] / c.accumulate + 4
    hbm = {'total': gib, 'capacity': CAPACITY}
    told = dict(hbm_gib=hbm, fits=gib < CAPACITY, step_seconds=1.0, mfu=0.5, recompute=1, exposed=0)
    with open(path, 'w') as file:
      json.dump({'buckets': [told], 'refused': {}}, file)
    return sweeping.read(c, path)

  monkeypatch.setattr(sweeping, 'compiled', plan)
  return names


ALL = [
  candidate(fsdp, remat, accumulate)
  for accumulate in (1, 2, 4)
  for fsdp in (32, 16)
  for remat in ('results', 'full')
]


def test_what_will_hardly_fit_comes_last(compiled, tmp_path):
  """36 GiB of 31 in one part and with the least kept: then in two parts, on any mesh."""
  forever = time.monotonic() + 600
  rows = sweeping.run([], ALL, str(tmp_path), 1, forever, lambda _: None)
  short = [(row['fsdp'], row['remat'], row['accumulate']) for row in rows]
  assert short == [(c.fsdp, c.remat, c.accumulate) for c in ALL]  # In the order of the candidates.
  order = [ALL[[c.name for c in ALL].index(name)] for name in compiled]
  assert [(c.fsdp, c.remat, c.accumulate) for c in order] == [
    (32, 'results', 1),  # 68
    (32, 'full', 1),  # 36: no other in one part is likely to fit
    (32, 'results', 2),  # 36
    (32, 'full', 2),
    (16, 'full', 2),
    (32, 'results', 4),
    (32, 'full', 4),
    (16, 'results', 4),
    (16, 'full', 4),
    (16, 'results', 1),
    (16, 'full', 1),
    (16, 'results', 2),
  ]


def test_it_goes_on_where_it_was(compiled, tmp_path):
  forever = time.monotonic() + 600
  sweeping.run([], ALL[:2], str(tmp_path), 1, forever, lambda _: None)
  rows = sweeping.run([], ALL[:4], str(tmp_path), 2, forever, lambda _: None)
  assert len(rows) == 4 and sorted(compiled) == sorted(c.name for c in ALL[:4])
  assert sweeping.run([], ALL, str(tmp_path), 1, time.monotonic() - 1, lambda _: None) == rows


def test_an_error_ends_all_workers(monkeypatch, tmp_path):
  def broken(*_):
    raise OSError('no room')

  monkeypatch.setattr(sweeping, 'compiled', broken)
  with pytest.raises(OSError, match='no room'):
    sweeping.run([], ALL, str(tmp_path), 2, time.monotonic() + 600, lambda _: None)
