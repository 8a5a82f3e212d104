"""sr4/models/block.py: parity of each part with a published block.

Random weights everywhere, gates included, copied from torch into ours; fp32.
"""

import dataclasses

from diffusers.models.transformers import transformer_flux as flux
from diffusers.models.transformers import transformer_hunyuan_video as hunyuan
from diffusers.models.transformers import transformer_kandinsky6 as kandinsky
from diffusers.models.transformers import transformer_wan as wan
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from sr4.core.av import AV
from sr4.models import block
from sr4.nn import norm
from sr4.nn import rope
from tests.models import small_layer as small

pytestmark = pytest.mark.usefixtures('quick_compile')

CLOSE = 1e-5  # relative L2, fp32


def _torch_random(module, seed=0):
  """Every weight normal with deviation 0.2, about 1 where it is the scale of a norm."""
  torch.manual_seed(seed)
  scales = [
    m.weight
    for m in module.modules()
    if 'Norm' in type(m).__name__ and getattr(m, 'weight', None) is not None
  ]
  with torch.no_grad():
    for p in module.parameters():
      p.normal_(std=0.2)
    for p in scales:
      p.add_(1)
  return module.eval()


def _array(x) -> np.ndarray:
  return x.detach().numpy()


def _copy(ours, *theirs):
  """torch linears side by side -> one of ours: (out, in) each -> (in, [linears,] out), reshaped."""
  kernel = np.stack([_array(t.weight).T for t in theirs], 1)
  bias = np.stack([_array(t.bias) for t in theirs])
  ours.kernel[...] = jnp.asarray(kernel.reshape(ours.kernel[...].shape))
  ours.bias[...] = jnp.asarray(bias.reshape(ours.bias[...].shape))


def _copy_scales(ours, q, k):
  ours.q_norm.scale[...] = jnp.asarray(_array(q.weight))
  ours.k_norm.scale[...] = jnp.asarray(_array(k.weight))


def _rows(chunks, table) -> np.ndarray:
  """[rows b d] to be given in Context.mod so that, with this table added, theirs come out."""
  rows = np.stack([_array(c) for c in chunks.chunk(len(table), dim=1)])
  return rows - np.asarray(table)[:, None]


def _inputs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Tokens, text and what modulates them, of two rows."""
  return (
    small.normal(2, small.S, small.WIDTH),
    small.normal(2, small.TEXT, small.WIDTH, seed=1),
    small.normal(2, small.WIDTH, seed=2),
  )


def _over_batch(angle, b=2):
  return np.broadcast_to(np.asarray(angle), (b, *angle.shape[1:]))


def _copy_dual(branch, theirs):
  """A dual-stream block of diffusers, Hunyuan's or Flux's, into a Branch."""
  a = theirs.attn
  _copy(branch.tokens.qkv, a.to_q, a.to_k, a.to_v)
  _copy(branch.text.qkv, a.add_q_proj, a.add_k_proj, a.add_v_proj)
  _copy(branch.tokens.out, a.to_out[0])
  _copy(branch.text.out, a.to_add_out)
  _copy_scales(branch.tokens, a.norm_q, a.norm_k)
  _copy_scales(branch.text, a.norm_added_q, a.norm_added_k)
  for ours, ff in ((branch.tokens, theirs.ff), (branch.text, theirs.ff_context)):
    _copy(ours.up, ff.net[0].proj)
    _copy(ours.down, ff.net[2])


def _dual_mods(branch, theirs, temb):
  silu = torch.nn.functional.silu(temb)
  mod = np.zeros((9, len(temb), small.WIDTH), np.float32)
  mod[:6] = _rows(theirs.norm1.linear(silu), branch.tokens.table[...])
  return {'mod': mod, 'text_mod': _rows(theirs.norm1_context.linear(silu), branch.text.table[...])}


def test_dual_stream_as_hunyuan(relative, randomized):
  """Self-attention and MLP of both streams, padded tokens and text: HunyuanVideoTransformerBlock.

  The audio branch of a layer without video is exactly that block.
  """
  theirs = _torch_random(
    hunyuan.HunyuanVideoTransformerBlock(small.HEADS, small.WIDTH // small.HEADS, 4.0)
  )
  layer = small.layer(randomized, dual=True)
  _copy_dual(layer.audio, theirs)
  x, text, temb = _inputs()
  valid, text_valid = np.ones((2, small.S), bool), np.ones((2, small.TEXT), bool)
  valid[1, 9:], text_valid[0, 3:] = False, False
  rotary = hunyuan.HunyuanVideoRotaryPosEmbed(1, 1, [8, 8, 8])(torch.zeros(1, 1, *small.GRID))
  with torch.no_grad():
    expected = theirs(
      *map(torch.tensor, (x, text, temb)),
      freqs_cis=rotary,
      attention_mask=torch.tensor(np.concatenate([valid, text_valid], 1))[:, None, None],
    )
  ctx = small.context(
    _over_batch(rope.angles(jnp.asarray(small.coordinates()), (8, 8, 8), 256.0)),
    valid=valid,
    text_valid=text_valid,
    **_dual_mods(layer.audio, theirs, torch.tensor(temb)),
  )
  _, out = small.apply(layer, AV(None, small.tokens(x, text)), AV(None, ctx))
  assert relative(out.x, _array(expected[0])) < CLOSE
  assert relative(out.text, _array(expected[1])) < CLOSE


def test_dual_stream_as_flux(relative, randomized):
  """FluxTransformerBlock: text first and in the same table of angles, at position 0."""
  theirs = _torch_random(
    flux.FluxTransformerBlock(small.WIDTH, small.HEADS, small.WIDTH // small.HEADS)
  )
  layer = small.layer(randomized, dual=True)
  _copy_dual(layer.audio, theirs)
  x, text, temb = _inputs()
  ids = np.concatenate([np.zeros((small.TEXT, 3), np.float32), small.coordinates()[0]])
  rotary = flux.FluxPosEmbed(10000, [8, 8, 8])(torch.tensor(ids))
  with torch.no_grad():
    text_expected, expected = theirs(*map(torch.tensor, (x, text, temb)), image_rotary_emb=rotary)
  ctx = small.context(
    _over_batch(rope.angles(jnp.asarray(small.coordinates()), (8, 8, 8))),
    **_dual_mods(layer.audio, theirs, torch.tensor(temb)),
  )
  _, out = small.apply(layer, AV(None, small.tokens(x, text)), AV(None, ctx))
  assert relative(out.x, _array(expected)) < CLOSE
  assert relative(out.text, _array(text_expected)) < CLOSE


@pytest.mark.parametrize('half', ['attention', 'mlp'])
def test_single_stream_as_hunyuan(half, relative, randomized):
  """HunyuanVideoSingleTransformerBlock, by halves.

  Theirs runs attention and MLP side by side from one norm into one output projection; ours one
  after the other, as SPEC has text and audio-video attention between them.  With the projection's
  columns for one of the two at zero, theirs is the other alone, and so is that method of ours.
  """
  theirs = _torch_random(
    hunyuan.HunyuanVideoSingleTransformerBlock(small.HEADS, small.WIDTH // small.HEADS)
  )
  with torch.no_grad():
    theirs.proj_out.weight[
      :, slice(small.WIDTH, None) if half == 'attention' else slice(small.WIDTH)
    ] = 0
  branch = small.layer(randomized, dual=False).audio
  stream = branch.tokens
  _copy(stream.qkv, theirs.attn.to_q, theirs.attn.to_k, theirs.attn.to_v)
  _copy_scales(stream, theirs.attn.norm_q, theirs.attn.norm_k)
  _copy(stream.up, theirs.proj_mlp)
  weight, bias = _array(theirs.proj_out.weight), jnp.asarray(_array(theirs.proj_out.bias))
  stream.out.kernel[...] = jnp.asarray(
    weight[:, : small.WIDTH].T.reshape(small.HEADS, -1, small.WIDTH)
  )
  stream.down.kernel[...] = jnp.asarray(weight[:, small.WIDTH :].T)
  stream.out.bias[...] = stream.down.bias[...] = bias
  x, text, temb = _inputs()
  rotary = hunyuan.HunyuanVideoRotaryPosEmbed(1, 1, [8, 8, 8])(torch.zeros(1, 1, *small.GRID))
  with torch.no_grad():
    expected = theirs(*map(torch.tensor, (x, text, temb)), image_rotary_emb=rotary)
    rows = theirs.norm.linear(torch.nn.functional.silu(torch.tensor(temb)))
  first = 0 if half == 'attention' else 3
  mod = small.normal(9, 2, small.WIDTH, seed=9)
  mod[first : first + 3] = _rows(rows, stream.table[...][first : first + 3])
  ctx = small.context(
    _over_batch(rope.angles(jnp.asarray(small.coordinates()), (8, 8, 8), 256.0)), mod=mod
  )
  run = block.Branch.self_attend if half == 'attention' else block.Branch.mlp
  out = jax.jit(lambda branch, *args: run(branch, *args))(branch, small.tokens(x, text), ctx)
  assert relative(out.x, _array(expected[0])) < CLOSE
  assert relative(out.text, _array(expected[1])) < CLOSE


def test_text_cross_attention_as_wan(relative, randomized):
  """WanTransformerBlock(cross_attn_norm=True): self-attention, text, MLP, their norms and gates.

  One head, as their queries and keys are normed across heads and ours per head.  Theirs has no text
  in self-attention, so ours is given a text stream there of which nothing is valid.
  """
  width = 24
  theirs = _torch_random(wan.WanTransformerBlock(width, 4 * width, 1, cross_attn_norm=True))
  config = dataclasses.replace(small.CONFIG, width=width, heads=1)
  branch = small.layer(randomized, dual=True, config=config).video
  own, cross = theirs.attn1, theirs.attn2
  _copy(branch.tokens.qkv, own.to_q, own.to_k, own.to_v)
  _copy(branch.tokens.out, own.to_out[0])
  _copy_scales(branch.tokens, own.norm_q, own.norm_k)
  _copy(branch.text_cross.q, cross.to_q)
  _copy(branch.text_cross.kv, cross.to_k, cross.to_v)
  _copy(branch.text_cross.out, cross.to_out[0])
  _copy_scales(branch.text_cross, cross.norm_q, cross.norm_k)
  branch.text_norm.scale[...] = jnp.asarray(_array(theirs.norm2.weight))
  branch.text_norm.bias[...] = jnp.asarray(_array(theirs.norm2.bias))
  _copy(branch.tokens.up, theirs.ffn.net[0].proj)
  _copy(branch.tokens.down, theirs.ffn.net[2])
  branch.tokens.table[...] = jnp.asarray(_array(theirs.scale_shift_table)[0])

  x, prompt = small.normal(2, small.S, width), small.normal(2, small.TEXT, width, seed=1)
  temb = small.normal(2, 6, width, seed=2)
  rotary = wan.WanRotaryPosEmbed(width, (1, 1, 1), 16)(torch.zeros(1, 1, *small.GRID))
  with torch.no_grad():
    expected = theirs(*map(torch.tensor, (x, prompt, temb)), rotary)
  mod = np.zeros((9, 2, width), np.float32)
  mod[:6] = temb.transpose(1, 0, 2)
  angle = _over_batch(rope.angles(jnp.asarray(small.coordinates()), rope.split_3d(width)))
  ctx = small.context(angle, width=width, mod=mod, prompt=prompt)

  @jax.jit
  def run(branch, y, ctx):
    y = branch.self_attend(y, dataclasses.replace(ctx, text_valid=~ctx.text_valid))
    return branch.mlp(branch.read_text(y, ctx), ctx)

  y = run(branch, small.tokens(x), ctx)
  assert relative(y.x, _array(expected)) < CLOSE


def test_audio_video_attention_as_kandinsky(relative, randomized):
  """Modules of Kandinsky6FusedTransformerDecoderBlock, called in the order of Eq. 5.

  Theirs reads both at once, with keys from a norm modulated for text attention; ours (and the
  report's Eq. 5) lets audio read first, then video the new audio, from a plain norm.  Audio's time
  is scaled by 21/218 and both branches rotate by time alone.
  """
  theirs = _torch_random(
    kandinsky.Kandinsky6FusedTransformerDecoderBlock(
      small.WIDTH,
      16,
      4 * small.WIDTH,
      small.WIDTH // small.HEADS,
      small.WIDTH,
      16,
      4 * small.WIDTH,
      small.WIDTH // small.HEADS,
      ca_rope=True,
    )
  )
  for module in theirs.modules():
    if isinstance(module, (torch.nn.LayerNorm, torch.nn.RMSNorm)):
      module.eps = norm.EPS
  layer = small.layer(randomized, dual=True)
  for branch, a in zip(
    (layer.video, layer.audio), (theirs.va_cross_attention, theirs.av_cross_attention)
  ):
    _copy(branch.cross.q, a.to_query)
    _copy(branch.cross.kv, a.to_key, a.to_value)
    _copy(branch.cross.out, a.out_layer)
    _copy_scales(branch.cross, a.query_norm, a.key_norm)

  length = 30
  vis, aud = small.normal(2, small.S, small.WIDTH), small.normal(2, length, small.WIDTH, seed=1)
  t_vis, t_aud = (
    torch.tensor(small.normal(2, 16, seed=2)),
    torch.tensor(small.normal(2, 16, seed=3)),
  )
  valid, heard = np.ones((2, small.S), bool), np.ones((2, length), bool)
  valid[0, 8:], heard[1, 20:] = False, False
  frames = torch.tensor(small.coordinates()[0, :, 0]).long()
  head = small.WIDTH // small.HEADS
  vis_rope = kandinsky.Kandinsky6RoPE1D(head)(frames)
  aud_rope = kandinsky.Kandinsky6RoPE1D(head, freqs_scaling=21 / 218)(torch.arange(length))

  def read(x, source, normalize, attend, rows, valid, rope_q, rope_kv):
    shift, scale, gate = rows.chunk(3, dim=-1)
    plain = torch.nn.functional.layer_norm(source, (small.WIDTH,), eps=norm.EPS)
    out = attend(
      kandinsky.apply_scale_shift(normalize(x), x, scale, shift),
      encoder_hidden_states=plain,
      rope_q=rope_q,
      rope_kv=rope_kv,
      attn_mask=torch.tensor(valid)[:, None, None],
    )
    return kandinsky.apply_gate_sum(x, out, gate)

  with torch.no_grad():
    vis_rows, aud_rows = theirs.va_modulation(t_vis), theirs.av_modulation(t_aud)
    v, a = torch.tensor(vis), torch.tensor(aud)
    a = read(
      a, v, theirs.av_normalization, theirs.av_cross_attention, aud_rows, valid, aud_rope, vis_rope
    )
    v = read(
      v, a, theirs.va_normalization, theirs.va_cross_attention, vis_rows, heard, vis_rope, aud_rope
    )

  def context(branch, rows, clock, readable):
    mod = small.normal(9, 2, small.WIDTH, seed=9)
    mod[6:] = _rows(rows, branch.cross_table[...])
    angle = _over_batch(rope.angles(jnp.asarray(clock)[None, :, None], (head,)))
    return small.context(s=len(clock), mod=mod, time_angle=angle, readable=readable)

  ctx = AV(
    context(layer.video, vis_rows, small.coordinates()[0, :, 0], valid),
    context(layer.audio, aud_rows, np.arange(length, dtype=np.float32) * (21 / 218), heard),
  )

  @jax.jit
  def run(layer, y, ctx):
    audio = layer.audio.read_other(y.audio, y.video, ctx.audio, ctx.video)
    return layer.video.read_other(y.video, audio, ctx.video, ctx.audio), audio

  video, audio = run(layer, AV(small.tokens(vis), small.tokens(aud)), ctx)
  assert relative(audio.x, _array(a)) < CLOSE
  assert relative(video.x, _array(v)) < CLOSE
