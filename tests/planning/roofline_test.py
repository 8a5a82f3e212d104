"""sr4/planning/roofline.py: times of programs that are written here, by hand."""

import types

import numpy as np
import pytest

from sr4.planning import hlo
from sr4.planning import roofline
from sr4.planning import topology as topology_lib

V5P = topology_lib.parse('v5p:2x2x2')
ASSUMED = roofline.Assumptions(matmul=0.5, hbm=0.5)
PEAK, HBM = 459e12 * 0.5, 2.77e12 * 0.5
# [8192 8192] in bf16: a product, a copy, and half of it sent to the one neighbour by one link.
PRODUCT = 2 * 8192**3 / PEAK
BYTES = 2 * 8192**2
COPY = 2 * BYTES / HBM
EXCHANGE = BYTES / 2 / 90e9
MATRIX = 'bf16[8192,8192]{1,0}'


def mesh():
  places = np.ndindex(1, 2, 2, 2, 1)
  devices = [types.SimpleNamespace(slice_index=0, coords=at[1:4], core_on_chip=0) for at in places]
  return types.SimpleNamespace(
    devices=np.array(devices), shape=dict(data=2, fsdp=2, seq=2, tensor=1)
  )


def times(*lines: str, more: str = '') -> roofline.Times:
  body = '\n'.join(f'  {line}' for line in (f'%a = {MATRIX} parameter(0)', *lines))
  text = f'{more}\nENTRY %main (a: bf16[8192,8192]) -> f32[] {{\n{body}\n}}\n'
  return roofline.model(hlo.parse(text), mesh(), V5P, ASSUMED)


def product(name: str, more='') -> str:
  return f'%{name} = {MATRIX} convolution(%a, %a), dim_labels=bf_io->bf{more}'


GROUPS = 'replica_groups=[4,2]<=[8], dimensions={0}'


def test_arithmetic_memory_and_cycles():
  found = times(product('b'))
  assert (found.matmul, found.memory) == (pytest.approx(PRODUCT), 0)
  found = times(f'%b = {MATRIX} copy(%a)')
  assert (found.matmul, found.memory) == (0, pytest.approx(COPY))
  slower = ', backend_config={"window_config":{"estimated_cycles":"17500000"}}'
  found = times(product('b', slower))
  assert V5P.spec.clock == pytest.approx(1.75e9, rel=1e-3)
  assert found.matmul == pytest.approx(PRODUCT)
  assert found.total == pytest.approx(17.5e6 / V5P.spec.clock)
  unknown = ', backend_config={"estimated_cycles":"9223372036854775807"}'
  assert times(product('b', unknown)).total == pytest.approx(PRODUCT)


def test_a_step_as_long_as_its_bandwidth():
  """Copies that are begun ahead take time when there is nothing else to do."""
  copy = (
    f'%s = (bf16[8192,8192]{{1,0:S(1)}}, {MATRIX}, u32[]) copy-start(%a)',
    '%d = bf16[8192,8192]{1,0:S(1)} copy-done(%s)',
  )
  assert times(*copy).memory == pytest.approx(COPY / 2)
  assert times(copy[0], product('b'), copy[1]).total == pytest.approx(PRODUCT)


def test_collectives():
  sync = f'%b = {MATRIX} all-to-all(%a), {GROUPS}'
  found = times(sync)
  assert found.exposed == {'seq': pytest.approx(EXCHANGE)}
  start = f'%s = ({MATRIX}, {MATRIX}) all-to-all-start(%a), {GROUPS}'
  done = f'%d = {MATRIX} all-to-all-done(%s)'
  assert times(start, done).communication == pytest.approx(EXCHANGE)
  assert times(start, product('b'), done).communication == 0
  short = f'%c = {MATRIX} copy(%a)'
  found = times(start, short, done)
  assert found.communication == pytest.approx(EXCHANGE - COPY)
  assert found.total == pytest.approx(EXCHANGE)
  two = (start, start.replace('%s', '%t'), done, done.replace('%s', '%t').replace('%d', '%e'))
  assert times(*two).communication == pytest.approx(2 * EXCHANGE)  # One after the other.
  assert found.named() == {
    'matmul': 0,
    'attention': 0,
    'memory': pytest.approx(COPY),
    'host': 0,
    'seq': pytest.approx(EXCHANGE - COPY),
  }


CALLED = f"""
%moves (p: bf16[8192,8192]) -> bf16[8192,8192] {{
  %p = {MATRIX} parameter(0)
  ROOT %x = {MATRIX} all-to-all(%p), {GROUPS}
}}
"""


def test_a_call_beside_begins_with_its_operand():
  """As the sparse cores have it: start, update with the operand, done."""
  start = '%s = ((), (), s32[8]{0}) async-start(), calls=%moves'
  update = f'%u = (({MATRIX}), {MATRIX}, s32[8]{{0}}) async-update(%s, %a)'
  done = f'%d = {MATRIX} async-done(%u)'
  assert times(start, update, product('b'), done, more=CALLED).communication == 0
  late = times(start, product('b'), update, done, more=CALLED)
  assert late.exposed == {'seq': pytest.approx(EXCHANGE)}


LOOP = f"""
%body (p: (s32[], bf16[8192,8192])) -> (s32[], bf16[8192,8192]) {{
  %p = (s32[], {MATRIX}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %a = {MATRIX} get-tuple-element(%p), index=1
  {product('b')}
  ROOT %out = (s32[], {MATRIX}) tuple(%i, %b)
}}

%five (p: (s32[], bf16[8192,8192])) -> pred[] {{
  %p = (s32[], {MATRIX}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(5)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}}

%none (p: bf16[8192,8192]) -> bf16[8192,8192] {{
  ROOT %p = {MATRIX} parameter(0)
}}

%one (a: bf16[8192,8192]) -> bf16[8192,8192] {{
  %a = {MATRIX} parameter(0)
  ROOT {product('b')}
}}
"""


def test_loops_and_branches():
  state = '%zero = s32[] constant(0)', f'%s = (s32[], {MATRIX}) tuple(%zero, %a)'
  loop = f'%w = (s32[], {MATRIX}) while(%s), condition=%five, body=%body'
  assert times(*state, loop, more=LOOP).matmul == pytest.approx(5 * PRODUCT)
  branch = f'%c = {MATRIX} conditional(%a, %a), branch_computations={{%none, %one}}'
  assert times(branch, more=LOOP).total == pytest.approx(PRODUCT)


def test_the_host():
  copy = (
    f'%s = (bf16[8192,8192]{{1,0:S(5)}}, {MATRIX}, u32[]) copy-start(%a)',
    product('b'),
    '%d = bf16[8192,8192]{1,0:S(5)} copy-done(%s)',
  )
  found = times(*copy)
  assert found.host == pytest.approx(BYTES / 16e9 - PRODUCT) and found.communication == 0


@pytest.mark.parametrize('generation', topology_lib.GENERATIONS)
def test_every_generation_has_its_kernels(generation):
  for head in (128, 256):
    assert all(0 < share < 1 for share in roofline.SPLASH[generation, head])
