"""What the Wan2.1 VAE takes of one TPU chip, by the TPU compiler: a table of docs/codecs.md.

  python benchmarks/codec_memory.py [--chip v5e] [--tiles 0,256,512] [--clips '480p 15 s,1080p 5 s']

One clip at a time, bf16, one latent at a time after the first; `tile` pixels, 0: whole frames.
Each program is compiled in a process of its own, until its buffers are laid out.
"""

import argparse
import os
import subprocess
import sys
import time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

CLIPS = {
  '480p 5 s': (81, 480, 832),
  '480p 15 s': (241, 480, 832),
  '1080p 5 s': (81, 1088, 1920),
  '256 x 256 15 s 32 fps': (481, 256, 256),  # what `--decode_tile 256` decodes at a time
}
PASSES = 'encode', 'decode'
LIMIT = 900  # seconds of a program's compilation


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--chip', default='v5e')
  parser.add_argument('--tiles', default='0,256,512')
  parser.add_argument('--clips', default=','.join(CLIPS))
  parser.add_argument('--one', nargs=3, metavar=('CLIP', 'TILE', 'PASS'), help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.one:
    print(measure(args.chip, args.one[0], int(args.one[1]), args.one[2]), flush=True)
    os._exit(0)  # The compiler would work on.
  print('| clip | tile | pass | GiB | of | laid out in |\n|---|---|---|---|---|---|', flush=True)
  for clip in args.clips.split(','):
    for tile in args.tiles.split(','):
      for name in PASSES:
        began = time.monotonic()
        command = [sys.executable, __file__, '--chip', args.chip, '--one', clip, tile, name]
        try:
          done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
          told = done.stdout.strip().splitlines()[-1] if done.stdout else done.stderr[-200:]
        except subprocess.TimeoutExpired:
          told = f'not laid out in {LIMIT} s | '
        shown = tile if tile != '0' else 'whole'
        print(
          f'| {clip} | {shown} | {name} | {told} | {time.monotonic() - began:.0f} s |', flush=True
        )


def measure(chip: str, clip: str, tile: int, name: str) -> str:
  from flax import nnx
  import jax
  import jax.numpy as jnp

  from sr4.core import flags
  from sr4.core import sharding
  from sr4.models import video_vae
  from sr4.planning import compiling
  from sr4.planning import topology as topology_lib

  spec = topology_lib.GENERATIONS[chip]
  shape = '2x2' if spec.dimensions == 2 else '2x2x1'
  devices = topology_lib.devices(topology_lib.parse(f'{chip}:{shape}'))
  size = CLIPS[clip]
  with jax.set_mesh(sharding.make_mesh(devices[:1])):
    whole = jax.NamedSharding(jax.sharding.get_mesh(), sharding.REPLICATED)
    place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole)
    model = jax.eval_shape(
      lambda: video_vae.VideoVAE(video_vae.Config(tile=tile), rngs=nnx.Rngs(0))
    )
    given = jax.ShapeDtypeStruct((1, *size, 3), jnp.uint8)
    if name == 'decode':
      given = jax.ShapeDtypeStruct((1, *model.latent_shape(*size)), jnp.float32)
    args = jax.tree.map(place, (model, given))
    lowered = jax.jit(lambda model, x: getattr(model, name)(x)).lower(*args)
    found = compiling.compiled(lowered, flags.of(chip, {}), whole=False)
  return f'{found.total:.1f}{"" if found.fits else " (too much)"} | {spec.hbm_gib:g}'


if __name__ == '__main__':
  main()
