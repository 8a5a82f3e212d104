"""sr4/planning/memory.py: what the forward loop keeps, of programs whose residuals are known."""

from sr4.planning import hlo
from sr4.planning import memory
from tests.planning import tpu_program


def test_layers_inputs():
  """Each layer's input is kept, and nothing else; gradients are stacked, too, but not read."""
  found, mesh, _ = tpu_program.compiled('v5p:2x2x2')
  rows = tpu_program.ROWS // mesh.shape['fsdp']
  kept = tpu_program.LAYERS * rows * tpu_program.WIDTH * 2
  assert memory.stacked(found.module)[hlo.HBM] == kept
  assert 0 < kept / 2**30 < found.total
  loops = [(x, at) for x, at, *_ in found.module.walk() if x.op == 'while']
  stacks = [x.types[i].dtype for x, at in loops for i in memory.updated(found.module, at, x)]
  assert sorted(stacks) == ['bf16', 'f32']


def test_of_the_host():
  text = """
%body (p: (s32[], f32[3,8])) -> (s32[], f32[3,8]) {
  %p = (s32[], f32[3,8]{1,0:S(5)}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %stack = f32[3,8]{1,0:S(5)} get-tuple-element(%p), index=1
  %x = f32[1,8]{1,0} broadcast(%i), dimensions={}
  %new = f32[3,8]{1,0:S(5)} dynamic-update-slice(%stack, %x, %i, %i)
  ROOT %out = (s32[], f32[3,8]{1,0:S(5)}) tuple(%i, %new)
}

%reader (p: (s32[], f32[3,8])) -> (s32[], f32[3,8]) {
  ROOT %p = (s32[], f32[3,8]{1,0:S(5)}) parameter(0)
}

%three (p: (s32[], f32[3,8])) -> pred[] {
  %p = (s32[], f32[3,8]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(3)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (a: (s32[], f32[3,8])) -> (s32[], f32[3,8]) {
  %a = (s32[], f32[3,8]{1,0:S(5)}) parameter(0)
  %zero = s32[] constant(0)
  %empty = f32[3,8]{1,0:S(5)} get-tuple-element(%a), index=1
  %start = (s32[], f32[3,8]{1,0:S(5)}) tuple(%zero, %empty)
  %forward = (s32[], f32[3,8]{1,0:S(5)}) while(%start), condition=%three, body=%body
  %kept = f32[3,8]{1,0:S(5)} get-tuple-element(%forward), index=1
  %state = (s32[], f32[3,8]{1,0:S(5)}) tuple(%zero, %kept)
  ROOT %backward = (s32[], f32[3,8]{1,0:S(5)}) while(%state), condition=%three, body=%reader
}
"""
  assert memory.stacked(hlo.parse(text)) == {hlo.HBM: 0, hlo.HOST: 3 * 8 * 4}
  unread = text.replace('tuple(%zero, %kept)', 'tuple(%zero, %a)')
  assert memory.stacked(hlo.parse(unread))[hlo.HOST] == 0
  summed = text.replace('body=%reader', 'body=%body')  # As gradients of microbatches are.
  assert memory.stacked(hlo.parse(summed))[hlo.HOST] == 0
  peeled = text.replace('constant(3)', 'constant(2)').replace(
    '%state = (s32[], f32[3,8]{1,0:S(5)}) tuple(%zero, %kept)',
    '%last = f32[1,8]{1,0} broadcast(%zero), dimensions={}\n'
    '  %whole = f32[3,8]{1,0:S(5)} dynamic-update-slice(%kept, %last, %zero, %zero)\n'
    '  %state = (s32[], f32[3,8]{1,0:S(5)}) tuple(%zero, %whole)',
  )
  assert memory.stacked(hlo.parse(peeled)) == memory.stacked(hlo.parse(text))
