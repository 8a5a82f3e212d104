"""sr4/planning/sweep.py: which layouts there are, and why some are not worth compiling."""

import dataclasses
import math

import pytest

from sr4.models import mmdit
from sr4.planning import sweep
from sr4.planning import topology

LARGE = mmdit.Config(**mmdit.SIZES['large'])
JOB = sweep.Job(LARGE, int(27e9), 256, 75600, topology.parse('v5p:8x8x8'))
GOOD = sweep.Candidate(8, 16, 4, 1, 'attention', 512, 1024, 1)


def test_candidates_are_all_the_layouts_once():
  job = dataclasses.replace(JOB, topology=topology.parse('v5e:2x4'))
  found = list(sweep.candidates(job, sweep.Choices(('full',), ((512, 512),), (1,))))
  meshes = {(c.data, c.fsdp, c.seq, c.tensor) for c in found}
  assert len(found) == len(meshes) == math.comb(3 + 3, 3)  # Three twos over four axes.
  assert {math.prod(mesh) for mesh in meshes} == {8}
  many = list(sweep.candidates(job))
  assert len(many) == len({c.name for c in many}) == len(found) * 3 * 2 * 5


def test_slices_that_are_no_power_of_two():
  job = dataclasses.replace(JOB, topology=topology.parse('v5p:4x4x12'))
  found = {(c.data, c.fsdp, c.seq, c.tensor) for c in sweep.candidates(job)}
  assert {math.prod(mesh) for mesh in found} == {192} and (1, 48, 4, 1) in found


def test_a_good_one_has_nothing_against_it():
  assert sweep.objection(GOOD, JOB) == ('', '')


@pytest.mark.parametrize(
  'changes, rule, told',
  [
    (dict(tensor=3), 'heads', '32 heads'),
    (dict(fsdp=3), 'width', 'fsdp x seq = 12'),
    (dict(accumulate=4), 'rows', '256 rows'),
    (dict(data=4, fsdp=1, seq=256), 'tokens', '295 tokens'),
    (dict(data=1, fsdp=2, seq=128, tensor=2), 'neighbours', '8 devices'),
    (dict(data=2, fsdp=64), 'collected', '256 devices'),
    (dict(data=32, fsdp=4), 'spread', '16 devices'),
    (dict(data=1, tensor=8), 'moved', 'tensor=8'),
  ],
)
def test_each_rule(changes, rule, told):
  name, why = sweep.objection(dataclasses.replace(GOOD, **changes), JOB)
  assert name == rule and told in why


def test_slices_lie_along_data():
  two = dataclasses.replace(JOB, topology=topology.parse('2*v5p:8x8x8'))
  assert sweep.objection(dataclasses.replace(GOOD, data=1), two)[0] == 'slices'


def test_what_cannot_lie_on_a_device():
  small = dataclasses.replace(JOB, topology=topology.parse('v5e:16x16'))
  name, why = sweep.objection(dataclasses.replace(GOOD, data=4), small)
  assert not name, why
  larger = dataclasses.replace(small, parameters=int(100e9))
  assert sweep.objection(dataclasses.replace(GOOD, data=4), larger)[0] == 'memory'


def test_where_64_devices_hold_too_much_more_of_them_may_share_a_weight():
  many = dataclasses.replace(GOOD, data=2, fsdp=8, seq=16)
  for name, rule in (('v5e:16x16', ''), ('v6e:16x16', 'collected')):
    job = dataclasses.replace(JOB, topology=topology.parse(name))
    assert sweep.objection(many, job)[0] == rule


def test_a_rule_that_is_added_is_seen(monkeypatch):
  monkeypatch.setattr(sweep, 'RULES', (lambda c, job: c.seq == 4 and 'four',))
  assert sweep.objection(GOOD, JOB)[1] == 'four'
  assert sweep.objection(dataclasses.replace(GOOD, seq=2), JOB) == ('', '')


def test_the_front_has_what_nothing_beats_in_both():
  row = lambda gib, seconds: {'hbm_gib': {'total': gib}, 'step_seconds': seconds}
  rows = [row(10, 5), row(20, 3), row(15, 6), row(20, 4), row(30, 3), row(40, 1)]
  assert sweep.front(rows) == [row(10, 5), row(20, 3), row(40, 1)]
