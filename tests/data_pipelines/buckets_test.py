"""data_pipelines/buckets.py: shares, epochs and hosts, as counts."""

import collections
import dataclasses

import numpy as np
import pytest

from data_pipelines import buckets
from sr4.core.batch import Size

SIZE = Size(17, 32, 32, 16.0, 16000)


def _bucket(name='a', rows=8, weight=1.0, records=24, size=SIZE):
  return buckets.Bucket(name, size, rows, weight, records)


def _schedule(seed=0, cycle=64, **changes):
  mix = (
    _bucket('t2i', weight=0.55, records=40),
    _bucket('t2v', weight=0.4, records=31),
    _bucket('edit', weight=0.05, records=16, rows=16),
  )
  return buckets.Schedule(seed, changes.pop('buckets', mix), cycle)


# Shares.


@pytest.mark.parametrize(
  'weights, counts',
  [
    ((0.05, 0.05, 0.05, 0.05, 0.8), (51, 51, 51, 51, 820)),  # 51.2 and 819.2
    ((0.05, 0.95), (51, 973)),
    ((5, 95), (51, 973)),
    ((1, 1, 1), (342, 341, 341)),
    ((0, 1), (0, 1024)),
    ((0.6, 0.2, 0.2), (614, 205, 205)),
  ],
)
def test_shares_by_largest_remainder(weights, counts):
  mix = tuple(_bucket(str(i), weight=w) for i, w in enumerate(weights))
  shares = buckets.Schedule(0, mix).shares
  assert shares.sum() == buckets.CYCLE == 1024
  exact = np.array(weights) / sum(weights) * 1024
  assert np.all(np.abs(shares - exact) < 1)
  assert shares.tolist() == list(counts)


def test_a_cycle_has_exactly_its_shares_in_an_order_of_its_own():
  schedule = _schedule(cycle=1024)
  cycles = [[schedule.at(step)[0] for step in range(c * 1024, (c + 1) * 1024)] for c in range(3)]
  for cycle in cycles:
    assert np.bincount(cycle).tolist() == [563, 410, 51] == schedule.shares.tolist()
  assert cycles[0] != cycles[1] != cycles[2]
  assert cycles[0] != [buckets.Schedule(1, schedule.buckets).at(s)[0] for s in range(1024)]
  # Spread over the cycle, not in runs.
  assert np.max(np.diff(np.flatnonzero(np.array(cycles[0]) == 2))) < 200


# Records.


def _drawn(schedule, steps, hosts=1):
  """(bucket, records of the global batch in order) of each step, put together from the hosts."""
  out = []
  for step in steps:
    parts = [schedule.draws(step, (host,), hosts) for host in range(hosts)]
    assert len({b for b, _ in parts}) == 1 and len({len(draws) for _, draws in parts}) == 1
    b = parts[0][0]
    out.append((b, [schedule.record(b, draw) for _, draws in parts for draw in draws]))
  return out


def test_every_record_once_an_epoch():
  schedule = _schedule()
  seen = collections.defaultdict(list)
  for b, records in _drawn(schedule, range(300)):
    seen[b] += records
  for b, bucket in enumerate(schedule.buckets):
    epochs = [seen[b][i : i + bucket.records] for i in range(0, len(seen[b]), bucket.records)]
    whole = [e for e in epochs if len(e) == bucket.records]
    assert len(whole) >= 10
    assert all(sorted(e) == list(range(bucket.records)) for e in whole)
    assert len({tuple(e) for e in whole}) == len(whole)  # Each in another order.


def test_each_task_has_its_exact_share_of_every_cycle():
  """Table 1's 5 % each, of the rows of whole cycles and in an order of their own."""
  shares = (('t2v', 0.8), ('i2v', 0.05), ('v2v', 0.05), ('edit', 0.05), ('inpaint', 0.05))
  mix = (
    dataclasses.replace(_bucket('clips', rows=10, weight=3), tasks=shares),
    _bucket('images', weight=1),
  )
  schedule = buckets.Schedule(0, mix, cycle=40)
  order = []
  for cycle in range(3):
    drawn = [schedule.draws(40 * cycle + i) for i in range(40)]
    tasks = [schedule.task(b, draw) for b, draws in drawn if b == 0 for draw in draws]
    expected = {'t2v': 240, 'i2v': 15, 'v2v': 15, 'edit': 15, 'inpaint': 15}
    assert collections.Counter(tasks) == expected
    order.append(tasks)
  assert order[0] != order[1] != order[2]


@pytest.mark.parametrize('tasks', [(('t2v', 0.0),), (('t2v', 2.0), ('i2v', -1.0))])
def test_shares_of_tasks_that_cannot_be(tasks):
  with pytest.raises(buckets.ScheduleError, match="'a' has the tasks"):
    dataclasses.replace(_bucket(), tasks=tasks)


@pytest.mark.parametrize('records', [1, 2, 3])
def test_few_records(records):
  schedule = _schedule(buckets=(_bucket(records=records),))
  first = [schedule.record(0, draw) for draw in range(records * 4)]
  assert [sorted(first[i : i + records]) for i in range(0, len(first), records)] == (
    [list(range(records))] * 4
  )


def test_draws_do_not_depend_on_hosts():
  schedule, steps = _schedule(), range(0, 130, 7)
  one = _drawn(schedule, steps)
  for hosts in (2, 4, 8):
    assert _drawn(schedule, steps, hosts) == one


def test_any_step_directly_is_that_step_of_the_iteration():
  steps = [5, 63, 64, 130, 129, 4000]
  walked = _schedule()
  order = {step: (walked.draws(step), walked.at(step)) for step in range(4001)}
  for step in steps:
    fresh = _schedule()
    assert (fresh.draws(step), fresh.at(step)) == order[step]
  # Draws of a bucket follow each other without a gap.
  ends = collections.defaultdict(int)
  for (b, draws), _ in order.values():
    assert draws == list(range(ends[b], ends[b] + len(draws)))
    ends[b] += len(draws)


def test_attempts_name_other_records_and_always_the_same():
  schedule = _schedule()
  size = schedule.buckets[0].records
  chains = [[schedule.record(0, draw, attempt) for attempt in range(4)] for draw in range(200)]
  assert chains == [[_schedule().record(0, draw, a) for a in range(4)] for draw in range(200)]
  assert all(0 <= r < size for chain in chains for r in chain)
  assert all(chain[0] not in chain[1:] for chain in chains)  # It is the one that is bad.
  stand_ins = collections.Counter(chain[1] for chain in chains)
  assert len(stand_ins) > size * 0.8


def test_the_seed_changes_the_order():
  assert _drawn(_schedule(seed=0), range(20)) != _drawn(_schedule(seed=1), range(20))


def test_epochs_of_a_run():
  schedule = _schedule(cycle=1024)
  for epochs, share, bucket in zip(schedule.epochs(2048), schedule.shares, schedule.buckets):
    assert epochs == pytest.approx(2 * share * bucket.rows / bucket.records)


# The name of a schedule.


@pytest.mark.parametrize(
  'field, value',
  [
    ('name', 'b'),
    ('rows', 4),
    ('weight', 2.0),
    ('records', 25),
    ('size', dataclasses.replace(SIZE, frames=33)),
    ('size', dataclasses.replace(SIZE, height=64)),
    ('size', dataclasses.replace(SIZE, width=64)),
    ('size', dataclasses.replace(SIZE, fps=8.0)),
    ('size', dataclasses.replace(SIZE, samples=0)),
  ],
)
def test_fingerprint_changes_with_any_field_of_a_bucket(field, value):
  one = buckets.Schedule(0, (_bucket(), _bucket('c')))
  other = buckets.Schedule(0, (dataclasses.replace(_bucket(), **{field: value}), _bucket('c')))
  assert one.fingerprint() == buckets.Schedule(0, (_bucket(), _bucket('c'))).fingerprint()
  assert one.fingerprint() != other.fingerprint()


def test_fingerprint_changes_with_seed_cycle_and_order():
  one = buckets.Schedule(0, (_bucket(), _bucket('c')))
  others = [
    buckets.Schedule(1, one.buckets),
    buckets.Schedule(0, one.buckets, 512),
    buckets.Schedule(0, one.buckets[::-1]),
    buckets.Schedule(0, one.buckets[:1]),
  ]
  assert len({s.fingerprint() for s in (one, *others)}) == 5


# What is said.


@pytest.mark.parametrize(
  'fields, words',
  [
    (dict(records=0), ("'a'", 'no records')),
    (dict(rows=0), ("'a'", 'rows=0', 'at least 1')),
    (dict(weight=-0.5), ("'a'", 'weight=-0.5', 'not negative')),
  ],
)
def test_bucket_errors(fields, words):
  with pytest.raises(ValueError) as error:
    _bucket(**fields)
  for word in words:
    assert word in str(error.value)


def test_weights_of_nothing():
  with pytest.raises(ValueError, match='sum to 0'):
    _schedule(buckets=(_bucket(weight=0.0),)).at(0)


def test_a_host_may_have_any_parts():
  schedule = _schedule(buckets=(_bucket(rows=8),))
  whole = schedule.draws(5)[1]
  assert schedule.draws(5, (1, 3), 4)[1] == whole[2:4] + whole[6:8]


def test_rows_that_cannot_be_shared():
  with pytest.raises(ValueError) as error:
    _schedule(buckets=(_bucket(rows=8),)).draws(0, (0,), 3)
  for word in ("'a'", '8 rows', '3 equal parts', 'multiple of 3'):
    assert word in str(error.value)
