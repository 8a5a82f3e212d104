"""Programs compiled for one TPU, without one."""

import jax
import pytest

from sr4.core import flags
from sr4.core import sharding
from sr4.planning import topology as topology_lib

GIB = 1 << 30


def compiled(function, *shapes, chip: str = 'v5e'):
  """A jitted function of jax.ShapeDtypeStructs, compiled to machine code with launch/flags."""
  pytest.importorskip('libtpu')
  shape = ['2x2', '2x2x1'][topology_lib.GENERATIONS[chip].dimensions - 2]
  devices = topology_lib.devices(topology_lib.parse(f'{chip}:{shape}'))
  mesh = sharding.make_mesh(devices[:1])
  with jax.set_mesh(mesh):
    whole = jax.NamedSharding(mesh, sharding.P())
    placed = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole) for x in shapes]
    return jax.jit(function).lower(*placed).compile(compiler_options=flags.of(chip, {}))


def temporaries(function, *shapes, chip: str = 'v5e') -> float:
  """GiB of a device that a program takes beside what goes in and out."""
  return compiled(function, *shapes, chip=chip).memory_analysis().temp_size_in_bytes / GIB
