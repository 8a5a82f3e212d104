"""sr4/planning/operations.py: operations against arithmetic and the compiler's own count."""

import types

import jax
import jax.numpy as jnp
import pytest

from sr4.planning import hlo
from sr4.planning import operations
from tests.planning import tpu_program


def entry(*lines: str) -> hlo.Module:
  body = '\n'.join(f'  {line}' for line in lines)
  return hlo.parse(f'ENTRY %main (a: f32[]) -> f32[] {{\n{body}\n}}\n')


def test_unscanned_against_the_compiler():
  """Dots in every layout, a convolution with holes, one with groups: to the operation."""

  def f(x, w, image, kernel, grouped):
    y = jnp.einsum('bnd,bmd->bnm', x, x) @ jnp.einsum('bnd,de->bne', x, w)
    conv = lambda a, k, **how: jax.lax.conv_general_dilated(a, k, padding=((1, 2),) * 2, **how)
    z = conv(image, kernel, window_strides=(2, 1), rhs_dilation=(1, 2))
    z = conv(z, grouped, window_strides=(1, 1), lhs_dilation=(2, 1), feature_group_count=4)
    return y, z

  shapes = (3, 40, 24), (24, 16), (2, 8, 20, 20), (12, 8, 3, 5), (16, 3, 3, 3)
  compiled = jax.jit(f).lower(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)).compile()
  work = operations.program(hlo.parse(compiled.as_text()))
  assert work.flops == compiled.cost_analysis()['flops'] and not work.unknown


@pytest.mark.parametrize('name', ['v5p:2x2x2', 'tpu7x:2x2x1'])
def test_loops_count(name):
  """Forward, its recomputation, and two products of the backward pass, in each layer."""
  found, mesh, _ = tpu_program.compiled(name)
  rows = tpu_program.ROWS // mesh.shape['fsdp']
  once = 2 * rows * tpu_program.WIDTH**2 * tpu_program.LAYERS
  assert operations.program(found.module).flops == 4 * once


def test_precision_is_passes():
  module = entry(
    '%a = f32[4,8]{1,0} parameter(0)',
    '%b = f32[8,2]{1,0} parameter(1)',
    'ROOT %c = f32[4,2]{1,0} convolution(%a, %b), dim_labels=bf_io->bf, '
    'operand_precision={highest,highest}',
  )
  work = operations.program(module)
  assert (work.matmul, work.passes) == (2 * 4 * 2 * 8, 6 * 2 * 4 * 2 * 8)


@pytest.mark.parametrize(
  'phase, result, products, way',
  [
    ('fwd_segmented_residuals', 'bf16[2,6,33280,128]{3,2,1,0}', 2, 'forward'),
    ('dq_segmented_no_residuals', 'bf16[2,6,33280,128]{3,2,1,0}', 3, 'backward'),
    ('dkv_no_residuals', '(f32[512,128]{1,0}, bf16[2,6,33792,128]{3,2,1,0})', 4, 'backward'),
    ('dkv_no_residuals', '(f32[512,128]{1,0}, bf16[2,9,6,33280,128]{3,2,1,0})', 5, 'backward'),
  ],
)
def test_attention_kernels(phase, result, products, way):
  module = entry(
    '%mask = s8[1,65,33]{2,1,0} parameter(0)',
    '%q = bf16[2,6,33280,128]{3,2,1,0} parameter(1)',
    '%k = bf16[2,6,33792,128]{3,2,1,0} parameter(2)',
    f'ROOT %splash_mha_{phase}.3 = {result} custom-call(%mask, %q, %k, %k), '
    'custom_call_target="tpu_custom_call"',
  )
  work = operations.program(module)
  assert getattr(work, way) == work.flops == products * 2 * 2 * 6 * 33280 * 33792 * 128
  assert work.kernel == ('splash', 128)


@pytest.mark.parametrize('way, again', [('forward', 0), ('backward', 1000)])
def test_kernels_of_tiles_tell_their_own_cost(way, again):
  module = entry(
    '%first = s32[1]{0} parameter(0)',
    '%chosen = s32[2,64,1,1024]{3,2,1,0} parameter(1)',
    '%q = bf16[2,256,128,96]{3,2,1,0} parameter(2)',
    f'ROOT %block_sparse_{way}.2 = bf16[2,256,128,96]{{3,2,1,0}} custom-call(%first, %chosen, %q), '
    'custom_call_target="tpu_custom_call", backend_config={"custom_call_config":'
    '{"cost_estimate":{"bytes_accessed":"0","flops":"5000","transcendentals":"7"}}}',
  )
  work = operations.program(module)
  assert getattr(work, way) == work.flops == 5000 and work.again == again
  assert work.kernel == ('tiles', 128)


def test_other_kernels_are_named():
  module = entry(
    '%q = bf16[2,128]{1,0} parameter(0)',
    'ROOT %sparse_dq.7 = bf16[2,128]{1,0} custom-call(%q), custom_call_target="tpu_custom_call"',
  )
  assert operations.program(module) == operations.Work(unknown=('sparse_dq',))


def test_bytes_of_slices_and_updates():
  """A slice is read of a stack, an update written in it; what is in VMEM costs nothing."""
  text = """
%read (p0: f32[7,1024,8], p1: s32[]) -> f32[1024,8] {
  %p0 = f32[7,1024,8]{1,2,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %part = f32[1,1024,8]{1,2,0} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,1024,8}
  ROOT %flat = f32[1024,8]{0,1} bitcast(%part)
}

%write (p0: f32[7,1024,8], p1: f32[1024,8], p2: s32[]) -> f32[7,1024,8] {
  %p0 = f32[7,1024,8]{1,2,0} parameter(0)
  %p1 = f32[1024,8]{0,1} parameter(1)
  %p2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  %part = f32[1,1024,8]{1,2,0} bitcast(%p1)
  ROOT %new = f32[7,1024,8]{1,2,0} dynamic-update-slice(%p0, %part, %p2, %zero, %zero)
}

ENTRY %main (a: f32[7,1024,8]) -> f32[7,1024,8] {
  %a = f32[7,1024,8]{1,2,0} parameter(0)
  %i = s32[]{:S(6)} parameter(1)
  %one = f32[1024,8]{0,1} fusion(%a, %i), kind=kLoop, calls=%read
  %near = f32[1024,8]{0,1:S(1)} copy(%one)
  %host = f32[1024,8]{0,1:S(5)} copy(%near)
  ROOT %out = f32[7,1024,8]{1,2,0} fusion(%a, %near, %i), kind=kLoop, calls=%write
}
"""
  module = hlo.parse(text)
  size, by_name = 1024 * 8 * 4, module.entry.by_name
  moved = lambda name: operations.moved(module, module.entry, by_name[name])
  assert moved('a') == {hlo.HBM: 0, hlo.HOST: 0}
  assert moved('one')[hlo.HBM] == 2 * size
  assert moved('near')[hlo.HBM] == size
  assert moved('host') == {hlo.HBM: 0, hlo.HOST: size}
  assert moved('out')[hlo.HBM] == size


def test_positions():
  part = types.MappingProxyType({'pad': '1_1', 'lhs_dilate': '2'}).get
  # Elements at 0 and 2 of a base with a hole between them, a window of 3 over -1 .. 3.
  assert operations.positions(2, 3, 3, part) == 4
