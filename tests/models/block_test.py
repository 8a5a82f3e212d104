"""sr4/models/block.py: what a layer is, where information flows, and what has no influence."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sr4.core import tree
from sr4.core.av import AV
from sr4.models import block
from sr4.models import mmdit
from sr4.nn import rope
from tests.models import small_layer as small

pytestmark = pytest.mark.usefixtures('quick_compile')

LENGTHS = AV(small.S, 9)


def _both(seed=0) -> tuple[AV, AV]:
  """Tokens and contexts of both modalities, all valid."""
  y = AV(
    *(
      small.tokens(
        small.normal(2, s, small.WIDTH, seed=seed + i),
        small.normal(2, small.TEXT, small.WIDTH, seed=seed + 2 + i),
      )
      for i, s in enumerate(LENGTHS)
    )
  )
  ctx = AV(
    *(
      small.context(3 * small.normal(2, s, 12, seed=seed + 4 + i), s=s, seed=seed + 10 * i + 20)
      for i, s in enumerate(LENGTHS)
    )
  )
  return y, ctx


@pytest.fixture(scope='module')
def layers(randomized):
  return {dual: small.layer(randomized, dual=dual, seed=dual) for dual in (True, False)}


def test_single_stream_is_dual_stream_with_tied_parameters(layers, relative, randomized):
  single, tied = layers[False], small.layer(randomized, dual=True, seed=7)
  flat = tree.to_flat(single)
  flat |= {name.replace('.tokens.', '.text.'): x for name, x in flat.items() if '.tokens.' in name}
  tied = tree.from_flat(tied, flat)
  y, ctx = _both()
  ctx = AV(*(dataclasses.replace(c, text_mod=c.mod[:6]) for c in ctx))
  outs = (jax.tree.leaves(small.apply(layer, y, ctx)) for layer in (tied, single))
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
  for out, one in zip(jax.tree.leaves(small.apply(*args)), expected):
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
      return sum(
        c * jnp.sum(out * small.normal(*out.shape, seed=99)) for c, out in zip(chosen, outs)
      )

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
  return jnp.where(jnp.asarray(where)[..., None], 1e3 * small.normal(*x.shape, seed=31), x)


@pytest.mark.parametrize('dual', [True, False])
def test_padding_is_seen_by_no_one(layers, dual):
  """Tokens and text that are not valid: other tokens do not change by a bit, whatever they hold."""
  y, ctx = _both()
  valid = AV(*(np.arange(s)[None] < np.array([[s], [s - 3]]) for s in LENGTHS))
  heard = np.arange(small.TEXT)[None] < np.array([[2], [small.TEXT]])
  ctx = AV(
    *(dataclasses.replace(c, valid=v, readable=v, text_valid=heard) for c, v in zip(ctx, valid))
  )
  poisoned = AV(
    *(block.Tokens(_poison(t.x, ~v), _poison(t.text, ~heard)) for t, v in zip(y, valid))
  )
  other = AV(*(dataclasses.replace(c, prompt=_poison(c.prompt, ~heard)) for c in ctx))
  clean, dirty = (
    jax.device_get(small.apply(layers[dual], *args)) for args in ((y, ctx), (poisoned, other))
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
  out = small.apply(layer, y, ctx)
  alone = AV(
    small.apply(layer, AV(y.video, None), ctx).video,
    small.apply(layer, AV(None, y.audio), ctx).audio,
  )
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
  clock = lambda modality, seconds: mmdit.rotary_time(small.CONFIG, modality, seconds, x)
  seconds = jnp.asarray([[[-0.5], [0.0], [1.25], [4.5]]])
  np.testing.assert_array_equal(clock(0, seconds), clock(1, seconds))
  q, k = (jnp.asarray(small.normal(1, 1, 1, 24, seed=i)) for i in range(2))
  turn = lambda x, at: rope.rotate(x, rope.angles(at, (24,)))
  full = lambda second: jnp.full((1, 1, 1), second)
  dot = lambda s, r: float(jnp.sum(turn(q, clock(0, full(s))) * turn(k, clock(1, full(r)))))
  assert abs(dot(1.0, 1.5) - dot(3.0, 3.5)) < 1e-4
  assert abs(dot(1.0, 1.5) - dot(3.0, 4.0)) > 1e-2
