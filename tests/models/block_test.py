"""sr4/models/block.py: parity of each part with a published block, and where information flows.

Parity: random weights everywhere, gates included, copied from torch into ours; fp32.
"""

import dataclasses
import re

from diffusers.models.transformers import transformer_flux as flux
from diffusers.models.transformers import transformer_hunyuan_video as hunyuan
from diffusers.models.transformers import transformer_kandinsky6 as kandinsky
from diffusers.models.transformers import transformer_wan as wan
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from sr4.core import tree
from sr4.core.av import AV
from sr4.models import block
from sr4.models import mmdit
from sr4.nn import norm
from sr4.nn import rope

pytestmark = pytest.mark.usefixtures('quick_compile')

CLOSE = 1e-5  # relative L2, fp32
WIDTH, HEADS, TEXT = 48, 2, 5
GRID = (3, 2, 2)
S = 12
CONFIG = mmdit.Config(width=WIDTH, heads=HEADS, dtype='float32')
apply = jax.jit(lambda layer, y, ctx: layer(y, ctx))


def _normal(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


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


def _coordinates(grid=GRID) -> np.ndarray:
  axes = np.meshgrid(*map(np.arange, grid), indexing='ij')
  return np.stack(axes, -1).reshape(1, -1, 3).astype(np.float32)


def _rows(chunks, table) -> np.ndarray:
  """[rows b d] to be given in Context.mod so that, with this table added, theirs come out."""
  rows = np.stack([_array(c) for c in chunks.chunk(len(table), dim=1)])
  return rows - np.asarray(table)[:, None]


def _context(angle=None, *, s=S, b=2, width=WIDTH, seed=5, **fields) -> block.Context:
  head = width // (1 if width != WIDTH else HEADS)
  default = block.Context(
    mod=_normal(9, b, width, seed=seed),
    text_mod=_normal(6, b, width, seed=seed + 1),
    angle=np.zeros((b, s, head // 2), np.float32) if angle is None else angle,
    time_angle=3 * _normal(b, s, head // 2, seed=seed + 2),
    valid=np.ones((b, s), bool),
    readable=np.ones((b, s), bool),
    prompt=_normal(b, TEXT, width, seed=seed + 3),
    text_valid=np.ones((b, TEXT), bool),
  )
  return jax.tree.map(jnp.asarray, dataclasses.replace(default, **fields))


def _over_batch(angle, b=2):
  return np.broadcast_to(np.asarray(angle), (b, *angle.shape[1:]))


def _tokens(x, text=None) -> block.Tokens:
  text = np.zeros((len(x), TEXT, x.shape[-1]), np.float32) if text is None else text
  return block.Tokens(jnp.asarray(x), jnp.asarray(text))


def _layer(randomized, *, dual, config=CONFIG, seed=0) -> block.Layer:
  make = lambda: block.Layer(config, dual=dual, rngs=nnx.Rngs(0))
  return randomized(tree.abstract(make), seed=seed)


# Parity.


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
  mod = np.zeros((9, len(temb), WIDTH), np.float32)
  mod[:6] = _rows(theirs.norm1.linear(silu), branch.tokens.table[...])
  return {'mod': mod, 'text_mod': _rows(theirs.norm1_context.linear(silu), branch.text.table[...])}


def test_dual_stream_as_hunyuan(relative, randomized):
  """Self-attention and MLP of both streams, padded tokens and text: HunyuanVideoTransformerBlock.

  The audio branch of a layer without video is exactly that block.
  """
  theirs = _torch_random(hunyuan.HunyuanVideoTransformerBlock(HEADS, WIDTH // HEADS, 4.0))
  layer = _layer(randomized, dual=True)
  _copy_dual(layer.audio, theirs)
  x, text, temb = _normal(2, S, WIDTH), _normal(2, TEXT, WIDTH, seed=1), _normal(2, WIDTH, seed=2)
  valid, text_valid = np.ones((2, S), bool), np.ones((2, TEXT), bool)
  valid[1, 9:], text_valid[0, 3:] = False, False
  rotary = hunyuan.HunyuanVideoRotaryPosEmbed(1, 1, [8, 8, 8])(torch.zeros(1, 1, *GRID))
  with torch.no_grad():
    expected = theirs(
      *map(torch.tensor, (x, text, temb)),
      freqs_cis=rotary,
      attention_mask=torch.tensor(np.concatenate([valid, text_valid], 1))[:, None, None],
    )
  ctx = _context(
    _over_batch(rope.angles(jnp.asarray(_coordinates()), (8, 8, 8), 256.0)),
    valid=valid,
    text_valid=text_valid,
    **_dual_mods(layer.audio, theirs, torch.tensor(temb)),
  )
  _, out = apply(layer, AV(None, _tokens(x, text)), AV(None, ctx))
  assert relative(out.x, _array(expected[0])) < CLOSE
  assert relative(out.text, _array(expected[1])) < CLOSE


def test_dual_stream_as_flux(relative, randomized):
  """FluxTransformerBlock: text first and in the same table of angles, at position 0."""
  theirs = _torch_random(flux.FluxTransformerBlock(WIDTH, HEADS, WIDTH // HEADS))
  layer = _layer(randomized, dual=True)
  _copy_dual(layer.audio, theirs)
  x, text, temb = _normal(2, S, WIDTH), _normal(2, TEXT, WIDTH, seed=1), _normal(2, WIDTH, seed=2)
  ids = np.concatenate([np.zeros((TEXT, 3), np.float32), _coordinates()[0]])
  rotary = flux.FluxPosEmbed(10000, [8, 8, 8])(torch.tensor(ids))
  with torch.no_grad():
    text_expected, expected = theirs(*map(torch.tensor, (x, text, temb)), image_rotary_emb=rotary)
  ctx = _context(
    _over_batch(rope.angles(jnp.asarray(_coordinates()), (8, 8, 8))),
    **_dual_mods(layer.audio, theirs, torch.tensor(temb)),
  )
  _, out = apply(layer, AV(None, _tokens(x, text)), AV(None, ctx))
  assert relative(out.x, _array(expected)) < CLOSE
  assert relative(out.text, _array(text_expected)) < CLOSE


@pytest.mark.parametrize('half', ['attention', 'mlp'])
def test_single_stream_as_hunyuan(half, relative, randomized):
  """HunyuanVideoSingleTransformerBlock, by halves.

  Theirs runs attention and MLP side by side from one norm into one output projection; ours one
  after the other, as SPEC has text and audio-video attention between them.  With the projection's
  columns for one of the two at zero, theirs is the other alone, and so is that method of ours.
  """
  theirs = _torch_random(hunyuan.HunyuanVideoSingleTransformerBlock(HEADS, WIDTH // HEADS))
  with torch.no_grad():
    theirs.proj_out.weight[:, slice(WIDTH, None) if half == 'attention' else slice(WIDTH)] = 0
  branch = _layer(randomized, dual=False).audio
  stream = branch.tokens
  _copy(stream.qkv, theirs.attn.to_q, theirs.attn.to_k, theirs.attn.to_v)
  _copy_scales(stream, theirs.attn.norm_q, theirs.attn.norm_k)
  _copy(stream.up, theirs.proj_mlp)
  weight, bias = _array(theirs.proj_out.weight), jnp.asarray(_array(theirs.proj_out.bias))
  stream.out.kernel[...] = jnp.asarray(weight[:, :WIDTH].T.reshape(HEADS, -1, WIDTH))
  stream.down.kernel[...] = jnp.asarray(weight[:, WIDTH:].T)
  stream.out.bias[...] = stream.down.bias[...] = bias
  x, text, temb = _normal(2, S, WIDTH), _normal(2, TEXT, WIDTH, seed=1), _normal(2, WIDTH, seed=2)
  rotary = hunyuan.HunyuanVideoRotaryPosEmbed(1, 1, [8, 8, 8])(torch.zeros(1, 1, *GRID))
  with torch.no_grad():
    expected = theirs(*map(torch.tensor, (x, text, temb)), image_rotary_emb=rotary)
    rows = theirs.norm.linear(torch.nn.functional.silu(torch.tensor(temb)))
  first = 0 if half == 'attention' else 3
  mod = _normal(9, 2, WIDTH, seed=9)
  mod[first : first + 3] = _rows(rows, stream.table[...][first : first + 3])
  ctx = _context(_over_batch(rope.angles(jnp.asarray(_coordinates()), (8, 8, 8), 256.0)), mod=mod)
  run = block.Branch.self_attend if half == 'attention' else block.Branch.mlp
  out = jax.jit(lambda branch, *args: run(branch, *args))(branch, _tokens(x, text), ctx)
  assert relative(out.x, _array(expected[0])) < CLOSE
  assert relative(out.text, _array(expected[1])) < CLOSE


def test_text_cross_attention_as_wan(relative, randomized):
  """WanTransformerBlock(cross_attn_norm=True): self-attention, text, MLP, their norms and gates.

  One head, as their queries and keys are normed across heads and ours per head.  Theirs has no text
  in self-attention, so ours is given a text stream there of which nothing is valid.
  """
  width = 24
  theirs = _torch_random(wan.WanTransformerBlock(width, 4 * width, 1, cross_attn_norm=True))
  config = dataclasses.replace(CONFIG, width=width, heads=1)
  branch = _layer(randomized, dual=True, config=config).video
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

  x, prompt = _normal(2, S, width), _normal(2, TEXT, width, seed=1)
  temb = _normal(2, 6, width, seed=2)
  rotary = wan.WanRotaryPosEmbed(width, (1, 1, 1), 16)(torch.zeros(1, 1, *GRID))
  with torch.no_grad():
    expected = theirs(*map(torch.tensor, (x, prompt, temb)), rotary)
  mod = np.zeros((9, 2, width), np.float32)
  mod[:6] = temb.transpose(1, 0, 2)
  angle = _over_batch(rope.angles(jnp.asarray(_coordinates()), rope.split_3d(width)))
  ctx = _context(angle, width=width, mod=mod, prompt=prompt)

  @jax.jit
  def run(branch, y, ctx):
    y = branch.self_attend(y, dataclasses.replace(ctx, text_valid=~ctx.text_valid))
    return branch.mlp(branch.read_text(y, ctx), ctx)

  y = run(branch, _tokens(x), ctx)
  assert relative(y.x, _array(expected)) < CLOSE


def test_audio_video_attention_as_kandinsky(relative, randomized):
  """Modules of Kandinsky6FusedTransformerDecoderBlock, called in the order of Eq. 5.

  Theirs reads both at once, with keys from a norm modulated for text attention; ours (and the
  report's Eq. 5) lets audio read first, then video the new audio, from a plain norm.  Audio's time
  is scaled by 21/218 and both branches rotate by time alone.
  """
  theirs = _torch_random(
    kandinsky.Kandinsky6FusedTransformerDecoderBlock(
      WIDTH, 16, 4 * WIDTH, WIDTH // HEADS, WIDTH, 16, 4 * WIDTH, WIDTH // HEADS, ca_rope=True
    )
  )
  for module in theirs.modules():
    if isinstance(module, (torch.nn.LayerNorm, torch.nn.RMSNorm)):
      module.eps = norm.EPS
  layer = _layer(randomized, dual=True)
  for branch, a in zip(
    (layer.video, layer.audio), (theirs.va_cross_attention, theirs.av_cross_attention)
  ):
    _copy(branch.cross.q, a.to_query)
    _copy(branch.cross.kv, a.to_key, a.to_value)
    _copy(branch.cross.out, a.out_layer)
    _copy_scales(branch.cross, a.query_norm, a.key_norm)

  length = 30
  vis, aud = _normal(2, S, WIDTH), _normal(2, length, WIDTH, seed=1)
  t_vis, t_aud = torch.tensor(_normal(2, 16, seed=2)), torch.tensor(_normal(2, 16, seed=3))
  valid, heard = np.ones((2, S), bool), np.ones((2, length), bool)
  valid[0, 8:], heard[1, 20:] = False, False
  frames = torch.tensor(_coordinates()[0, :, 0]).long()
  head = WIDTH // HEADS
  vis_rope = kandinsky.Kandinsky6RoPE1D(head)(frames)
  aud_rope = kandinsky.Kandinsky6RoPE1D(head, freqs_scaling=21 / 218)(torch.arange(length))

  def read(x, source, normalize, attend, rows, valid, rope_q, rope_kv):
    shift, scale, gate = rows.chunk(3, dim=-1)
    plain = torch.nn.functional.layer_norm(source, (WIDTH,), eps=norm.EPS)
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
    mod = _normal(9, 2, WIDTH, seed=9)
    mod[6:] = _rows(rows, branch.cross_table[...])
    angle = _over_batch(rope.angles(jnp.asarray(clock)[None, :, None], (head,)))
    return _context(s=len(clock), mod=mod, time_angle=angle, readable=readable)

  ctx = AV(
    context(layer.video, vis_rows, _coordinates()[0, :, 0], valid),
    context(layer.audio, aud_rows, np.arange(length, dtype=np.float32) * (21 / 218), heard),
  )

  @jax.jit
  def run(layer, y, ctx):
    audio = layer.audio.read_other(y.audio, y.video, ctx.audio, ctx.video)
    return layer.video.read_other(y.video, audio, ctx.video, ctx.audio), audio

  video, audio = run(layer, AV(_tokens(vis), _tokens(aud)), ctx)
  assert relative(audio.x, _array(a)) < CLOSE
  assert relative(video.x, _array(v)) < CLOSE


# Identities.

LENGTHS = AV(S, 9)


def _both(seed=0) -> tuple[AV, AV]:
  """Tokens and contexts of both modalities, all valid."""
  y = AV(
    *(
      _tokens(_normal(2, s, WIDTH, seed=seed + i), _normal(2, TEXT, WIDTH, seed=seed + 2 + i))
      for i, s in enumerate(LENGTHS)
    )
  )
  ctx = AV(
    *(
      _context(3 * _normal(2, s, 12, seed=seed + 4 + i), s=s, seed=seed + 10 * i + 20)
      for i, s in enumerate(LENGTHS)
    )
  )
  return y, ctx


@pytest.fixture(scope='module')
def layers(randomized):
  return {dual: _layer(randomized, dual=dual, seed=dual) for dual in (True, False)}


def test_single_stream_is_dual_stream_with_tied_parameters(layers, relative, randomized):
  single, tied = layers[False], _layer(randomized, dual=True, seed=7)
  flat = tree.to_flat(single)
  flat |= {name.replace('.tokens.', '.text.'): x for name, x in flat.items() if '.tokens.' in name}
  tied = tree.from_flat(tied, flat)
  y, ctx = _both()
  ctx = AV(*(dataclasses.replace(c, text_mod=c.mod[:6]) for c in ctx))
  outs = (jax.tree.leaves(apply(layer, y, ctx)) for layer in (tied, single))
  for out, expected in zip(*outs):
    assert relative(out, expected) < 1e-6


def test_order_of_a_layer(layers, relative):
  """The eight steps of SPEC section 2, written out."""

  def written_out(layer, y, ctx):
    (v, a), (cv, ca) = y, ctx
    v = layer.video.self_attend(v, cv)
    a = layer.audio.self_attend(a, ca)
    v = layer.video.read_text(v, cv)
    a = layer.audio.read_other(a, v, ca, cv)
    v = layer.video.read_other(v, a, cv, ca)
    return AV(layer.video.mlp(v, cv), layer.audio.mlp(a, ca))

  args = (layers[True], *_both())
  expected = jax.tree.leaves(jax.jit(written_out)(*args))
  for out, one in zip(jax.tree.leaves(apply(*args)), expected):
    assert relative(out, one) < 1e-6


# Where information flows, by gradients: a name whose gradient is exactly zero has no path.

OWN_TEXT = ('table', 'qkv.kernel', 'qkv.bias', 'k_norm.scale')  # What tokens read of their text.
ATTEND = (*OWN_TEXT, 'q_norm.scale', 'out.kernel', 'out.bias')  # A stream up to self-attention.
MLP = ('up.kernel', 'up.bias', 'down.kernel', 'down.bias')


def _reached(gradients) -> set[str]:
  return {name for name, g in tree.to_flat(gradients).items() if np.any(np.asarray(g))}


def _expected(names, dual) -> dict[str, set[str]]:
  """For each output, the parameters it is a function of."""
  group = lambda *patterns: {n for n in names if any(re.match(p, n) for p in patterns)}
  stream = lambda prefix, parts: {f'{prefix}.{part}' for part in parts}
  text = 'text' if dual else 'tokens'  # A single-stream layer has one set for both.
  before = {  # What a branch's tokens are made of when the other reads them.
    'video': (
      stream('video.tokens', ATTEND)
      | stream(f'video.{text}', OWN_TEXT)
      | group(r'video\.text_(norm|cross)\.')
    ),
    'audio': stream('audio.tokens', ATTEND) | stream(f'audio.{text}', OWN_TEXT),
  }
  crossed = {'audio': before['audio'] | before['video'] | group(r'audio\.cross')}
  crossed['video'] = before['video'] | crossed['audio'] | group(r'video\.cross')
  reached = {}
  for branch in ('video', 'audio'):
    reached[f'{branch}.x'] = crossed[branch] | stream(f'{branch}.tokens', MLP)
    reached[f'{branch}.text'] = stream(f'{branch}.tokens', OWN_TEXT) | stream(
      f'{branch}.{text}', (*ATTEND, *MLP)
    )
  return reached


@pytest.fixture(scope='module')
def flow(layers):
  """{dual: {output: gradients of (layer, tokens, mods, prompts)}}, outputs weighed at random."""

  @jax.jit
  def gradients(layer, y, ctx, chosen):
    def weighed(layer, y, mods, prompts):
      full = AV(
        *(
          dataclasses.replace(c, mod=m[0], text_mod=m[1], prompt=p)
          for c, m, p in zip(ctx, mods, prompts)
        )
      )
      outs = jax.tree.leaves(layer(y, full))
      return sum(c * jnp.sum(out * _normal(*out.shape, seed=99)) for c, out in zip(chosen, outs))

    mods, prompts = AV(*((c.mod, c.text_mod) for c in ctx)), AV(*(c.prompt for c in ctx))
    return jax.grad(weighed, (0, 1, 2, 3))(layer, y, mods, prompts)

  outputs = ('video.x', 'video.text', 'audio.x', 'audio.text')
  return {
    dual: {
      output: gradients(layer, *_both(), chosen)
      for output, chosen in zip(outputs, np.eye(4, dtype=np.float32))
    }
    for dual, layer in layers.items()
  }


@pytest.mark.parametrize('dual', [True, False])
def test_which_parameters_each_output_is_made_of(layers, flow, dual):
  """Audio reads video after text, before video reads audio and before its MLP; video reads the
  audio that has just read video, before its MLP; the text streams meet their own branch alone."""
  for output, expected in _expected(tree.to_flat(layers[dual]), dual).items():
    assert _reached(flow[dual][output][0]) == expected, output


@pytest.mark.parametrize('dual', [True, False])
def test_which_modulation_each_output_is_made_of(flow, dual):
  """Rows 0-2 self-attention, 3-5 MLP, 6-8 audio-video attention, of the video and of the audio."""
  rows = {
    'video.x': (set(range(9)), {0, 1, 2, 6, 7, 8}),
    'audio.x': ({0, 1, 2}, set(range(9))),
    'video.text': ({0, 1}, set()),
    'audio.text': (set(), {0, 1}),
  }
  text_rows = {
    'video.x': ({0, 1}, {0, 1}),
    'audio.x': ({0, 1}, {0, 1}),
    'video.text': (set(range(6)), set()),
    'audio.text': (set(), set(range(6))),
  }
  for output, gradients in flow[dual].items():
    for i, (mod, text_mod) in enumerate(gradients[2]):
      reached = lambda g: {r for r in range(len(g)) if np.any(np.asarray(g[r]))}
      branch, stream = output.split('.')
      own = stream == 'text' and branch == AV._fields[i]
      if dual:
        assert reached(mod) == rows[output][i], output
        assert reached(text_mod) == text_rows[output][i], output
      else:
        assert reached(mod) == (set(range(6)) if own else rows[output][i]), output
        assert not reached(text_mod)


@pytest.mark.parametrize('dual', [True, False])
def test_which_tokens_each_output_is_made_of(flow, dual):
  """A text stream never crosses; the prompt enters by the video alone, and from there the audio."""
  for output, (_, y, _, prompts) in flow[dual].items():
    branch, stream = output.split('.')
    both = stream == 'x'
    for name, tokens, prompt in zip(AV._fields, y, prompts):
      mine = both or name == branch
      assert bool(np.any(tokens.x)) == bool(np.any(tokens.text)) == mine, (output, name)
      assert bool(np.any(prompt)) == (both and name == 'video'), (output, name)


@pytest.mark.parametrize('dual', [True, False])
def test_audio_has_no_text_cross_attention(layers, dual):
  names = tree.to_flat(layers[dual])
  assert not [n for n in names if re.match(r'audio\.text_', n)]
  assert [n for n in names if n.startswith('video.text_cross.')]


# What is not there has no influence.


def _poison(x, where):
  return jnp.where(jnp.asarray(where)[..., None], 1e3 * _normal(*x.shape, seed=31), x)


@pytest.mark.parametrize('dual', [True, False])
def test_padding_is_seen_by_no_one(layers, dual):
  """Tokens and text that are not valid: other tokens do not change by a bit, whatever they hold."""
  y, ctx = _both()
  valid = AV(*(np.arange(s)[None] < np.array([[s], [s - 3]]) for s in LENGTHS))
  heard = np.arange(TEXT)[None] < np.array([[2], [TEXT]])
  ctx = AV(
    *(dataclasses.replace(c, valid=v, readable=v, text_valid=heard) for c, v in zip(ctx, valid))
  )
  poisoned = AV(
    *(block.Tokens(_poison(t.x, ~v), _poison(t.text, ~heard)) for t, v in zip(y, valid))
  )
  other = AV(*(dataclasses.replace(c, prompt=_poison(c.prompt, ~heard)) for c in ctx))
  clean, dirty = (
    jax.device_get(apply(layers[dual], *args)) for args in ((y, ctx), (poisoned, other))
  )
  for one, two, v in zip(clean, dirty, valid):
    np.testing.assert_array_equal(one.x[v], two.x[v])
    np.testing.assert_array_equal(one.text[heard], two.text[heard])
    assert np.any(one.x[~v] != two.x[~v])


def test_nothing_to_read_is_nothing_said(layers, relative):
  """A row whose other branch is not readable is the row of a layer without that branch; its
  gradient with respect to the other branch is exactly zero."""
  layer = layers[True]
  y, ctx = _both()
  there = jnp.asarray([True, False])
  ctx = AV(*(dataclasses.replace(c, readable=c.valid & there[:, None]) for c in ctx))
  out = apply(layer, y, ctx)
  alone = AV(apply(layer, AV(y.video, None), ctx).video, apply(layer, AV(None, y.audio), ctx).audio)
  for one, two in zip(out, alone):
    assert relative(one.x[1], two.x[1]) < 1e-6
    assert relative(one.x[0], two.x[0]) > 1e-3
  loss = lambda y, video, audio: (
    video * jnp.sum(layer(y, ctx).video.x ** 2) + audio * jnp.sum(layer(y, ctx).audio.x ** 2)
  )
  gradient = jax.jit(jax.grad(loss))
  of_video, of_audio = gradient(y, 1.0, 0.0), gradient(y, 0.0, 1.0)
  for read in (of_video.audio, of_audio.video):
    assert not np.any(read.x[1]) and not np.any(read.text[1])
    assert np.any(read.x[0]) and np.any(read.text[0])


def test_an_empty_prompt_is_nothing_read(layers):
  """No valid text: the text cross-attention adds exactly zero, its output bias included."""
  branch = layers[True].video
  y, ctx = _both()
  cv = dataclasses.replace(ctx.video, text_valid=jnp.zeros_like(ctx.video.text_valid))
  np.testing.assert_array_equal(branch.read_text(y.video, cv).x, y.video.x)


def test_one_second_is_one_angle_in_both_branches():
  """A video and an audio token at the same second: equal angles, so q.k between the branches is a
  function of the difference of their seconds alone."""
  x = AV((jnp.zeros((1, 4, 2, 2, 16)),), (jnp.zeros((1, 43, 40)),))
  clock = lambda modality, seconds: mmdit.rotary_time(CONFIG, modality, seconds, x)
  seconds = jnp.asarray([[[-0.5], [0.0], [1.25], [4.5]]])
  np.testing.assert_array_equal(clock(0, seconds), clock(1, seconds))
  q, k = (jnp.asarray(_normal(1, 1, 1, 24, seed=i)) for i in range(2))
  turn = lambda x, at: rope.rotate(x, rope.angles(at, (24,)))
  full = lambda second: jnp.full((1, 1, 1), second)
  dot = lambda s, r: float(jnp.sum(turn(q, clock(0, full(s))) * turn(k, clock(1, full(r)))))
  assert abs(dot(1.0, 1.5) - dot(3.0, 3.5)) < 1e-4
  assert abs(dot(1.0, 1.5) - dot(3.0, 4.0)) > 1e-2
