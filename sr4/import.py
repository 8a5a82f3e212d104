"""Writes public weights of codecs and text encoder as one of our checkpoints, or an export.

  sr4 import --config configs/skyreels_v4.py:video2,published --out /weights/published \\
    --config.video_codec.weights=/hub/Wan2.1-VAE --config.audio_codec.weights=/hub/mmaudio ...

Arrays have our names and digests (`sr4 verify` checks them), and each host of a pod reads its own
part.  The folder then stands for the files: --config.video_codec.weights=/weights/published, and so
on for each part; latents and embeddings made with the files are those made with it.

  sr4 import --export out/exported --out out/back

The checkpoint that `sr4 export` read: the same arrays, if it wrote them in float32.  Its codecs are
read from the folder from now on.
"""

import dataclasses
import sys


def arguments(parser):
  which = parser.add_mutually_exclusive_group(required=True)
  which.add_argument('--config', metavar='FILE[:ARG]', help='that names the files')
  which.add_argument('--export', metavar='DIR', help='a folder that `sr4 export` wrote')
  parser.add_argument('--out', required=True, metavar='DIR', help='a new folder')


def main(args):
  from sr4.core import config
  from sr4.core import pod
  from sr4.core import sharding

  if args.export:
    with pod.joined(steps=False), sharding.default_mesh():
      step, count = exported(args.export, args.out)
    print(f'{args.out}: step {step}, {count / 1e6:.1f} M parameters   --checkpoint={args.out}')
    return
  loaded = config.load(args.config, args.overrides)
  with pod.joined(steps=False), sharding.default_mesh():
    for section, count in write(loaded, args.out).items():
      places = ('', 'vocoder.') if section == 'audio_codec' else ('',)
      flags = ' '.join(f'--config.{section}.{place}weights={args.out}' for place in places)
      print(f'{section:<12} {count / 1e6:>9.1f} M parameters   {flags}')


def write(config, out: str) -> dict[str, int]:
  """All parts that have weights; how many parameters each has.

  Raises:
    ConvertError: there is none, or the folder is not empty; and what weights.load raises.
  """
  import json
  import os
  import shutil

  import jax

  from sr4.convert import rules
  from sr4.convert import weights
  from sr4.core import files
  from sr4.core import tree
  from sr4.models import kinds
  from sr4.models import system as system_lib
  from sr4.models.text import encoder
  from sr4.models.text import qwen_reading
  from sr4.models.text import qwen_vl
  from sr4.training import checkpoint

  new_folder(out)
  system = system_lib.build(config)
  words = ''
  if isinstance(read := encoder.bare(system.text), qwen_vl.QwenVL):
    words = qwen_reading.tokenizer_of(read.config)
    qwen_reading.lexicon(words, read.config.template)  # Before what takes long.
  system = weights.load(dataclasses.replace(system, text=encoder.bare(system.text)))
  named = dict(video_codec=system.codecs.video, audio_codec=system.codecs.audio, text=system.text)
  named = {section: part for section, part in named.items() if jax.tree.leaves(part)}
  if not named:
    raise rules.ConvertError(
      'no part of this config has weights; name wan2.1, mmaudio or a qwen3-vl, as '
      'configs/skyreels_v4.py:...,published does'
    )
  parts = {section: json.loads(kinds.identity(part.config)) for section, part in named.items()}
  with checkpoint.Checkpoints(out, keep=1) as saves:
    saves.save(0, named, {'parts': parts})
  if jax.process_index() == 0:
    if 'text' in named:
      shutil.copy(words, os.path.join(out, 'tokenizer.json'))
    # The last: with it the folder is whole.
    ids = json.dumps(kinds.weights_of(parts)).encode()
    files.save(os.path.join(out, kinds.IMPORTED), ids)
  return {section: tree.count(part) for section, part in named.items()}


def exported(path: str, out: str) -> tuple[int, int]:
  """(step, parameters) of the checkpoint that a folder of `sr4 export` becomes.

  Raises:
    ConvertError: the folder is another's or not whole, or `out` is not empty.
  """
  import json
  import os

  import jax

  from sr4.convert import files
  from sr4.convert import rules
  from sr4.convert import shards
  from sr4.convert import twin
  from sr4.core import tree
  from sr4.models import system as system_lib
  from sr4.training import checkpoint

  new_folder(out)
  shards.check(path)
  with open(os.path.join(path, shards.PAGE)) as f:
    page = json.load(f)
  if not os.path.exists(os.path.join(path, 'transformer')):
    raise rules.ConvertError(f'{path} is of StableHLO; give an export of --format diffusers')
  config = page['config']
  system = system_lib.build(config)
  like = tree.abstract(system.model, jax.random.key(0))
  source = files.source(os.path.join(path, 'transformer'))
  model = rules.load(like, twin.table, source)
  for section, part in (('video_codec', 'vae'), ('audio_codec', 'audio_vae')):
    if os.path.exists(place := os.path.abspath(os.path.join(path, part))):
      config[section]['weights'] = place
  if config['audio_codec'].get('vocoder'):
    config['audio_codec']['vocoder']['weights'] = os.path.abspath(os.path.join(path, 'vocoder'))
  with checkpoint.Checkpoints(out, keep=1) as saves:
    saves.save(page['step'], {page['weights']: model}, {'config': config})
  return page['step'], tree.count(model)


def new_folder(path: str):
  """ConvertError unless the folder is new, empty, or has only what a killed import left in it."""
  import os
  import re

  from sr4.convert import rules

  if not path:
    raise rules.ConvertError("--out='' is no folder; give a new one")
  left = re.compile(r'\d+\.orbax-checkpoint-tmp.*|\.shared-.*')
  if os.path.isdir(path) and all(map(left.fullmatch, os.listdir(path))):
    return
  if os.path.exists(path):
    raise rules.ConvertError(f'{path} is not empty; give a new folder')


if __name__ == '__main__':
  from sr4 import cli

  cli.run(sys.modules[__name__])
