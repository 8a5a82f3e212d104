"""sr4/planning/cost.py: the stage's volume, in days and dollars."""

import pytest

from configs import skyreels_v4
from configs import world
from sr4.planning import cost
from sr4.planning import topology


def test_table_1():
  """50 M clips and 25 M sounds, twice: what the steps of the joint stage have in rows."""
  config = skyreels_v4.get_config('joint,large')
  steps, rows = cost.steps(config), {k: b['rows'] for k, b in config.data.buckets.items()}
  samples = sum(steps[name] * rows[name] for name in steps)
  assert samples == pytest.approx(2 * (50e6 + 25e6), rel=1e-3)


def test_a_bucket_that_says_no_weight():
  assert cost.steps(world.get_config('refiner')) == {'refiner': 5000}


def test_volume():
  found = cost.volume({'step_seconds': 3.0, 'rows': 4}, steps=2400, chips=8, chip_hour_usd=4.2)
  assert found == {'steps': 2400, 'samples': 9600, 'days': 2 / 24, 'usd': 2 * 8 * 4.2}
  found = cost.volume({'step_seconds': None, 'rows': 4}, 2400, 8, 4.2)
  assert found['days'] is found['usd'] is None


def test_a_price_for_each():
  assert cost.CHIP_HOUR_USD.keys() == topology.GENERATIONS.keys()
