"""Writes public weights of codecs and text encoder as one of our checkpoints.

  sr4 import --config configs/skyreels_v4.py:video_2,published --out /weights/published \\
    --config.video_codec.weights=/hub/Wan2.1-VAE --config.audio_codec.weights=/hub/mmaudio ...

Arrays have our names and digests (`sr4 verify` checks them), and each host of a pod reads its own
part.  The folder then stands for the files: --config.video_codec.weights=/weights/published, and so
on for each part; latents and embeddings made with the files are those made with it.
"""

import dataclasses
import sys


def arguments(parser):
  parser.add_argument('--config', required=True, metavar='FILE[:ARG]', help='that names the files')
  parser.add_argument('--out', required=True, metavar='DIR', help='a new folder')


def main(args):
  from sr4.core import config
  from sr4.core import pod
  from sr4.core import sharding

  loaded = config.load(args.config, args.overrides)
  with pod.joined(), sharding.default_mesh():
    for section, count in write(loaded, args.out).items():
      print(
        f'{section:<12} {count / 1e6:>9.1f} M parameters   --config.{section}.weights={args.out}'
      )


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
  from sr4.training import checkpoint

  if os.path.exists(out) and os.listdir(out):
    raise rules.ConvertError(f'{out} is not empty; give a new folder')
  system = system_lib.build(config)
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
      c = named['text'].config
      words = c.tokenizer or qwen_reading.beside(c.weights)
      shutil.copy(words, os.path.join(out, 'tokenizer.json'))
    # The last: with it the folder is whole.
    ids = json.dumps(kinds.weights_of(parts)).encode()
    files.save(os.path.join(out, kinds.IMPORTED), ids)
  return {section: tree.count(part) for section, part in named.items()}


if __name__ == '__main__':
  from sr4 import cli

  cli.run(sys.modules[__name__])
