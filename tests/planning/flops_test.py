"""sr4/planning/flops.py against the compiler's count of a model that runs each layer once."""

import dataclasses

import jax
import numpy as np
import pytest

from sr4.core import sharding
from sr4.core.av import AV
from sr4.core.batch import Clips
from sr4.flow import conditioning
from sr4.flow import segments
from sr4.models import mmdit
from sr4.models import system as system_lib
from sr4.nn import vsa
from sr4.planning import flops

TEXT = 8  # Few: what the last layer makes of them is read by no one, and the compiler knows.
CONFIG = dict(
  model=dict(size='debug', width=256, dual_layers=1, single_layers=1, dtype='float32'),
  video_codec=dict(name='dct', space_factor=4, channels=16),
  audio_codec=dict(name='mdct', sample_rate=8000, audio_channels=1, hop=64, bands=32),
  text=dict(name='bytes', width=48, tokens=TEXT),
)


@pytest.mark.parametrize(
  'clip',
  [
    dict(frames=17, height=64, width=64, fps=8.0),
    dict(frames=17, height=64, width=64, fps=8.0, sound=False),
    dict(seconds=2.0),
  ],
)
def test_forward(clip):
  system = system_lib.build(CONFIG)
  size = system.size(**clip)
  there = np.ones(1, bool)
  text, valid, present, t = sharding.rows(
    (
      np.ones((1, TEXT, 48), np.float32),
      np.ones((1, TEXT), bool),
      AV(there, there),
      AV(np.zeros(1, np.float32), np.zeros(1, np.float32)),
    )
  )
  clips = Clips(None, None, None, text, valid, present)
  cond = conditioning.condition(system.codecs, size, (1, 2, 2), clips, clips.latents)
  shapes = segments.latent_shapes(system.codecs, size)
  x = AV(*(tuple(np.zeros((1, *s), np.float32) for s in of) or None for of in shapes))
  run = jax.jit(lambda model, *args: model(*args))
  compiled = run.lower(system.model(jax.random.key(0)), sharding.rows(x), t, cond).compile()
  counted = compiled.cost_analysis()['flops']
  tokens = jax.tree.map(lambda n: -(-n // mmdit.SUBLANES) * mmdit.SUBLANES, system.tokens(size))
  # Rotary turns are products, too: of queries and keys, in self-attention and in the other's.
  c, ways = system.config, 4 if all(tokens) else 2
  turns = ways * sum(tokens) * 2 * c.width * c.head_dim * (c.dual_layers + c.single_layers)
  share = flops.forward(c, tokens, TEXT) / (counted - turns)
  assert 0.98 < share < 1  # The compiler counts norms, softmax and gates, too.


def test_twice_the_layers_and_rows_of_a_square():
  """Layers add up; attention grows with the square of the tokens."""
  system = system_lib.build(CONFIG)
  c = system.config
  one, two, four = (flops.forward(c, AV(n, 0), 0) for n in (1000, 2000, 4000))
  quadratic = 4 * (c.dual_layers + c.single_layers) * c.width * 1000**2
  assert four - 2 * two == pytest.approx(2 * 4 * quadratic, rel=1e-2)
  assert two - 2 * one == pytest.approx(2 * quadratic, rel=1e-2)


def test_sparse_attention_is_counted_as_it_is_done():
  """Of 20,000 tokens the tiles that are read, the gates, and the attention of means."""
  dense = system_lib.build(CONFIG).config
  tokens, d, layers = AV(20_000, 0), dense.width, 2
  sparse = lambda fields: dataclasses.replace(dense, sparse=vsa.Config(tile=(128,), **fields))
  count = lambda shown=0, **fields: (
    flops.forward(sparse(fields), tokens, 480, shown) - flops.forward(dense, tokens, 480)
  )
  more = layers * (2 * 20_000 * d**2 + 4 * 160**2 * d)
  assert count(sparsity=0.0) == more
  assert count(sparsity=0.75) == more - layers * 0.75 * 4 * 20_000**2 * d
  assert count(sparsity=0.75, dense_layers=(1,)) == more - 0.75 * 4 * 20_000**2 * d
  assert count(sparsity=0.75, shown=8_000) == more - layers * 0.75 * 4 * 12_000**2 * d
