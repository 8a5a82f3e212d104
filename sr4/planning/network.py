"""How long a collective takes between chips: a model, of rings on the links of a torus.

A group of devices runs over those dimensions of the torus in which its members differ, over all of
them at once.  A dimension whose ends are joined gives a device two links, one each way; a line
gives one, for its end has no other.  Members that are not neighbours share their links with the
groups between them.
"""

import dataclasses

import numpy as np

from sr4.planning import collectives
from sr4.planning import topology as topology_lib


@dataclasses.dataclass(frozen=True)
class Links:
  """GB/s that a device sends."""

  ici: float  # of one link, one way
  dcn: float  # to other slices
  on_chip: float  # to the other device of a chip


@dataclasses.dataclass(frozen=True)
class Network:
  links: Links
  extents: tuple[int, ...]  # of the torus
  wraps: tuple[bool, ...]  # are a dimension's ends joined?
  at: np.ndarray  # [devices, 1 + dimensions + 1] slice, place in the torus, place on the chip

  def seconds(self, c: collectives.Collective) -> float:
    """Of one collective that has the network to itself."""
    if not c.group:
      return 0.0
    members = self.at[list(c.group)]
    if c.kind == 'collective-permute':
      return max(self.hop(c.sent, *pair) for pair in members.reshape(-1, 2, members.shape[1]))
    if len(set(members[:, 0])) > 1:
      return c.sent / self.links.dcn / 1e9
    lines = [self.line(i, places) for i, places in enumerate(members[:, 1:-1].T)]
    lines = [line for line in lines if line[0] > 1]
    if not lines:
      return c.sent / self.links.on_chip / 1e9
    unit = self.links.ici * 1e9
    if c.kind in ('all-to-all', 'ragged-all-to-all'):
      whole = c.sent * len(c.group) / (len(c.group) - 1)
      # What crosses the middle of a dimension: half of what its half has, by two ways in a ring.
      crossing = [whole * n / (8 if ring else 4) * between for n, between, ring in lines]
      return max(crossing) / unit
    return c.sent / unit / sum((2 if ring else 1) / between for _, between, ring in lines)

  def hop(self, sent: float, source, target) -> float:
    """Seconds from one device to another, the shorter way."""
    if source[0] != target[0]:
      return sent / self.links.dcn / 1e9
    apart = np.abs(source - target)[1:-1]
    apart = np.where(self.wraps, np.minimum(apart, np.array(self.extents) - apart), apart)
    return sent / 1e9 * (max(apart) / self.links.ici if apart.any() else 1 / self.links.on_chip)

  def line(self, dimension: int, places) -> tuple[int, int, bool]:
    """(how many places along a dimension, how far apart they are, do they close a ring?)"""
    found = np.unique(places)
    between = int(np.gcd.reduce(np.diff(found))) if len(found) > 1 else 1
    ring = self.wraps[dimension] and len(found) * between == self.extents[dimension]
    return len(found), between, ring


def of(mesh, topology: topology_lib.Topology, links: Links) -> Network:
  """Of a mesh over a topology's devices; `links` as a chip has them."""
  at = [
    (getattr(d, 'slice_index', None) or 0, *d.coords, d.core_on_chip) for d in mesh.devices.flat
  ]
  extents = topology.shape + (1,) * (3 - len(topology.shape))
  # A 3-D slice has its ends joined where it is made of cubes of 4; a 2-D one where it is as long as
  # a pod.
  cubes = topology.spec.dimensions == 3 and all(n % 4 == 0 for n in topology.shape)
  joined = lambda n: cubes if topology.spec.dimensions == 3 else n == 16
  share = topology.spec.devices  # The devices of a chip have its links together.
  links = dataclasses.replace(links, ici=links.ici / share, dcn=links.dcn / share)
  return Network(links, extents, tuple(map(joined, extents)), np.array(at))
