"""A small training step with known collectives, compiled for TPUs without one."""

import functools

import jax
import jax.numpy as jnp
import pytest

from sr4.core import sharding
from sr4.core.sharding import P
from sr4.planning import compiling
from sr4.planning import topology as topology_lib

LAYERS, ROWS, WIDTH = 7, 256, 1024


def step(x, w):
  """Gradients of matmuls in a scan; weights are collected over fsdp, each layer's input is kept."""

  def layer(x, w):
    w = jax.reshard(w, P(None, None)).astype(x.dtype)
    return jnp.tanh(jnp.einsum('bd,de->be', x, w)), None

  def loss(w):
    y, _ = jax.lax.scan(jax.checkpoint(layer), x, w)
    return jnp.sum(y.astype(jnp.float32) ** 2)

  return jax.grad(loss)(w)


@functools.cache
def compiled(name: str):
  """(compiling.Compiled, mesh, Topology) of the step, its rows and weights split over fsdp.

  Slices have their rows each.
  """
  pytest.importorskip('libtpu')
  lowered, mesh, topology = lower(name)
  return compiling.compiled(lowered, {}), mesh, topology


def laid_out(name: str, folder: str) -> compiling.Compiled:
  """The same, not to its end: for a process of its own."""
  return compiling.compiled(lower(name)[0], {}, folder, whole=False)


def lower(name: str):
  topology = topology_lib.parse(name)
  mesh = sharding.make_mesh(topology_lib.devices(topology), data=topology.slices, seq=2)
  like = lambda shape, dtype, spec: jax.ShapeDtypeStruct(
    shape, dtype, sharding=jax.NamedSharding(mesh, spec)
  )
  with jax.set_mesh(mesh):
    x = like((ROWS, WIDTH), jnp.bfloat16, P(('data', 'fsdp'), None))
    w = like((LAYERS, WIDTH, WIDTH), jnp.float32, P(None, 'fsdp', None))
    return jax.jit(step).lower(x, w), mesh, topology
