"""sr4/models/mmdit.py: segments, and that what is not there has no influence."""

import dataclasses
import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sr4.core import sharding
from sr4.core import tree
from sr4.core.av import AV
from sr4.core.batch import Condition
from sr4.core.batch import Segment
from sr4.models import mmdit

pytestmark = pytest.mark.usefixtures('quick_compile')

ROWS, TEXT = 2, 4
CONFIG = mmdit.Config(
  width=48,
  heads=2,
  dual_layers=1,
  single_layers=1,
  video_channels=3,
  audio_channels=5,
  text_width=6,
  dtype='float32',
  remat='none',
)


VIDEO = {'reference': (1, 4, 4), 'clip': (2, 4, 4), 'keyframes': (1, 8, 8)}  # latents t h w
AUDIO = {'voice': 3, 'sound': 7}
GENERATED = ('clip', 'keyframes', 'sound')


def _draw(name, *shape):
  return np.random.default_rng(sum(name.encode())).standard_normal(shape, dtype=np.float32)


def _video_segment(name) -> Segment:
  """References at negative time; keyframes at the coordinates of the clip that they cover."""
  t, h, w = VIDEO[name]
  times = {'reference': [-0.25], 'clip': [0.0, 0.25], 'keyframes': [0.25]}[name]
  step = 0.5 if name == 'keyframes' else 1.0
  axes = np.meshgrid(times, np.arange(h // 2) * step, np.arange(w // 2) * step, indexing='ij')
  positions = np.stack(axes, -1).reshape(-1, 3).astype(np.float32)
  mask = np.full((ROWS, t, h, w, 1), name == 'reference', np.float32)
  mask[0, 0, :2] = name != 'keyframes'
  return Segment(
    _draw(f'{name} known', ROWS, t, h, w, 3),
    mask,
    np.tile(positions, (ROWS, 1, 1)),
    np.ones((ROWS, len(positions)), bool),
    generated=name in GENERATED,
  )


def _audio_segment(name) -> Segment:
  l = AUDIO[name]
  known = None if name in GENERATED else _draw(f'{name} known', ROWS, l, 5)
  seconds = np.float32((np.arange(l) - (l if name == 'voice' else 0)) / CONFIG.audio_rate)
  return Segment(
    known,
    None,
    np.tile(seconds[:, None], (ROWS, 1, 1)),
    np.ones((ROWS, l), bool),
    generated=name in GENERATED,
  )


def _call(video=tuple(VIDEO), audio=tuple(AUDIO), present=(True, True)):
  """Arguments of a model: (x, t, cond) with these segments, in this order."""
  x = AV(
    video and tuple(_draw(n, ROWS, *VIDEO[n], 3) for n in video if n in GENERATED),
    audio and tuple(_draw(n, ROWS, AUDIO[n], 5) for n in audio if n in GENERATED),
  )
  cond = Condition(
    AV(video and tuple(map(_video_segment, video)), audio and tuple(map(_audio_segment, audio))),
    _draw('text', ROWS, TEXT, 6),
    np.ones((ROWS, TEXT), bool),
    AV(*(np.full(ROWS, p) for p in present)),
  )
  return x, AV(np.float32([0.3, 0.8]), np.float32([0.6, 0.1])), cond


def _with_segment(cond, modality, index, **fields) -> Condition:
  """The condition with fields of one segment replaced."""
  segments = [list(s) for s in cond.segments]
  segments[modality][index] = dataclasses.replace(segments[modality][index], **fields)
  return dataclasses.replace(cond, segments=AV(*map(tuple, segments)))


_run = jax.jit(lambda model, *args: model(*args))


def _apply(model, *args):
  return jax.device_get(_run(model, *sharding.rows(args)))


@pytest.fixture(scope='module')
def model(randomized):
  make = lambda: mmdit.MMDiT(CONFIG, rngs=nnx.Rngs(0))
  return randomized(tree.abstract(make), std=0.1)


@pytest.fixture(scope='module')
def out(model):
  return _apply(model, *_call())


def test_starts_at_zero():
  """The head is zero: an untrained model predicts a velocity of exactly 0, in fp32."""
  new = jax.jit(lambda key: mmdit.MMDiT(CONFIG, rngs=nnx.Rngs(key)))(jax.random.key(0))
  zero = _apply(new, *_call())
  assert not any(np.any(v) for v in jax.tree.leaves(zero))
  assert {v.dtype for v in jax.tree.leaves(zero)} == {np.dtype('float32')}


def test_velocities_of_the_generated_segments_in_order(out):
  assert [v.shape for v in out.video] == [(ROWS, *VIDEO[n], 3) for n in ('clip', 'keyframes')]
  assert [v.shape for v in out.audio] == [(ROWS, AUDIO['sound'], 5)]
  assert all(np.std(v) > 0.05 for v in jax.tree.leaves(out))


def test_the_order_of_segments_is_not_their_position(model, out, relative):
  """Tokens know where they are by their positions alone."""
  other = _apply(model, *_call(tuple(reversed(VIDEO)), tuple(reversed(AUDIO))))
  for one, two in zip(jax.tree.leaves(out), jax.tree.leaves(AV(other.video[::-1], other.audio))):
    assert relative(two, one) < 1e-5


def test_references_enter_clean(model, out):
  """What a reference shows, its mask and its time reach every output; x has no noise for it."""
  x, t, cond = _call()
  for modality, index in ((0, 0), (1, 0)):
    segment = cond.segments[modality][index]
    changes = [dict(known=segment.known + 1), dict(positions=segment.positions - 1)]
    if segment.mask is not None:
      changes.append(dict(mask=1 - segment.mask))
    for change in changes:
      other = _apply(model, x, t, _with_segment(cond, modality, index, **change))
      for one, two in zip(jax.tree.leaves(out), jax.tree.leaves(other)):
        assert np.all(np.abs(one - two).reshape(ROWS, -1).max(1) > 1e-5)


def test_segments_that_are_not_valid_are_not_there(model, relative):
  """A reference of which nothing is valid: its content has no influence, and the outputs are
  those of the list without it."""
  x, t, cond = _call()
  for modality in (0, 1):
    gone = np.zeros_like(cond.segments[modality][0].valid)
    cond = _with_segment(cond, modality, 0, valid=gone)
  one = _apply(model, x, t, cond)
  two = _apply(
    model,
    x,
    t,
    _with_segment(
      _with_segment(cond, 0, 0, known=cond.segments.video[0].known * 1e3 + 7),
      1,
      0,
      known=cond.segments.audio[0].known * 1e3 + 7,
    ),
  )
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two)):
    np.testing.assert_array_equal(a, b)
  without = _apply(model, *_call(('clip', 'keyframes'), ('sound',)))
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(without)):
    assert relative(a, b) < 1e-5


def test_padded_text_has_no_influence(model):
  x, t, cond = _call()
  valid = np.array([[True, True, False, False], [False] * 4])
  cond = dataclasses.replace(cond, text_valid=valid)
  noise = np.where(valid[..., None], cond.text, np.float32(1e3))
  one, two = (_apply(model, x, t, c) for c in (cond, dataclasses.replace(cond, text=noise)))
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two)):
    np.testing.assert_array_equal(a, b)


def test_a_row_is_on_its_own(model, out):
  """Another row's latents, text and time change nothing here."""
  first = lambda a: np.stack([a[0], a[0]])
  x, t, cond = jax.tree.map(first, _call())
  for one, two in zip(jax.tree.leaves(out), jax.tree.leaves(_apply(model, x, t, cond))):
    np.testing.assert_array_equal(one[0], two[0])
    np.testing.assert_array_equal(two[1], two[0])
    assert np.any(one[1] != two[1])


@pytest.mark.parametrize('there', ['video', 'audio'])
def test_a_branch_left_out_is_a_branch_unread(model, there, relative):
  """Text to image or to sound alone: the other branch is not in the output, and this one's is
  that of a batch in which the other is not present."""
  lists = {'video': tuple(VIDEO), 'audio': tuple(AUDIO)}
  x, t, cond = _call(**(lists | {'audio' if there == 'video' else 'video': None}))
  alone = _apply(model, x, t, cond)
  unread = _apply(model, *_call(present=(there == 'video', there == 'audio')))
  assert [getattr(alone, name) is None for name in lists] == [name != there for name in lists]
  for one, two in zip(getattr(alone, there), getattr(unread, there)):
    assert relative(one, two) < 1e-5
  gone = dataclasses.replace(cond, present=AV(~cond.present.video, ~cond.present.audio))
  for one, two in zip(getattr(alone, there), getattr(_apply(model, x, t, gone), there)):
    np.testing.assert_array_equal(one, two)


@jax.jit
def _gradients_of(video, audio, model, x, t, cond):
  """Of `video` times the video's squares plus `audio` times the audio's, in the model, the latents,
  the times and the known latents."""

  def loss(model, x, t, known):
    put = lambda segments, known: tuple(
      dataclasses.replace(s, known=k) for s, k in zip(segments, known)
    )
    v = model(x, t, dataclasses.replace(cond, segments=AV(*map(put, cond.segments, known))))
    return video * sum(jnp.sum(a**2) for a in v.video) + audio * sum(jnp.sum(a**2) for a in v.audio)

  known = AV(*(tuple(s.known for s in segments) for segments in cond.segments))
  return jax.grad(loss, (0, 1, 2, 3))(model, x, t, known)


def test_a_modality_not_present_is_not_read(model):
  """Row 0 has no video, row 1 no audio: the other branch of that row is blind to the latents, the
  time and the references of what is missing, and no gradient goes there."""
  x, t, cond = _call()
  cond = dataclasses.replace(cond, present=AV(np.array([False, True]), np.array([True, False])))
  x, t, cond = sharding.rows((x, t, cond))

  parts = lambda grads, i: jax.tree.leaves([g[i] for g in grads[1:]])
  of_video = parts(_gradients_of(1.0, 0.0, model, x, t, cond), 1)  # of the video's output, in audio
  of_audio = parts(_gradients_of(0.0, 1.0, model, x, t, cond), 0)
  assert len(of_video) == 3 and len(of_audio) == 6
  for gradient, missing in [(g, 1) for g in of_video] + [(g, 0) for g in of_audio]:
    assert np.all(np.isfinite(gradient))
    assert not np.any(gradient[missing]) and np.any(gradient[1 - missing])


def test_every_parameter_learns(model):
  """No weight of a random model with both branches and a prompt is without a gradient."""
  gradients, *_ = _gradients_of(1.0, 1.0, model, *sharding.rows(_call()))
  assert not [name for name, g in tree.to_flat(gradients).items() if not np.any(g)]


@functools.partial(jax.jit, static_argnums=1)
def _gradients(model, remat, args):
  """Loss and gradients of the model with this mode of rematerialisation."""

  def loss(model):
    return sum(jnp.sum(v**2) for v in jax.tree.leaves(model(*args)))

  model = jax.tree.map(lambda x: x, model)
  model.config = dataclasses.replace(CONFIG, remat=remat)
  value, gradients = jax.value_and_grad(loss)(model)
  return value, tree.to_flat(gradients)


def test_remat_does_not_change_the_gradient(model, relative):
  """Of the audio branch, as it is the quicker to compile and has every layer."""
  args = sharding.rows(_call(None, ('sound',)))
  value, expected = _gradients(model, 'none', args)
  learnt = {name for name, g in expected.items() if np.any(g)}
  audio = {name for name in expected if 'audio' in name.split('.')}
  assert learnt == {name for name in audio if '.cross' not in name}
  for mode in ('dots', 'full'):
    other, gradients = _gradients(model, mode, args)
    assert relative(other, value) < 1e-6
    for name in learnt:
      assert relative(gradients[name], expected[name]) < 1e-5, name


def test_keeps_its_dtype_bargain():
  """bfloat16 inside, fp32 parameters and velocities."""
  config = dataclasses.replace(CONFIG, dtype='bfloat16')
  shapes = jax.eval_shape(lambda: mmdit.MMDiT(config, rngs=nnx.Rngs(0)))
  assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype('float32')}
  out = jax.eval_shape(lambda m, *args: m(*args), shapes, *sharding.rows(_call()))
  assert {v.dtype for v in jax.tree.leaves(out)} == {jnp.dtype('float32')}
