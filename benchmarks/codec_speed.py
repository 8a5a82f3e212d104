"""The codecs with weights beside diffusers' classes: same weights, fp32, same threads, one run.

  python benchmarks/codec_speed.py [--threads 2] [--repeat 1] [--only video|sound]

Weights are random.  Each pass is compiled and run once before it is timed; the best of `repeat` is
told, or of as many as a second holds, and how far the results are apart (relative L2).  Needs
pip install 'sr4[test]'.
"""

import argparse
import itertools
import os
import tempfile
import time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import diffusers
import jax
import numpy as np
import torch

from sr4.convert import files
from sr4.convert import mmaudio
from sr4.convert import rules
from sr4.convert import wan
from sr4.core import sharding
from sr4.core import tree
from sr4.models import codec
from sr4.models import mel

RATE = 44_100


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--threads', type=int, default=os.cpu_count())
  parser.add_argument('--repeat', type=int, default=1)
  parser.add_argument('--only', choices=('video', 'sound'))
  args = parser.parse_args()
  torch.set_num_threads(args.threads)
  print('| pass | ours s | diffusers s | ratio | relative L2 |\n|---|---|---|---|---|')
  with torch.inference_mode(), jax.set_mesh(sharding.make_mesh(fsdp=1)):
    passes = {'video': video, 'sound': sound}
    chosen = [passes[args.only]] if args.only else passes.values()
    for name, ours, theirs in itertools.chain.from_iterable(make() for make in chosen):
      mine, found = best(ours, args.repeat)
      other, wanted = best(theirs, args.repeat)
      far = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
      print(f'| {name} | {mine:.4f} | {other:.4f} | {mine / other:.2f} | {far:.1e} |', flush=True)


def best(run, repeat: int):
  """(seconds, result)."""
  found, seconds = run(), []
  while len(seconds) < repeat or sum(seconds) < 1:
    began = time.monotonic()
    found = run()
    seconds.append(time.monotonic() - began)
  return min(seconds), np.asarray(found, np.float64)


def video():
  reference = diffusers.AutoencoderKLWan().eval()
  config = dict(name='wan2.1', weights='-', dtype='float32', chunk=4)
  like = codec.build_video(config)
  model = loaded(like, wan.diffusers(like.config), reference)
  mean, std = (np.float32(x) for x in (model.config.mean, model.config.std))
  encode, decode = (jax.jit(f) for f in (lambda m, x: m.encode(x), lambda m, z: m.decode(z)))
  random = np.random.default_rng(0)
  for name, size in (('17 x 256 x 256', (17, 256, 256)), ('1 x 480 x 832', (1, 480, 832))):
    x = np.float32(random.uniform(-1, 1, (1, *size, 3)))
    first = torch.from_numpy(np.moveaxis(x, -1, 1).copy())
    latents = reference.encode(first).latent_dist.mean
    z = (last(latents) - mean) / std
    yield (
      f'Wan2.1 encode, {name}',
      lambda x=x: np.asarray(encode(model, x)) * std + mean,
      lambda first=first: last(reference.encode(first).latent_dist.mean),
    )
    yield (
      f'Wan2.1 decode, {name}',
      lambda z=z: np.asarray(decode(model, z)),
      lambda latents=latents: last(reference.decode(latents).sample),
    )


def sound():
  vae, voice = diffusers.MMAudioVAE().eval(), diffusers.MMAudioVocoder().eval()
  for x in vae.vae.parameters():  # A layer of a released file keeps the mean square.
    if x.ndim:
      x.copy_(torch.randn_like(x) * x[0].numel() ** -0.5)
  like = codec.build_audio(dict(name='mmaudio'))
  flat = tree.to_flat(like)
  own = {name: x for name, x in flat.items() if not name.startswith('vocoder.')}
  own = loaded(own, mmaudio.vae(like.config), vae)
  heard = loaded(like.vocoder, mmaudio.bigvgan(like.config.vocoder), voice)
  heard = {f'vocoder.{name}': x for name, x in tree.to_flat(heard).items()}
  model = tree.from_flat(like, own | heard)
  samples = np.float32(np.random.default_rng(0).normal(0, 0.1, (1, 5 * RATE)))
  wave = torch.from_numpy(samples)
  spectrum = jax.jit(lambda x: mel.spectrum(x, RATE, 128))
  encode = jax.jit(lambda m, x: m.encode(x))
  decode = jax.jit(lambda m, z: m.mel(z))
  speak = jax.jit(lambda m, x: m.vocoder(x))
  z = vae.encode(wave).latent_dist.mean
  spectra = vae.decode(z).sample
  yield (
    'mel, 5 s',
    lambda: np.asarray(spectrum(samples)),
    lambda: last(vae.mel_converter(wave)),
  )
  yield (
    'MMAudio encode, 5 s',
    lambda: np.asarray(encode(model, samples[..., None])),
    lambda: last(vae.encode(wave).latent_dist.mean),
  )
  yield (
    'MMAudio decode to mel, 5 s',
    lambda: np.asarray(decode(model, last(z))),
    lambda: last(vae.decode(z).sample),
  )
  yield (
    'BigVGAN, 5 s',
    lambda: np.asarray(speak(model, last(spectra))),
    lambda: voice(spectra).sample[:, 0].numpy(),
  )


def last(x: torch.Tensor) -> np.ndarray:
  return np.moveaxis(x.numpy(), 1, -1)


def loaded(like, table, reference):
  """The reference's weights, through a file of them."""
  whole = jax.NamedSharding(jax.sharding.get_mesh(), sharding.REPLICATED)
  like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), like)
  with tempfile.TemporaryDirectory() as folder:
    reference.save_pretrained(folder)
    return rules.load(like, table, files.source(folder), mmaudio.UNUSED)


if __name__ == '__main__':
  main()
