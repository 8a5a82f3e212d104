"""sr4/planning/topology.py: names of slices."""

import collections

import pytest

from sr4.core import sharding
from sr4.planning import topology


@pytest.mark.parametrize(
  'name, text, chips, devices',
  [
    ('v5p:8x8x8', 'v5p:8x8x8', 512, 512),
    ('v5p-1024', 'v5p:8x8x8', 512, 512),
    ('v5p-16', 'v5p:2x2x2', 8, 8),
    ('v5p-128', 'v5p:4x4x4', 64, 64),
    ('v5p-32', 'v5p:2x2x4', 16, 16),
    ('v4-4096', 'v4:8x16x16', 2048, 2048),
    ('v5e-256', 'v5e:16x16', 256, 256),
    ('v6e-8', 'v6e:2x4', 8, 8),
    ('tpu7x:4x4x4', 'tpu7x:4x4x4', 64, 128),
    ('tpu7x-64', 'tpu7x:2x4x4', 32, 64),
    ('2*v5p:4x4x12', '2*v5p:4x4x12', 384, 384),
  ],
)
def test_names(name, text, chips, devices):
  found = topology.parse(name)
  assert (str(found), found.chips, found.devices) == (text, chips, devices)


@pytest.mark.parametrize(
  'name, told',
  [
    ('v5p', 'GENERATION:CHIPS'),
    ('v9:2x2', 'generations are v4'),
    ('v5p:8x8', '3 dimensions'),
    ('v5e:4x4x4', '2 dimensions'),
    ('v5p-1025', '2 times a power of 2'),
    ('v5p-24', '2 times a power of 2'),
    ('0*v5p:2x2x2', '3 dimensions'),
  ],
)
def test_no_such_slice(name, told):
  with pytest.raises(topology.TopologyError) as error:
    topology.parse(name)
  assert told in str(error.value) and name in str(error.value)


@pytest.mark.parametrize('axes', [{'fsdp': 64}, {'data': 4, 'fsdp': 8, 'seq': 2}, {'seq': 16}])
def test_which_rows_the_hosts_of_a_slice_hold(axes):
  """All rows are held, by as many hosts each: by several where one row is larger than a host."""
  pytest.importorskip('libtpu')
  mesh = sharding.make_mesh(topology.devices(topology.parse('v5p:4x4x4')), **axes)
  hosts = {device.process_index for device in mesh.devices.flat}
  found = [sharding.parts_of(mesh, host) for host in sorted(hosts)]
  assert len(hosts) == 16 and {of for _, of in found} == {64 // axes.get('seq', 1)}
  count = collections.Counter(part for parts, _ in found for part in parts)
  assert sorted(count) == list(range(64 // axes.get('seq', 1)))
  assert len({len(parts) for parts, _ in found}) == len(set(count.values())) == 1
