"""sr4/torch/mmdit.py beside sr4/models/mmdit.py: the same numbers from the same weights."""

import dataclasses

from diffusers.models import attention_dispatch
from flax import nnx
import jax
import ml_dtypes
import numpy as np
import pytest
import torch

from sr4.convert import rules
from sr4.convert import twin
from sr4.core import sharding
from sr4.core import tree
from sr4.core.av import AV
from sr4.models import mmdit
from sr4.nn import vsa
from sr4.torch import mmdit as torch_mmdit
from tests.models import mmdit_test
from tests.models import sparse_test

CONFIG = mmdit_test.CONFIG
BASE = dataclasses.replace(CONFIG, width=3072, heads=24, text_width=64, audio=False)


def to_torch(tree):
  """The contract with torch tensors in it."""
  return jax.tree.map(lambda x: torch.from_numpy(np.array(x)), tree)


def pair(randomized, config, std=0.1):
  """(ours, the twin with its weights)."""
  make = lambda: mmdit.MMDiT(config, rngs=nnx.Rngs(0))
  ours = randomized(tree.abstract(make), std)
  theirs = torch_mmdit.MMDiT(**twin.page(config)).eval()
  tensors = {name: torch.from_numpy(x) for name, x in rules.export(ours, twin.table).items()}
  theirs.load_state_dict(tensors, strict=True)
  return ours, theirs


def run(ours, x, t, cond, dtype='float32'):
  config = dataclasses.replace(ours.config, dtype=dtype)
  like = tree.abstract(lambda: mmdit.MMDiT(config, rngs=nnx.Rngs(0)))
  model = tree.from_flat(like, tree.to_flat(ours))
  args = sharding.rows((x, t, cond))
  return jax.device_get(jax.jit(lambda model, *args: model(*args))(model, *args))


def run_torch(theirs, *args):
  with torch.no_grad():
    return jax.tree.map(lambda x: x.float().numpy(), theirs(*to_torch(args)))


def compare(relative, one, two, bound):
  one, two = jax.tree.leaves(one), jax.tree.leaves(two)
  assert len(one) == len(two) > 0
  for a, b in zip(one, two):
    assert np.std(b) > 1e-2 and a.shape == b.shape
    assert relative(a, b) < bound


def cases():
  """(what is told, arguments)."""
  call = mmdit_test._call
  yield 'everything', call()
  yield 'text to both', call(('clip',), ('sound',))
  yield 'a picture', call(('clip',), None)
  yield 'sound alone', call(None, ('voice', 'sound'))
  yield 'not present', call(present=(True, False))
  x, t, cond = call()
  valid = np.array([[True, True, False, False], [False] * 4])
  yield 'padded text', (x, t, dataclasses.replace(cond, text_valid=valid))
  gone = np.zeros_like(cond.segments.video[0].valid)
  yield 'no reference', (x, t, mmdit_test._with_segment(cond, 0, 0, valid=gone))


@pytest.fixture(scope='module')
def tiny(randomized):
  return pair(randomized, CONFIG)


@pytest.mark.parametrize('name, args', [pytest.param(*case, id=case[0]) for case in cases()])
def test_is_ours(tiny, name, args, relative):
  ours, theirs = tiny
  compare(relative, run_torch(theirs, *args), run(ours, *args), 1e-5)


def test_kernels_without_masks_serve_every_case(tiny, relative):
  """As flash attention is, which diffusers refuses to give a mask."""
  _, theirs = tiny
  for _, args in cases():
    plain = run_torch(theirs, *args)
    with attention_dispatch.attention_backend('_native_flash'):
      compare(relative, run_torch(theirs, *args), plain, 1e-5)


@pytest.mark.parametrize('scale', ['per_clip', 'paper'])
def test_rotary_time(randomized, scale, relative):
  ours, theirs = pair(randomized, dataclasses.replace(CONFIG, audio_rope_scale=scale))
  args = mmdit_test._call()
  compare(relative, run_torch(theirs, *args), run(ours, *args), 1e-5)


def test_at_the_widths_of_base(randomized, relative):
  """Heads of 128 channels; weights of the size that training gives them."""
  ours, theirs = pair(randomized, BASE, std=0.02)
  x, t, cond = mmdit_test._call(audio=None)
  args = x, t, dataclasses.replace(cond, text=np.tile(cond.text, (1, 1, 11))[..., :64])
  compare(relative, run_torch(theirs, *args), run(ours, *args), 1e-5)


@pytest.mark.parametrize('told', [None, 0.3])
@pytest.mark.parametrize(
  'sparse',
  [
    vsa.Config(tile=(4, 4, 4), sparsity=0.75),
    vsa.Config(tile=(64,), sparsity=0.5, dense_layers=(1,), dense_until=0.3),
  ],
  ids=['sides', 'number'],
)
def test_sparse_attention(randomized, sparse, told, relative):
  config = dataclasses.replace(sparse_test.DENSE, sparse=sparse)
  ours, theirs = pair(randomized, config)
  x, t, cond = sparse_test.call()
  if told:
    cond = dataclasses.replace(cond, sparsity=np.full(sparse_test.ROWS, told, np.float32))
  compare(relative, run_torch(theirs, x, t, cond), run(ours, x, t, cond), 1e-5)


def test_a_refiner_has_no_audio(randomized, relative):
  config = dataclasses.replace(sparse_test.SPARSE, audio=False)
  ours, theirs = pair(randomized, config)
  x, t, cond = sparse_test.call()
  x, cond = (
    x._replace(audio=None),
    dataclasses.replace(cond, segments=cond.segments._replace(audio=None)),
  )
  compare(relative, run_torch(theirs, x, t, cond), run(ours, x, t, cond), 1e-5)


def test_bfloat16_is_as_near_as_ours(tiny):
  """Against fp32, from weights that bfloat16 holds; what ours keeps in fp32 the twin keeps too."""
  ours, _ = tiny
  ours = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16).astype(np.float32), ours)
  args = mmdit_test._call()
  exact = run(ours, *args)
  half = torch_mmdit.MMDiT(**twin.page(ours.config)).eval()
  half.load_state_dict({n: torch.from_numpy(x) for n, x in rules.export(ours, twin.table).items()})
  for name, x in half.named_parameters():
    if not set(half._keep_in_fp32_modules) & set(name.split('.')):
      x.data = x.data.bfloat16()
  error = lambda found: sum(
    float(np.sum((a - b) ** 2)) for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(exact))
  )
  mine, other = error(run(ours, *args, dtype='bfloat16')), error(run_torch(half, *args))
  assert 0 < other <= 1.25**2 * mine


def test_diffusers_saves_and_loads_it(tiny, tmp_path, relative):
  ours, theirs = tiny
  theirs.save_pretrained(tmp_path)
  args = mmdit_test._call()
  again = torch_mmdit.MMDiT.from_pretrained(tmp_path)
  compare(relative, run_torch(again, *args), run(ours, *args), 1e-5)
  half = torch_mmdit.MMDiT.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
  kept = {n for n, x in half.named_parameters() if x.dtype == torch.float32}
  assert 'dual.0.video.tokens.table' in kept and 'video.head.weight' in kept
  assert half.dual[0].video.tokens.qkv.weight.dtype == torch.bfloat16
  assert AV(*half(*to_torch(args)))
