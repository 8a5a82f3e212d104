"""`sr4 plan`: the TPU compiler's answer, on a machine without one."""

import json
import pathlib

import pytest

from tests import small_run

STAGES = pathlib.Path(__file__).parents[1] / 'configs' / 'skyreels_v4.py'


def plan(*arguments):
  pytest.importorskip('libtpu')
  return small_run.start('plan', *arguments)


def test_a_toy_stage_fits(tmp_path):
  page = tmp_path / 'plan.json'
  out = small_run.finish(
    plan(
      *('--config', f'{STAGES}:joint,debug,world', '--topology', 'v5e:2x2', '--json', page),
      *(
        '--bucket',
        'clips-17x16x32',
        '--config.mesh.seq=2',
        '--config.model.dual_layers=1',
        '--config.model.single_layers=1',
      ),
    )
  )
  told = json.loads(page.read_text())
  assert told['mesh'] == {'data': 1, 'fsdp': 2, 'seq': 2, 'tensor': 1} and told['chips'] == 4
  (row,) = told['buckets']
  gib = row['hbm_gib']
  parts = [gib[part] for part in ('parameters', 'optimizer', 'batch', 'temporaries')]
  assert row['fits'] and gib['total'] == pytest.approx(sum(parts)) and min(parts) > 0
  assert gib['total'] < gib['capacity'] == 15.75 and row['flops']['model'] > 0
  assert row['name'] == 'clips-17x16x32' and row['name'] in out


def test_what_does_not_fit_says_by_how_much(tmp_path):
  page = tmp_path / 'plan.json'
  clip = '--config.data.buckets.clips-81x480x832'
  out = small_run.finish(
    plan(
      *('--config', f'{STAGES}:video4,tiny', '--topology', 'v5e:1x1', '--json', page),
      *('--bucket', 'clips-81x480x832', f'{clip}.rows=2', '--config.model.remat=none'),
    ),
    code=1,
  )
  (row,) = json.loads(page.read_text())['buckets']
  assert not row['fits'] and row['hbm_gib']['total'] > row['hbm_gib']['capacity']
  assert ' NO ' in out and 'Traceback' not in out


@pytest.mark.parametrize(
  'arguments, told',
  [
    (('--topology', 'v5p:8x8'), '3 dimensions'),
    (('--topology', 'v5e:2x2', '--bucket', 'clips'), 'the buckets are clips-17x16x32'),
    (('--topology', 'v5e:2x2', '--config.mesh.seq=3'), 'does not divide the 4'),
    (('--topology', 'v5e:4x4'), 'must be a multiple of data x fsdp'),
  ],
)
def test_wrong_input(arguments, told):
  out = small_run.finish(plan('--config', f'{STAGES}:joint,debug,world', *arguments), code=1)
  assert told in out and 'Traceback' not in out
