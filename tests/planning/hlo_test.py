"""sr4/planning/hlo.py: the compiler's text, by parts that are written here."""

import pytest

from sr4.planning import hlo

TEXT = """HloModule jit_f, is_scheduled=true

%body.1 (p: (s32[], bf16[7,64])) -> (s32[], bf16[7,64]) {
  %p = (s32[]{:T(128)}, /*index=1*/bf16[7,64]{1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %gte = s32[]{:T(128)} get-tuple-element(%p), index=0
  %one = s32[]{:T(128)} constant(1)
  %kernel.3 = bf16[7,64]{1,0} custom-call(%gte), custom_call_target="tpu_custom_call", x={y={
"a":"b"
}}, metadata={op_name="body=%nothing"}
  ROOT %out = (s32[], bf16[7,64]) tuple(%gte, %kernel.3)
}, execution_thread="main"

%condition.1 (p: (s32[], bf16[7,64])) -> pred[] {
  %p = (s32[], bf16[7,64]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(7)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (a: (s32[], bf16[7,64])) -> (s32[], bf16[7,64]) {
  %a = (s32[], bf16[7,64]) parameter(0)
  %w = bf16[7,64] get-tuple-element(%a), index=1
  %zero = s32[] constant(0)
  %first = s32[] copy(%zero)
  %start = (s32[], bf16[7,64]) tuple(%first, %w)
  ROOT %loop = (s32[], bf16[7,64]) while(%start), condition=%condition.1, body=%body.1
}
"""


def test_types():
  padded, scalar, quarter = hlo.arrays(
    '(bf16[3,16380,12]{0,2,1:T(8,128)(2,1)S(5)}, f32[]{:T(128)}, s4[6]{0})'
  )
  assert padded.dims == (3, 16380, 12) and padded.space == hlo.HOST
  assert padded.bytes == 3 * 16380 * 12 * 2
  assert padded.held == 16380 * 16 * 128 * 2  # 3 is the fastest dimension, 12 the next.
  assert (scalar.dims, scalar.bytes, scalar.held) == ((), 4, 4)
  assert quarter.bytes == 3
  assert hlo.arrays('f8e4m3fn[2]{0}')[0].bits == 8 and hlo.arrays('pred[9]')[0].bytes == 9
  with pytest.raises(hlo.HloError, match='strange'):
    _ = hlo.arrays('strange[2]')[0].bits


def test_program():
  module = hlo.parse(TEXT)
  assert module.entry.name == 'main' and set(module.computations) == {
    'body.1',
    'condition.1',
    'main',
  }
  found = {x.name: (times, [call.name for call in within]) for x, _, times, within in module.walk()}
  assert found['loop'] == (1, []) and found['kernel.3'] == (7, ['loop'])
  body = module.body(module.entry.root)
  assert body.root.name == 'out' and body.operand(body.root, 1).name == 'kernel.3'
  kernel = body.by_name['kernel.3']
  assert body.operand(kernel).types[0].dtype == 's32' and 'op_name' in kernel.rest
  assert body.by_name['p'].types[1].space == hlo.VMEM
  assert body.by_name['gte'].number('index') == 0
  assert [x.name for x in body.users['gte']] == ['kernel.3', 'out']


def test_trips():
  known = TEXT.replace('body=%body.1', 'body=%body.1, b={"known_trip_count":{"n":"12"}}')
  trips = lambda text: (module := hlo.parse(text)).trips(module.entry, module.entry.root)
  assert trips(known) == 12 and trips(TEXT) == 7
  # The first step is taken out of the loop.
  assert trips(TEXT.replace('%zero = s32[] constant(0)', '%zero = s32[] constant(1)')) == 6
  with pytest.raises(hlo.HloError, match='0 constants'):
    trips(TEXT.replace('compare(%i, %n)', 'compare(%i, %i)'))
  with pytest.raises(hlo.HloError, match='loop: its counter begins at w, not a constant'):
    trips(TEXT.replace('tuple(%first, %w)', 'tuple(%w, %w)'))


def test_called():
  fusion = hlo.instruction('  %f = f32[2]{0} fusion(%a), kind=kCustom, calls=%g.1, to_apply=%add')
  assert fusion.called == ('g.1',)
  assert hlo.instruction('  %f = f32[2]{0} reduce(%a), to_apply=%add').called == ()
  assert hlo.instruction('  %f = f32[2]{0} call(%a), to_apply=%add').called == ('add',)
  branches = hlo.instruction('  ROOT %f = f32[] conditional(%a), branch_computations={%x, %y.2}')
  assert branches.called == ('x', 'y.2') and branches.root


def test_no_program():
  with pytest.raises(hlo.HloError, match='ENTRY'):
    hlo.parse('HloModule jit_f\n')
