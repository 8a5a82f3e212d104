"""Writes a checkpoint for those who sample without sr4: with PyTorch, or with a StableHLO program.

  sr4 export --checkpoint out/demo/checkpoints --out out/exported
  sr4 export --checkpoint out/demo/checkpoints --out out/program --format stablehlo

A folder of diffusers has the transformer (sr4.torch.MMDiT; of a Refiner, too), schedulers, and the
codecs that have weights.  A folder of StableHLO has velocity.stablehlo (sr4/stablehlo.py), its
weights, inputs for one clip, and run.py, which needs jax and safetensors.  Both have sr4.json with
the config of the training and sha256.json with a digest of each file, and appear whole or not at
all.  Tensors pass one by one from disk to disk, each array compared with its digest in the
checkpoint, so that a model of any size takes the memory of a few tensors.
`sr4 import --export out/exported --out DIR` makes a checkpoint of a folder of diffusers again.
"""

import sys

STEM = 'diffusion_pytorch_model'  # the name of weights in a folder of diffusers


def arguments(parser):
  parser.add_argument('--checkpoint', required=True, metavar='DIR', help='WORKDIR/checkpoints')
  parser.add_argument('--out', required=True, metavar='DIR', help='a new folder')
  parser.add_argument('--step', type=int, help='of the checkpoint; the latest by default')
  parser.add_argument('--raw', action='store_true', help='the weights, not their moving average')
  parser.add_argument('--format', default='diffusers', choices=tuple(FORMATS))
  parser.add_argument(
    '--dtype', default='float32', choices=('float32', 'bfloat16'), help="of diffusers' transformer"
  )


def main(args):
  import os
  import time

  from sr4 import pipeline
  from sr4.convert import shards
  from sr4.core import errors
  from sr4.core import sharding
  from sr4.training import checkpoint
  from sr4.training import manifest

  if args.format == 'stablehlo' and args.dtype != 'float32':
    raise errors.UserError(
      f'--dtype={args.dtype} is for --format diffusers; a program takes weights in float32 and '
      'multiplies in the dtype of the training'
    )
  began = time.monotonic()
  step, page = checkpoint.page(args.checkpoint, args.step)
  # The config, too, is as it was written; arrays are looked at on their way.
  checkpoint.check_files(os.path.join(os.path.abspath(args.checkpoint), str(step)), manifest.SMALL)
  weights = 'model' if args.raw else 'ema'
  pipeline.check_weights(args.checkpoint, page, weights)
  with sharding.default_mesh(), shards.appearing(args.out) as folder:
    FORMATS[args.format](folder, args.checkpoint, step, page, weights, args.dtype)
    told = {'config': page['config'], 'step': step, 'weights': weights, 'dtype': args.dtype}
    told['sample'] = sampling(page)
    folder.json(shards.PAGE, told)
  took = time.monotonic() - began
  print(
    f'{args.out}: step {step}, {len(folder.digests)} files, {folder.size / 1e6:.1f} MB in '
    f'{took:.1f} s, {folder.size / 1e6 / took:.0f} MB/s'
  )


def diffusers(folder, directory: str, step: int, page: dict, weights: str, dtype: str):
  """The files of a folder of diffusers.

  Args:
    folder: shards.Folder.
    page: of the checkpoint; weights: which of it, 'ema' or 'model'.
  """
  import dataclasses

  import jax

  from sr4.convert import twin
  from sr4.models import system as system_lib
  from sr4.models.text import encoder

  system = system_lib.build(page['config'])
  system = dataclasses.replace(system, text=encoder.bare(system.text))
  index = {'transformer': ('sr4.torch.mmdit', 'MMDiT', twin.page(system.config))}
  like = jax.eval_shape(system.model, jax.random.key(0))
  shapes, arrays = transformer(directory, step, page['digests'], like, weights)
  folder.tensors(f'transformer/{STEM}', shapes, arrays, dtype)
  for name, (kind, fields, tensors) in codecs(system).items():
    index[name] = ('diffusers', kind, fields)
    shapes = {n: x.shape for n, x in tensors.items()}
    folder.tensors(f'{name}/{STEM}', shapes, tensors.values(), 'float32')
  sample = sampling(page)
  for name, shift in (('scheduler', 'shift'), ('audio_scheduler', 'audio_shift')):
    fields = {'num_train_timesteps': 1000, 'shift': sample[shift]}
    index[name] = ('diffusers', 'FlowMatchEulerDiscreteScheduler', fields)
  for name, (_, kind, fields) in index.items():
    file = 'scheduler_config.json' if name.endswith('scheduler') else 'config.json'
    folder.json(f'{name}/{file}', {'_class_name': kind} | fields)
  parts = {name: of[:2] for name, of in index.items()}
  told = {name: page['config'][name] for name in ('video_codec', 'audio_codec', 'text')}
  told['sample'] = sample
  folder.json('model_index.json', {'_class_name': 'SkyReelsV4Pipeline', 'sr4': told} | parts)


def program(folder, directory: str, step: int, page: dict, weights: str, dtype: str):
  """The files of a folder of StableHLO; arguments as of `diffusers`."""
  import jax
  from safetensors import numpy as safetensors

  from sr4 import stablehlo
  from sr4.convert import weights as weights_lib
  from sr4.core import tree
  from sr4.models import system as system_lib
  from sr4.training import reading

  system = system_lib.build(page['config'])
  size, prompt = stablehlo.trained(system, page['config'])
  only = size if system.config.sparse.tile else None
  folder.save('velocity.stablehlo', [stablehlo.program(system, only)])
  like = tree.to_flat(jax.eval_shape(system.model, jax.random.key(0)))
  parts = [(f'{weights}.{name}', None) for name in like]
  read = reading.arrays(directory, step, page['digests'], parts)
  folder.tensors('weights', {n: x.shape for n, x in like.items()}, read, dtype, most=1 << 62)
  known = weights_lib.load(system, media=False)  # What its video codec makes of black frames.
  folder.save('inputs.safetensors', [safetensors.save(stablehlo.inputs(known, size, prompt))])
  with open(stablehlo.RUNNER, 'rb') as f:
    folder.save('run.py', [f.read()])


def sampling(page: dict) -> dict:
  """Every field of the way to sample that the training names (sr4/steps.py)."""
  import dataclasses

  from sr4 import steps
  from sr4.core import config

  return dataclasses.asdict(config.build(steps.Config, page['config'].get('sample', {}), 'sample'))


def transformer(directory: str, step: int, digests: dict, like, weights: str):
  """({name: shape}, arrays in that order) of the model, layer by layer.

  Args:
    like: the model, of shapes.
  """
  from sr4.convert import rules
  from sr4.convert import shards
  from sr4.convert import twin
  from sr4.core import tree
  from sr4.training import reading

  wanted = []  # (layer, name of ours, its index in that, the tensor)
  for name, x in tree.to_flat(like).items():
    found = twin.table(name, x.shape)
    stacked = isinstance(found, rules.Stack)
    for i, tensor in enumerate(rules.parts(found)):
      wanted.append((name.split('.')[0], i if stacked else None, name, tensor))
  # What is used together lies together: a stack's first layer, its second, and so on.
  wanted.sort(key=lambda one: (one[0], -1 if one[1] is None else one[1]))
  parts = [(f'{weights}.{name}', i) for _, i, name, _ in wanted]
  read = reading.arrays(directory, step, digests, parts)
  shapes = {tensor.name: tensor.shape for *_, tensor in wanted}
  return shapes, shards.ahead(rules.given(tensor, x) for (*_, tensor), x in zip(wanted, read))


def codecs(system) -> dict[str, tuple[str, dict, dict]]:
  """{component: (class of diffusers, its fields, {name: array})} of codecs that have weights."""
  from sr4.convert import mmaudio
  from sr4.convert import rules
  from sr4.convert import wan
  from sr4.convert import weights
  from sr4.core import tree
  from sr4.models import audio_vae
  from sr4.models import video_vae

  found, like = {}, system.placed().codecs
  if isinstance(like.video, video_vae.VideoVAE):
    c = like.video.config
    arrays = rules.export(weights.video(like.video), wan.diffusers(c))
    found['vae'] = 'AutoencoderKLWan', wan.page(c), arrays
  if isinstance(like.audio, audio_vae.AudioVAE):
    c, model = like.audio.config, weights.audio(like.audio)
    (fields, voice), (spectra, filters) = mmaudio.pages(c), mmaudio.constants(c)
    own = {n: x for n, x in tree.to_flat(model).items() if not n.startswith('vocoder.')}
    found['audio_vae'] = 'MMAudioVAE', fields, rules.export(own, mmaudio.vae(c)) | spectra
    arrays = rules.export(model.vocoder, mmaudio.bigvgan(c.vocoder)) | filters
    found['vocoder'] = 'MMAudioVocoder', voice, arrays
  return found


FORMATS = {'diffusers': diffusers, 'stablehlo': program}


if __name__ == '__main__':
  from sr4 import cli

  cli.run(sys.modules[__name__])
