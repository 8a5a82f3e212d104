"""sr4/planning/collectives.py: groups, and programs whose collectives are known."""

import types

import jax
import jax.numpy as jnp
import pytest

from sr4.core import sharding
from sr4.core.sharding import P
from sr4.planning import collectives
from sr4.planning import hlo
from sr4.planning import roofline
from tests.planning import tpu_program

CUBE = types.SimpleNamespace(shape=dict(data=2, fsdp=2, seq=2, tensor=1))


@pytest.mark.parametrize(
  'form, expected',
  [
    ('{{0,2},{1,3}}', [[0, 2], [1, 3]]),
    ('{}', [[0, 1, 2, 3, 4, 5, 6, 7]]),
    ('[4,2]<=[8]', [[0, 1], [2, 3], [4, 5], [6, 7]]),
    ('[2,4]<=[4,2]T(1,0)', [[0, 2, 4, 6], [1, 3, 5, 7]]),
    ("mesh['axis_0'=4,'axis_1'=2] {'axis_0'}", [[0, 2, 4, 6], [1, 3, 5, 7]]),
    ("mesh['a'=2,'b'=2,'c'=2] {'a','c'}", [[0, 1, 4, 5], [2, 3, 6, 7]]),
    ("mesh['a'=4,'b'=2] {'a':(2)2}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
    ("mesh['a'=4,'b'=2] {'a':(1)2}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
    ("mesh['a'=2,'b'=4, device_ids=([4,2]T(1,0))] {'b'}", None),
  ],
)
def test_groups(form, expected):
  text = f'channel_id=3, replica_groups={form}, use_global_device_ids=true'
  if expected is None:
    with pytest.raises(hlo.HloError):
      collectives.groups(text, 8)
  else:
    assert collectives.groups(text, 8).tolist() == expected


def test_groups_that_are_not_known():
  with pytest.raises(hlo.HloError, match='replica_groups'):
    collectives.groups('channel_id=3, dimensions={1}', 8)


@pytest.mark.parametrize(
  'group, axes',
  [
    ([0, 1], 'seq'),
    ([1, 3], 'fsdp'),
    ([0, 4], 'data'),
    ([0, 1, 2, 3], 'fsdp+seq'),
    (range(8), 'data+fsdp+seq'),
    ([5], ''),
  ],
)
def test_axes(group, axes):
  assert collectives.axes(group, CUBE) == axes


def test_part_of_an_axis():
  assert collectives.axes([0, 2], types.SimpleNamespace(shape=dict(fsdp=8))) == 'fsdp:2'


def test_a_program_with_one_of_each():
  """On 8 devices, in a loop of 5: what each sends is arithmetic."""
  n, length = 4096, 5
  mesh = sharding.make_mesh(data=2, fsdp=2, seq=2)

  def body(x, _):
    y = jax.lax.all_gather(x, 'fsdp', tiled=True)  # [n] -> [2 n]
    y = jax.lax.psum_scatter(y, ('fsdp', 'seq'), tiled=True)  # -> [n / 2]
    y = jax.lax.all_to_all(y.reshape(2, -1), 'seq', 0, 1, tiled=True).reshape(-1)
    y = jax.lax.ppermute(y, 'data', [(0, 1), (1, 0)])
    return jax.lax.psum(jnp.tile(y, 2), 'data') * 1e-3, None

  inner = lambda x: jax.lax.scan(body, x, None, length)[0]
  with jax.set_mesh(mesh):
    spec = P(('data', 'fsdp', 'seq'))
    run = jax.jit(jax.shard_map(inner, in_specs=spec, out_specs=spec, check_vma=False))
    x = jax.ShapeDtypeStruct((8 * n,), jnp.float32, sharding=jax.NamedSharding(mesh, spec))
    module = hlo.parse(run.lower(x).compile().as_text())
  found = {row['kind']: row for row in collectives.find(module, mesh)}
  expected = {
    'all-gather': ('fsdp', 4 * n),
    'reduce-scatter': ('fsdp+seq', 2 * 4 * n * 3 / 4),
    'all-to-all': ('seq', 4 * n / 2 / 2),
    'collective-permute': ('data', 4 * n / 2),
    'all-reduce': ('data', 2 * 4 * n / 2),
  }
  assert found.keys() == expected.keys()
  for kind, (axes, sent) in expected.items():
    row = found[kind]
    assert (row['axes'], row['count']) == (axes, length)
    assert row['gib'] * 2**30 == pytest.approx(length * sent)


@pytest.mark.parametrize('name, split', [('v5p:2x2x2', False), ('tpu7x:2x2x1', True)])
def test_of_a_tpu(name, split):
  """Weights collected for each layer, twice; gradients scattered.

  By one generation in a fusion around an all-reduce, by the other on the sparse cores.
  """
  found, mesh, _ = tpu_program.compiled(name)
  layers, width, n = tpu_program.LAYERS, tpu_program.WIDTH, mesh.shape['fsdp']
  rows = {row['kind']: row for row in collectives.find(found.module, mesh)}
  whole = layers * width * width * 2 * (n - 1) / n / 2**30
  gather, scatter = rows['all-gather'], rows['reduce-scatter']
  assert gather['axes'] == scatter['axes'] == 'fsdp'
  assert (gather['count'], scatter['count']) == (2 * layers, layers)
  assert gather['gib'] == pytest.approx(2 * whole) and scatter['gib'] == pytest.approx(whole)
  assert gather['async'] is split and scatter['async'] is split
  assert sum(row['gib'] for row in rows.values()) == pytest.approx(3 * whole, rel=1e-3)


def test_between_slices():
  """Each slice has half of the rows: what it has scattered of a gradient it sends to the other."""
  found, mesh, topology = tpu_program.compiled('2*v5p:2x2x2')
  layers, width = tpu_program.LAYERS, tpu_program.WIDTH
  (row,) = [row for row in collectives.find(found.module, mesh) if row['axes'] == 'data']
  sent = layers * width * width * 2 / mesh.shape['fsdp']
  assert row == dict(
    kind='all-reduce', axes='data', gib=sent / 2**30, count=layers, **{'async': True}
  )
  # The first is begun when there is a gradient, the last when there is nothing else to do.
  waited = roofline.model(found.module, mesh, topology).exposed['data']
  one = sent / layers / roofline.Assumptions().dcn_gbs / 1e9
  assert one < waited <= layers * one
  text = found.text.replace('_xla_megascale_transfer_type="ALL_REDUCE"', 'of=""')
  with pytest.raises(hlo.HloError, match='sends for None'):
    collectives.find(hlo.parse(text), mesh)
