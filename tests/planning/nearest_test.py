"""sr4/planning/nearest.py: what is tried, in which order, and where it ends."""

import types

import pytest

from sr4.core import errors
from sr4.planning import compiling
from sr4.planning import nearest
from sr4.planning import page
from sr4.planning import topology as topology_lib

TOPOLOGY = topology_lib.parse('v5p:2x2x4')
CONFIG = {'data': {'buckets': {'clips': {'rows': 64}}}}


def sections(accumulate=1, seq=1, fsdp=-1):
  return types.SimpleNamespace(
    step=types.SimpleNamespace(accumulate=accumulate),
    mesh=types.SimpleNamespace(seq=seq, fsdp=fsdp),
  )


def find(fits, tries=20, remat='offload', c=None):
  """What was compiled, and the answer; fits: (overrides, topology) -> bool, or an error."""
  asked = []

  def planned(overrides, topology):
    asked.append(overrides)
    return {'fits': fits(overrides, topology), 'hbm_gib': {'total': 7.0}}

  c = c or sections()
  return asked, nearest.find(planned, CONFIG, c, remat, 'clips', TOPOLOGY, tries)


def test_the_order():
  asked, found = find(lambda *_: False)
  full, parts = ('model.remat=full',), ('step.accumulate=2',)
  longer, fewer = ('mesh.seq=2',), ('data.buckets.clips.rows=32',)
  assert asked == [
    full,
    parts,
    longer + parts,
    full + parts,
    full + longer + parts,
    full + fewer,
    full + longer + fewer,
    full,  # On twice the chips.
  ]
  assert not found['fits'] and len(found['tried']) == len(asked)
  assert found['tried'][0]['change'] == '--config.model.remat=full'
  assert found['tried'][-1]['change'].endswith('--topology=v5p:2x4x4')


def test_the_first_that_fits():
  asked, found = find(lambda overrides, _: 'step.accumulate=4' in overrides, c=sections(2, 4, 8))
  assert found['change'] == '--config.step.accumulate=4'
  assert found['fits'] and len(asked) == len(found['tried']) == 2
  asked, _ = find(lambda *_: False, c=sections(2, 4, 8))
  assert ('mesh.seq=8', 'mesh.fsdp=4', 'step.accumulate=4') in asked


def test_policies_that_keep_less():
  asked, _ = find(lambda *_: False, remat='none', tries=4)
  policies = 'results', 'attention', 'offload', 'full'
  assert asked == [(f'model.remat={policy}',) for policy in policies]
  asked, _ = find(lambda *_: False, remat='full', tries=1)
  assert asked == [('step.accumulate=2',)]


def test_what_cannot_be_is_no_try():
  def fits(overrides, topology):
    if 'step.accumulate=2' in overrides:
      raise errors.UserError('rows do not divide')
    return False

  asked, found = find(fits, tries=2)
  assert len(found['tried']) == 2 and len(asked) > 2


def test_what_the_compiler_refuses_is_a_try():
  def fits(overrides, topology):
    raise compiling.DoesNotCompile('no')

  asked, found = find(fits, tries=2)
  assert len(asked) == 2 and [t['total'] for t in found['tried']] == [None, None]
  assert 'remat=full: refused' in page.advice(found)


@pytest.mark.parametrize('name, more', [('v6e:8x16', 'v6e:16x16'), ('v5p:4x4x4', 'v5p:4x4x8')])
def test_twice_the_chips(name, more):
  assert str(nearest.doubled(topology_lib.parse(name))) == more
