"""Attention that never holds the logits, on TPU: JAX's splash kernel behind the house's interface.

Its plain reference is nn/attention.py `plain`.  Tokens are padded once to the kernel's blocks;
padding and what is not valid have segment ids of their own, so no query reads them.
"""

import dataclasses
import math

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info as mask_info
import jax.numpy as jnp

SAVED = 'attention'  # The name under which results may be kept for the backward pass.
LANES = 128
BLOCK = 512  # keys of a tile; fewer keys than this are not worth the padding


@dataclasses.dataclass(frozen=True)
class Blocks:
  """Tokens that the kernel holds at a time, at most, in steps of 512.

  The backward pass in one kernel computes the logits once instead of twice, and writes a part of
  dq for each of its blocks of keys: large blocks make few parts, and take VMEM (launch/flags).
  """

  queries: int = 512
  keys: int = 1024
  backward: int = 8192  # keys of the backward pass's one kernel; 0: one for dq, one for dk and dv

  def __post_init__(self):
    for field, value in dataclasses.asdict(self).items():
      if value % BLOCK or (value < BLOCK and field != 'backward'):
        raise ValueError(f'model.blocks.{field}={value} is not a multiple of {BLOCK}')


def fits(q: jax.Array, k: jax.Array) -> bool:
  """Is it worth its padding, and does the head fill the matrix unit's lanes?"""
  return q.shape[-1] % LANES == 0 and k.shape[1] >= BLOCK


def attend(q, k, v, valid, blocks: Blocks = Blocks(), interpret=False, kept=True) -> jax.Array:
  """softmax(q k^T / sqrt(k)) v over the valid keys; what a row without any gets is not defined.

  Args:
    q: [b s n k]; k, v: [b r n k]; valid: bool [b r].
    interpret: run the kernel's program on the CPU, for tests.
    kept: name the results SAVED.
  """
  length, size = q.shape[1], q.shape[-1]
  q_block = block(length, blocks.queries)
  kv_block = span = block(k.shape[1], blocks.keys)
  if blocks.backward and k.shape[1] > BLOCK:  # As few spans as it takes, no longer than they need.
    count = -(-k.shape[1] // blocks.backward)
    span = block(-(-k.shape[1] // count), blocks.backward)
    kv_block = math.gcd(count * span, blocks.keys)
  q = padded(q * size**-0.5, q_block)
  k, v, seen = (padded(x, span) for x in (k, v, valid))
  backward = span if blocks.backward else 0
  run = make(q_block, kv_block, backward, interpret, kept)
  ids = lambda seen: kernel.SegmentIds(jnp.ones(q.shape[1], jnp.int32), seen.astype(jnp.int32))
  one = lambda q, k, v, seen: run(q, k, v, segment_ids=ids(seen))
  heads_first = lambda x: jnp.swapaxes(x, 1, 2)
  out = jax.vmap(one)(*map(heads_first, (q, k, v)), seen)
  return heads_first(out)[:, :length]


def make(q_block, kv_block, backward, interpret, kept):
  """The kernel for static sizes.

  Without a mask: the library's would hold a number for each pair of blocks, which at half a million
  tokens takes a minute to write down and more scalar memory than there is.
  """
  two = dict(block_q_dq=q_block, block_kv_dq=kv_block)
  blocks = kernel.BlockSizes(
    block_q=q_block,
    block_kv=kv_block,
    block_kv_compute=math.gcd(kv_block, BLOCK),
    block_q_dkv=q_block,
    block_kv_dkv=backward or kv_block,
    block_kv_dkv_compute=min(backward or kv_block, BLOCK),
    use_fused_bwd_kernel=bool(backward),
    **({} if backward else two),
  )
  none = mask_info.MaskInfo(*(None,) * len(mask_info.MaskInfo._fields))
  return kernel.SplashAttentionKernel(
    none,
    None if backward else none,
    none,
    block_sizes=blocks,
    is_mqa=False,
    save_residuals=False,
    mask_value=kernel.DEFAULT_MASK_VALUE,
    attn_logits_soft_cap=None,
    residual_checkpoint_name=SAVED if kept else None,
    mask_function=None,
    interpret=interpret,
  )


def block(length: int, most: int) -> int:
  """A block for so many tokens, in whole lanes; a large one in whole steps of the kernel."""
  unit = LANES if length <= BLOCK else BLOCK
  return min(most, -(-length // unit) * unit)


def padded(x: jax.Array, unit: int) -> jax.Array:
  """[b s ...] with s rounded up to the unit, zeros after it."""
  extra = -x.shape[1] % unit
  return jnp.pad(x, [(0, 0), (0, extra)] + [(0, 0)] * (x.ndim - 2)) if extra else x
