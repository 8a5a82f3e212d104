"""One velocity of the sampler beside the twin in torch: same weights, inputs and threads.

  JAX_PLATFORMS=cpu python benchmarks/step_speed.py
  python benchmarks/step_speed.py --dtype bfloat16 --device cuda --size base --clips 81x480x832

  JAX_PLATFORMS=cpu python benchmarks/step_speed.py --size base --layers 1 1 --clips 17x64x64

Medians of alternating runs, after one that compiles.  The distance of the two results is relative,
of the modality in which it is larger.
"""

import argparse
import dataclasses
import statistics
import time

import jax
import numpy as np
import torch

from sr4.convert import rules
from sr4.convert import twin
from sr4.core import sharding
from sr4.core.av import AV
from sr4.core.batch import Condition
from sr4.flow import segments
from sr4.models import codec
from sr4.models import mmdit
from sr4.models import system as system_lib
from sr4.models.text import encoder
from sr4.torch import mmdit as torch_mmdit

TOKENS = 32  # of text


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--size', default='tiny')
  parser.add_argument('--layers', nargs=2, type=int, metavar=('DUAL', 'SINGLE'), help='of the size')
  parser.add_argument('--clips', nargs='+', default=['17x64x64', '33x96x96', '49x128x128'])
  parser.add_argument('--dtype', default='float32', choices=('float32', 'bfloat16'))
  parser.add_argument('--device', default='cpu')
  parser.add_argument('--repeats', type=int, default=5)
  args = parser.parse_args()
  torch.set_num_threads(torch.get_num_threads() if args.device == 'cpu' else 1)
  config = mmdit.Config(**mmdit.SIZES[args.size], text_width=64, dtype=args.dtype)
  codecs = AV(*(kind(dict(name=name)) for kind, name in zip(KINDS, ('dct', 'mdct'))))
  config = dataclasses.replace(
    config,
    video_channels=codecs.video.channels,
    audio_channels=codecs.audio.channels,
    audio_rate=codecs.audio.rate,
  )
  if args.layers:
    config = dataclasses.replace(config, **dict(zip(('dual_layers', 'single_layers'), args.layers)))
  system = system_lib.System(codecs, encoder.build_text(dict(name='bytes', width=64)), config)
  with sharding.default_mesh():
    model = random(jax.jit(system.model)(jax.random.key(0)))
    other = torch_twin(model, config, args)
    print('| clip | tokens | sr4, ms | torch, ms | sr4 / torch | distance |')
    print('|---|---|---|---|---|---|')
    for clip in args.clips:
      print(row(system, model, other, clip, args), flush=True)


KINDS = codec.build_video, codec.build_audio


def random(model):
  """Weights of which none is zero."""
  leaves, like = jax.tree.flatten(model)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  shake = jax.jit(
    lambda x, key: x + 0.02 * jax.random.normal(key, x.shape, out_sharding=sharding.of(x))
  )
  return jax.tree.unflatten(like, [shake(x, key) for x, key in zip(leaves, keys)])


def torch_twin(model, config, args):
  other = torch_mmdit.MMDiT(**twin.page(config))
  other.load_state_dict(
    {n: torch.from_numpy(x) for n, x in rules.export(model, twin.table).items()}
  )
  if args.dtype == 'bfloat16':
    kept = set(other._keep_in_fp32_modules)
    for name, x in other.named_parameters():
      if not kept & set(name.split('.')):
        x.data = x.data.bfloat16()
  return other.to(args.device).eval()


def row(system, model, other, clip: str, args) -> str:
  frames, height, width = map(int, clip.split('x'))
  size = system.size(frames, height, width, 16.0)
  random, patch = np.random.default_rng(0), system.config.patch
  shapes = segments.latent_shapes(system.codecs, size)
  x = AV(*((random.standard_normal((1, *of[0]), np.float32),) for of in shapes))
  video = segments.video(system.codecs.video, size, patch, 1)
  length = system.codecs.audio.latent_length(size.samples)
  places = sharding.over_rows(segments.audio_positions(length, system.codecs.audio.rate), 1)
  sound = segments.Segment(None, None, places, segments.everywhere(places))
  text = random.standard_normal((1, TOKENS, 64), np.float32)
  there = np.ones(1, bool)
  cond = Condition(AV((video,), (sound,)), text, np.ones((1, TOKENS), bool), AV(there, there))
  given = jax.device_get((x, AV(np.float32([0.3]), np.float32([0.3])), cond))
  ours = jax.jit(lambda model, *args: model(*args))
  on_mesh, on_torch = sharding.rows(given), to_torch(given, args.device)

  def run_ours():
    return jax.block_until_ready(ours(model, *on_mesh))

  def run_torch():
    with torch.inference_mode():
      out = other(*on_torch)
      if args.device != 'cpu':
        torch.cuda.synchronize()
      return out

  mine, theirs = run_ours(), run_torch()
  times = [], []
  for _ in range(args.repeats):
    for kept, run in zip(times, (run_ours, run_torch)):
      began = time.perf_counter()
      run()
      kept.append(1e3 * (time.perf_counter() - began))
  one, two = map(statistics.median, times)
  far = max(distance(np.asarray(a[0]), b[0].float().cpu().numpy()) for a, b in zip(mine, theirs))
  tokens = sum(system.tokens(size))
  return f'| {clip} | {tokens} | {one:.0f} | {two:.0f} | {one / two:.2f} | {far:.1e} |'


def distance(x, y) -> float:
  return float(np.linalg.norm(x - y) / np.linalg.norm(y))


def to_torch(tree_of, device):
  return jax.tree.map(lambda x: torch.from_numpy(np.array(x)).to(device), tree_of)


if __name__ == '__main__':
  main()
