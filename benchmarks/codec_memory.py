"""What the Wan2.1 VAE takes of one TPU chip, by the TPU compiler: a table of docs/codecs.md.

  python benchmarks/codec_memory.py [--chip v5e] [--tile 0,512]

One clip at a time, bf16, one latent at a time after the first; `tile` pixels, 0: whole frames.
"""

import argparse
import os
import time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

from flax import nnx
import jax
import jax.numpy as jnp

from sr4.core import flags
from sr4.core import sharding
from sr4.models import video_vae
from sr4.planning import topology as topology_lib

GIB = 1 << 30
CLIPS = {'480p 5 s': (81, 480, 832), '480p 15 s': (241, 480, 832), '1080p 5 s': (81, 1088, 1920)}


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--chip', default='v5e', choices=topology_lib.GENERATIONS)
  parser.add_argument('--tile', default='0,512')
  args = parser.parse_args()
  spec = topology_lib.GENERATIONS[args.chip]
  shape = '2x2' if spec.dimensions == 2 else '2x2x1'
  devices = topology_lib.devices(topology_lib.parse(f'{args.chip}:{shape}'))
  print('| clip | tile | pass | GiB | of | compiled in |\n|---|---|---|---|---|---|')
  with jax.set_mesh(sharding.make_mesh(devices[:1])):
    for clip, size in CLIPS.items():
      for tile in map(int, args.tile.split(',')):
        config = video_vae.Config(tile=tile)
        model = jax.eval_shape(lambda c=config: video_vae.VideoVAE(c, rngs=nnx.Rngs(0)))
        z = model.latent_shape(*size)
        for name, given in (
          ('encode', jax.ShapeDtypeStruct((1, *size, 3), jnp.uint8)),
          ('decode', jax.ShapeDtypeStruct((1, *z), jnp.float32)),
        ):
          run = lambda model, x, name=name: getattr(model, name)(x)
          began = time.monotonic()
          told = memory(run, model, given, flags.of(args.chip, {}))
          seconds = time.monotonic() - began
          print(
            f'| {clip} | {tile or "whole"} | {name} | {told} | {spec.hbm_gib} | {seconds:.0f} s |',
            flush=True,
          )


def memory(function, model, x, options) -> str:
  """GiB of weights, what goes in and out and all between; or the compiler's complaint."""
  mesh = jax.sharding.get_mesh()
  whole = jax.NamedSharding(mesh, sharding.P())
  place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole)
  lowered = jax.jit(function).lower(jax.tree.map(place, model), place(x))
  try:
    stats = lowered.compile(compiler_options=options).memory_analysis()
  except jax.errors.JaxRuntimeError as error:
    return f'does not fit: {" ".join(str(error).split())[:120]}'
  held = stats.argument_size_in_bytes + stats.output_size_in_bytes + stats.temp_size_in_bytes
  return f'{held / GIB:.1f}'


if __name__ == '__main__':
  main()
