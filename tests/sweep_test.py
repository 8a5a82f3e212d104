"""`sr4 sweep`: two layouts of a toy compiled, kept, ranked and shown."""

import json
import pathlib
import time

import pytest

from sr4.planning import sweep as sweep_lib
from sr4.planning import sweeping
from tests import small_run

STAGES = pathlib.Path(__file__).parents[1] / 'configs' / 'skyreels_v4.py'
ONE_LAYER = ('--config.model.dual_layers=1', '--config.model.single_layers=1')
FEW = ('--try.remat', 'full', '--try.blocks', '512x512', '--try.accumulate', '1')


def sweep(out, *arguments, code: int = 0) -> str:
  pytest.importorskip('libtpu')
  config = ('--config', f'{STAGES}:video2,debug,world', *ONE_LAYER)
  told = ('--topology', 'v5e:2x2', '--out', out, *arguments)
  return small_run.run('sweep', *config, *told, code=code)


BUCKET = ('--bucket', 'clips-17x16x16')


def test_layouts_are_compiled_once_and_ranked(tmp_path):
  out = sweep(tmp_path, *BUCKET, *FEW, '--processes', '2')
  told = json.loads((tmp_path / 'sweep.json').read_text())
  meshes = {tuple(row[axis] for axis in ('data', 'fsdp', 'seq', 'tensor')) for row in told['rows']}
  assert meshes == {(1, 4, 1, 1), (1, 2, 1, 2)} and not told['failed']
  first, second = told['rows']
  assert 0 < first['step_seconds'] <= second['step_seconds'] and first['candidate'] in told['front']
  assert f'--config.mesh.fsdp={first["fsdp"]}' in told['launch'] and told['launch'] in out
  assert told['dropped'] == {'spread': 3, 'heads': 1, 'tokens': 4}
  page = (tmp_path / 'sweep.html').read_text()
  assert page.count('<circle') == 2 and second['candidate'] in page
  # What is kept is not compiled again: there is no time for it here.
  sweep(tmp_path, *BUCKET, *FEW, '--minutes', '0')
  again = json.loads((tmp_path / 'sweep.json').read_text())
  assert again == told
  # Nor is it taken for another sweep's.
  other = (*BUCKET, *FEW, '--minutes', '0', '--config.optimizer.warmup=3')
  assert 'has a sweep of another config' in sweep(tmp_path, *other, code=1)


CANDIDATE = sweep_lib.Candidate(1, 4, 1, 1, 'full', 512, 512, 1)


def test_what_the_compiler_refuses_is_kept_and_what_the_machine_lacks_is_not(tmp_path, monkeypatch):
  asked = ['--config', f'{STAGES}:video2,debug', '--topology', 'v5e:2x2', '--bucket', 'nowhere']
  (row,) = sweeping.run(asked, [CANDIDATE], tmp_path, 1, time.monotonic() + 60, lambda _: None)
  assert '--bucket nowhere' in row['error'] and not list(tmp_path.iterdir())
  refused = {'buckets': [], 'refused': {'clips': 'VMEM is full'}}
  (tmp_path / f'{CANDIDATE.name}.json').write_text(json.dumps(refused))
  (row,) = sweeping.run(asked, [CANDIDATE], tmp_path, 1, 0.0)
  assert row['error'] == 'VMEM is full' and row['candidate'] == CANDIDATE.name


def test_no_time_and_dry_compile_nothing(tmp_path):
  out = sweep(tmp_path, *BUCKET, *FEW, '--minutes', '0')
  assert '0 of 2 are compiled' in out and 'none of them fits' in out
  dry = sweep(tmp_path / 'dry', *BUCKET, *FEW, '--dry')
  assert dry.count('to compile') == 3
  assert '2 heads over tensor=4' in dry and not (tmp_path / 'dry').exists()


@pytest.mark.parametrize(
  'arguments, told',
  [
    (('--bucket', 'clips'), 'the buckets are clips-17x16x16'),
    ((*BUCKET, '--try.blocks', '512'), 'blocks=512 are written QUERIESxKEYS'),
    ((*BUCKET, '--try.remat', 'some'), "remat='some'"),
    ((*BUCKET, '--topology', 'v5e:2'), '2 dimensions'),
    ((*BUCKET, '--try.accumulate', '0'), 'accumulate=(0,)'),
    ((*BUCKET, '--processes', '0'), '--processes 0 must be 1 or more'),
    ((*BUCKET, '--minutes', 'nan'), '--minutes nan must be 0 or more, and finite'),
  ],
)
def test_wrong_input(arguments, told, tmp_path):
  assert told in sweep(tmp_path, *arguments, code=1)
