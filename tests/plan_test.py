"""`sr4 plan`: the TPU compiler's answer, on a machine without one.

To accept other collectives: LAYOUTS=write python -m pytest tests/plan_test.py, and read the diff.
"""

import json
import os
import pathlib

import pytest

from sr4.core import flags
from tests import small_run

STAGES = pathlib.Path(__file__).parents[1] / 'configs' / 'skyreels_v4.py'
COLLECTIVES = pathlib.Path(__file__).parent / 'models' / 'layouts' / 'collectives.txt'


def plan(*arguments):
  pytest.importorskip('libtpu')
  return small_run.start('plan', *arguments)


def test_a_toy_stage_fits(tmp_path):
  page, html = tmp_path / 'plan.json', tmp_path / 'plan.html'
  out = small_run.finish(
    plan(
      *('--config', f'{STAGES}:joint,debug,world', '--topology', 'v5e:2x2', '--json', page),
      *('--html', html, '--chip_hour_usd', '2', '--bucket', 'clips-17x16x32'),
      *(
        '--config.mesh.seq=2',
        '--config.model.dual_layers=1',
        '--config.model.single_layers=2',
        '--config.model.remat=full',
        '--config.train.steps=1000',
      ),
    )
  )
  told = json.loads(page.read_text())
  assert told['mesh'] == {'data': 1, 'fsdp': 2, 'seq': 2, 'tensor': 1} and told['chips'] == 4
  assert told['options'] == flags.read(flags.HERE / 'v5e.txt')
  (row,) = told['buckets']
  gib = row['hbm_gib']
  parts = [gib[part] for part in ('parameters', 'optimizer', 'batch', 'temporaries')]
  assert row['fits'] and gib['total'] == pytest.approx(sum(parts) + gib['activations'])
  assert min(parts) > 0 and gib['total'] < gib['capacity'] == 15.75
  assert row['name'] == 'clips-17x16x32' and row['name'] in out
  # Each layer is computed again; its kept inputs and the tokens' padding are not the model's.
  assert row['recompute'] == row['flops']['compiled'] / row['flops']['model']
  assert 1 < row['rematerialised'] <= row['recompute'] < 1.6
  assert written(row['collectives']) == COLLECTIVES.read_text()
  best, worst = row['step_range']
  assert 0 < best < row['step_seconds'] < worst and 0 < row['mfu'] < 1
  assert sum(row['seconds'].values()) == pytest.approx(row['step_seconds'])
  assert row['chip_seconds_per_sample'] == 4 * row['step_seconds'] / row['rows']
  hours = row['steps'] * row['step_seconds'] / 3600
  assert (row['days'], row['usd']) == pytest.approx((hours / 24, hours * 4 * 2))
  assert html.read_text().startswith('<!doctype html>') and row['name'] in html.read_text()


def written(collectives: list[dict]) -> str:
  """A table of them; of the compiled step of a joint clip on 4 chips, fsdp 2 and seq 2."""
  rows = [
    f'{row["kind"]:<20} {row["axes"]:<12} {row["count"]:>4} {row["gib"] * 1024:>9.4f} MiB'
    for row in collectives
  ]
  found = '\n'.join([*sorted(rows), ''])
  if os.environ.get('LAYOUTS') == 'write':
    COLLECTIVES.write_text(found)
  return found


def test_what_does_not_fit_says_by_how_much_and_what_was_tried(tmp_path):
  page, clip = tmp_path / 'plan.json', 'sounds-15s'
  out = small_run.finish(
    plan(
      *('--config', f'{STAGES}:audio,debug', '--topology', 'v5e:1x1', '--json', page),
      *('--bucket', clip, f'--config.data.buckets.{clip}.rows=2048'),
      *('--config.model.remat=none', '--config.model.single_layers=3', '--nearest', '1'),
    ),
    code=1,
  )
  (row,) = json.loads(page.read_text())['buckets']
  gib = row['hbm_gib']
  assert not row['fits'] and gib['total'] > gib['capacity'] and row['step_seconds'] is None
  assert gib['activations'] > gib['temporaries']  # The logits of all layers.
  assert ' NO ' in out and 'Traceback' not in out
  (tried,) = row['nearest']['tried']
  assert tried['change'] == '--config.model.remat=results' and not row['nearest']['fits']
  assert gib['capacity'] < tried['total'] < gib['total'] / 2
  assert f'remat=results: {tried["total"]:.2f} GiB' in out


@pytest.mark.parametrize(
  'arguments, told',
  [
    (('--topology', 'v5p:8x8'), '3 dimensions'),
    (('--topology', 'v5e:2x2', '--bucket', 'clips'), 'the buckets are clips-17x16x32'),
    (('--topology', 'v5e:2x2', '--config.mesh.seq=3'), 'does not divide the 4'),
    (('--topology', 'v5e:4x4'), 'must be a multiple of data x fsdp'),
    (('--topology', 'v5e:2x2', '--flags', str(STAGES)), 'must read --NAME=VALUE'),
  ],
)
def test_wrong_input(arguments, told):
  pytest.importorskip('libtpu')
  assert told in small_run.run(
    'plan', '--config', f'{STAGES}:joint,debug,world', *arguments, code=1
  )
