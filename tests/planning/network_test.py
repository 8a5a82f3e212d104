"""sr4/planning/network.py: times of collectives on links that are counted by hand."""

import types

import numpy as np
import pytest

from sr4.planning import collectives
from sr4.planning import network
from sr4.planning import topology as topology_lib

GB = 1e9
LINKS = network.Links(ici=100, dcn=10, on_chip=600)


def over(name: str) -> network.Network:
  """Of all devices of a topology in the order of its places, the last dimension first."""
  topology = topology_lib.parse(name)
  sides = (topology.slices, *topology.shape, *(1,) * (3 - len(topology.shape)))
  places = np.ndindex(*sides, topology.spec.devices)
  devices = [
    types.SimpleNamespace(slice_index=at[0], coords=at[1:4], core_on_chip=at[4]) for at in places
  ]
  mesh = types.SimpleNamespace(devices=np.array(devices))
  return network.of(mesh, topology, LINKS)


def take(name: str, kind: str, group) -> float:
  return over(name).seconds(collectives.Collective(kind, 'seq', 24 * GB, tuple(group)))


@pytest.mark.parametrize(
  'name, group, seconds',
  [
    ('v5p:4x4x4', range(4), 24 / 200),  # A ring.
    ('v5p:2x2x2', range(2), 24 / 100),  # Two, of which each is an end.
    ('v5p:4x4x4', range(2), 24 / 100),
    ('v5p:4x4x4', range(16), 24 / 400),  # Two dimensions at once.
    ('v5p:4x4x8', (0, 2, 4, 6), 24 / 100),  # A ring whose links two groups share.
    ('v6e:8x8', range(8), 24 / 100),  # No ring: shorter than a pod.
    ('v5p:2x4x4', range(4), 24 / 100),  # No ring: this slice is not of cubes.
    ('v6e:16x16', range(16), 24 / 200),
    ('tpu7x:4x4x4', (0, 1), 24 / 600),  # Of one chip.
    ('tpu7x:4x4x4', range(0, 8, 2), 24 / 100),  # A ring, its links shared by the chip's two.
    ('2*v5p:2x2x2', (0, 8), 24 / 10),
  ],
)
def test_ring(name, group, seconds):
  assert take(name, 'all-gather', group) == pytest.approx(seconds)


@pytest.mark.parametrize(
  'name, group, seconds',
  [
    ('v5p:4x4x4', range(4), 32 / 100 * 4 / 8),
    ('v6e:8x8', range(4), 32 / 100 * 4 / 4),
    ('v5p:2x2x2', range(2), 48 / 100 * 2 / 4),  # What is sent, and nothing passes through.
  ],
)
def test_all_to_all(name, group, seconds):
  assert take(name, 'all-to-all', group) == pytest.approx(seconds)


def test_permute_and_nothing():
  of = lambda name, *places: pytest.approx(take(name, 'collective-permute', places))
  assert of('v5p:4x4x4', 0, 1) == 24 / 100
  assert of('v5p:8x8x8', 0, 7) == 24 / 100  # The ends of a ring are neighbours.
  assert of('v6e:8x8', 0, 7) == 24 / 100 * 7  # Those of a line are not.
  assert of('v5p:8x8x8', 0, 1, 0, 3) == 24 / 100 * 3  # As long as the longest takes,
  assert of('2*v5p:2x2x2', 0, 1, 0, 8) == 24 / 10  # to another slice
  assert of('tpu7x:4x4x4', 0, 1) == 24 / 600  # or to the other device of a chip.
  assert take('v5p:4x4x4', 'collective-permute', ()) == 0
