"""Samples with a program of `sr4 export --format stablehlo`.  Needs jax and safetensors, not sr4.

python run.py --inputs inputs.safetensors --out latents.safetensors
"""

import argparse
import pathlib

import jax
import numpy as np
from safetensors.numpy import load_file
from safetensors.numpy import save_file

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument('--inputs', required=True, help='text, what is known of the clip, positions')
parser.add_argument('--out', required=True, help='latents: video [b t h w c], audio [b l c]')
parser.add_argument('--steps', type=int, default=30)
parser.add_argument('--scale', type=float, default=4.0, help='how much it follows the text')
parser.add_argument('--seed', type=int, default=0)
args = parser.parse_args()
if args.steps < 1:
  parser.error(f'--steps {args.steps} must be at least 1')

here = pathlib.Path(__file__).parent
program = jax.export.deserialize(bytearray((here / 'velocity.stablehlo').read_bytes()))
weights, told = (jax.device_put(load_file(f)) for f in (here / 'weights.safetensors', args.inputs))
velocity = jax.jit(program.call)
silent = told | {'text_valid': told['text_valid'] & False}
shapes = {'video': told['known'].shape}
if 'audio_positions' in told:
  made = jax.tree.unflatten(program.out_tree, program.out_avals)
  shapes['audio'] = (*told['audio_positions'].shape[:2], made['audio'].shape[-1])
random = np.random.default_rng(args.seed)
x = {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}
for step in range(args.steps):
  t = {name: np.full(len(z), step / args.steps, np.float32) for name, z in x.items()}
  v, away = (velocity(weights, x, t, of) for of in (told, silent))
  go = lambda z, v, w: z + (w + args.scale * (v - w)) / args.steps
  x = {name: go(x[name], v[name], away[name]) for name in x}
x['video'] = jax.numpy.where(told['mask'] == 1, told['known'], x['video'])
save_file({name: np.asarray(z) for name, z in x.items()}, args.out)
