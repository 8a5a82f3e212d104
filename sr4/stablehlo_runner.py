"""Samples with a program of `sr4 export --format stablehlo`.  Needs jax and safetensors, not sr4.

python run.py --inputs inputs.safetensors --out latents.safetensors
"""

import argparse
import json
import pathlib

import jax
import numpy as np
from safetensors.numpy import load_file
from safetensors.numpy import save_file

here = pathlib.Path(__file__).parent
c = json.loads((here / 'sr4.json').read_text())['sample']  # as the training samples
parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument('--inputs', required=True, help='text, what is known of the clip, positions')
parser.add_argument('--out', required=True, help='latents: video [b t h w c], audio [b l c]')
parser.add_argument('--steps', type=int, default=c['num_inference_steps'])
parser.add_argument('--scale', type=float, help='how much both follow the text')
parser.add_argument('--modality_scale', type=float, default=c['modality_scale'])
parser.add_argument('--seed', type=int, default=0)
args = parser.parse_args()
if args.steps < 1:
  parser.error(f'--steps {args.steps} must be at least 1')

program = jax.export.deserialize(bytearray((here / 'velocity.stablehlo').read_bytes()))
weights, told = (jax.device_put(load_file(f)) for f in (here / 'weights.safetensors', args.inputs))
velocity = jax.jit(program.call)
shapes = {'video': told['known'].shape}
if 'audio_positions' in told:
  made = jax.tree.unflatten(program.out_tree, program.out_avals)
  shapes['audio'] = (*told['audio_positions'].shape[:2], made['audio'].shape[-1])
scale = lambda name: c[f'{name}_guidance_scale'] if args.scale is None else args.scale
guidance = [(told | {'text_valid': told['text_valid'] & False}, {n: scale(n) for n in shapes})]
if 'present' in told:
  alone = told | {'present': told['present'] & False}
  guidance.append((alone, dict.fromkeys(shapes, args.modality_scale)))
guidance = [(without, by) for without, by in guidance if set(by.values()) != {1}]
steps, shifts = np.linspace(0, 1, args.steps + 1), {'video': c['shift'], 'audio': c['audio_shift']}
times = {name: steps / (steps + shifts[name] * (1 - steps)) for name in shapes}
random = np.random.default_rng(args.seed)
x = {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}
for i in range(args.steps):
  t = {name: np.full(len(z), times[name][i], np.float32) for name, z in x.items()}
  v = guided = velocity(weights, x, t, told)
  for without, by in guidance:
    w = velocity(weights, x, t, without)
    guided = {n: guided[n] + (by[n] - 1) * (v[n] - w[n]) for n in x}
  x = {n: x[n] + (times[n][i + 1] - times[n][i]) * guided[n] for n in x}
x['video'] = jax.numpy.where(told['mask'] == 1, told['known'], x['video'])
save_file({name: np.asarray(z) for name, z in x.items()}, args.out)
