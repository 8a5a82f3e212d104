"""The most memory that a decode of the Wan2.1 VAE takes on this machine, beside diffusers' class.

  python benchmarks/codec_peak.py [--frames 9] [--height 480] [--width 832]

fp32, random weights, each in a process of its own: GiB of RSS at its peak, above what it was with
the weights in memory.  Both code a latent at a time, so that more frames add their pixels alone.
"""

import argparse
import os
import resource
import subprocess
import sys

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
GIB = 1 << 20  # of KiB


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--frames', type=int, default=9)
  parser.add_argument('--height', type=int, default=480)
  parser.add_argument('--width', type=int, default=832)
  parser.add_argument('--one', choices=('ours', 'diffusers'), help=argparse.SUPPRESS)
  args = parser.parse_args()
  size = 1 + (args.frames - 1) // 4, args.height // 8, args.width // 8
  if args.one:
    {'ours': ours, 'diffusers': theirs}[args.one](size)
    return
  print(f'decode of {args.frames} x {args.height} x {args.width} | above the weights, GiB')
  for name in ('ours', 'diffusers'):
    same = [f'--{key}={getattr(args, key)}' for key in ('frames', 'height', 'width')]
    command = [sys.executable, __file__, '--one', name, *same]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    print(f'{name:<10} | {done.stdout.strip()}', flush=True)


def now() -> float:
  with open('/proc/self/statm') as f:
    return int(f.read().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 1024 / GIB


def told(before: float):
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GIB
  print(f'{peak - before:.2f} ({before:.2f} before)')


def ours(size):
  from flax import nnx
  import jax
  import jax.numpy as jnp

  from sr4.models import video_vae

  make = jax.jit(lambda: video_vae.VideoVAE(video_vae.Config(dtype='float32'), rngs=nnx.Rngs(0)))
  z, decode = jnp.zeros((1, *size, 16)), jax.jit(lambda m, z: m.decode(z))
  model = jax.block_until_ready(make())
  compiled = decode.lower(model, z).compile()
  before = now()
  jax.block_until_ready(compiled(model, z))
  told(before)


def theirs(size):
  import diffusers
  import torch

  model = diffusers.AutoencoderKLWan().eval()
  z, before = torch.zeros(1, 16, *size), now()
  with torch.inference_mode():
    model.decode(z)
  told(before)


if __name__ == '__main__':
  main()
