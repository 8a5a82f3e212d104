"""What weights that are narrow, or lie in the host's memory, save and lose: docs/sampling.md.

  python benchmarks/storage.py [--chip v6e] [--sizes base,large]      memory of one TPU chip
  python benchmarks/storage.py --checkpoint out/demo/checkpoints      what is lost

The first is of the models of configs/skyreels_v4.py, one clip of 480p and 5 s with its sound, bf16,
with and without the prompt in one batch, by the TPU compiler: each program is compiled in a process
of its own, until its buffers are laid out.
"""

import argparse
import os
import subprocess
import sys

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

CLIP = dict(frames=81, height=480, width=832, fps=16.0)
WAYS = [
  (weights, offload) for offload in (False, True) for weights in ('float32', 'bfloat16', 'float8')
]
PROMPTS = 'a red circle bounces', 'a blue square moves', 'a green star bounces', 'a white diamond'
LIMIT = 900  # seconds of a program's compilation


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--chip', default='v6e')
  parser.add_argument('--sizes', default='base,large')
  parser.add_argument('--checkpoint', metavar='DIR')
  parser.add_argument(
    '--one', nargs=3, metavar=('SIZE', 'WEIGHTS', 'OFFLOAD'), help=argparse.SUPPRESS
  )
  args = parser.parse_args()
  if args.one:
    name, weights, offload = args.one
    print(measure(args.chip, name, weights, offload == 'True'), flush=True)
    os._exit(0)  # The compiler would work on.
  if args.checkpoint:
    return lost(args.checkpoint)
  print('| model | weights | host, GiB | arguments, GiB | in all, GiB | of |\n' + 6 * '|---' + '|')
  for name in args.sizes.split(','):
    for weights, offload in WAYS:
      command = [
        sys.executable,
        __file__,
        '--chip',
        args.chip,
        '--one',
        name,
        weights,
        str(offload),
      ]
      done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
      told = done.stdout.strip().splitlines() or [
        f'| {name} | {weights} | {done.stderr[-200:]!r} |'
      ]
      print(told[-1], flush=True)


def measure(chip: str, name: str, weights: str, offload: bool) -> str:
  """A row of the table."""
  import jax

  from sr4 import pipeline
  from sr4 import steps
  from sr4.core import config as config_lib
  from sr4.core import flags
  from sr4.core import sharding
  from sr4.core import tree
  from sr4.core.av import AV
  from sr4.models import storage
  from sr4.models import system as system_lib
  from sr4.planning import compiling
  from sr4.planning import topology as topology_lib

  system = system_lib.build(config_lib.load(f'configs/skyreels_v4.py:joint,{name}'))
  shape = '2x2x1' if topology_lib.GENERATIONS[chip].dimensions == 3 else '2x2'
  topology = topology_lib.parse(f'{chip}:{shape}')
  sampling, size = pipeline.Config(video_guidance_scale=5.0), system.size(**CLIP)
  clips = pipeline.Pipeline(system, None, size)._clips([pipeline.Row(caption='a red circle')])
  with jax.set_mesh(sharding.make_mesh(topology_lib.devices(topology)[:1])):
    rows = jax.NamedSharding(jax.sharding.get_mesh(), sharding.ROWS)
    place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows)
    seeds = jax.ShapeDtypeStruct((1,), 'uint32', sharding=rows)
    begin = lambda system, clips, seeds: steps.begin(
      system, size, sampling, AV(False, False), clips, seeds, AV(None, None)
    )
    carry, given, _, told = tree.abstract(begin, system, jax.tree.map(place, clips), seeds)
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), given)
    key = jax.eval_shape(lambda: jax.random.key(0))
    model = storage.laid_out(tree.abstract(system.model, key), storage.Config(weights, offload))
    lowered = steps.advance.lower(sampling, model, carry, one, told)
    host, device = [], []
    for x in jax.tree.leaves((model, carry, told)):
      (host if x.sharding.memory_kind == 'pinned_host' else device).append(x)
    found = compiling.compiled(lowered, flags.of(chip, {}), whole=False)
  fits = '' if found.fits and found.total <= topology.spec.hbm_gib else ' (too much)'
  held = ' | '.join(f'{compiling.held(x):.1f}' for x in (host, device))
  return f'| {name} | {weights} | {held} | {found.total:.1f}{fits} | {topology.spec.hbm_gib:g} |'


def lost(directory: str):
  """Relative L2 of the final latents of some clips."""
  import numpy as np

  from sr4 import pipeline
  from sr4.core import config as config_lib
  from sr4.core import sharding
  from sr4.core import tree
  from sr4.models import storage

  print('| weights | MiB | video error | audio error |\n|---|---|---|---|')
  with sharding.default_mesh():
    exact = None
    for weights in storage.WEIGHTS:
      system, model, trained = pipeline.load(directory, stored=storage.Config(weights))
      sampling = config_lib.build(pipeline.Config, dict(trained['sample']), 'sample')
      sampler = pipeline.Pipeline(system, model, pipeline.size_of(system, trained), sampling)
      made = [clip.latents for clip in sampler(PROMPTS, range(len(PROMPTS)))]
      exact = exact or made
      size = sum(x.nbytes for x in tree.to_flat(model).values()) / 2**20
      norm = lambda name, of: np.linalg.norm(np.stack([one[name] for one in of]))
      far = {n: [{n: a[n] - b[n]} for a, b in zip(made, exact)] for n in ('video', 'audio')}
      errors = ' | '.join(f'{norm(n, far[n]) / norm(n, exact):.3f}' for n in far)
      print(f'| {weights} | {size:.1f} | {errors} |', flush=True)


if __name__ == '__main__':
  main()
