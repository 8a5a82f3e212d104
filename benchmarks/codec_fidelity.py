"""What the training-free codecs lose on SR4-World, and how well conditioned their latents are.

  python benchmarks/codec_fidelity.py    # About ten seconds on two CPU cores.

PSNR is over all pixels of all clips (range 2); SI-SDR is the median and the worst clip's; mean, std
and kurtosis are those of all latents, and least..most are the stds of single channels.
"""

import jax
import numpy as np

from data_pipelines import world
from sr4.models import codec

SEED, CLIPS, FRAMES, FPS = 7, 24, 33, 16.0


def clips(size: int) -> tuple[np.ndarray, np.ndarray]:
  """(uint8 [b T size size 3], f32 [b n 2])."""
  config = world.Config(height=size, width=size, frames=FRAMES, fps=FPS)
  samples = [world.World(config, SEED)[i] for i in range(CLIPS)]
  return np.stack([s.frames for s in samples]), np.stack([s.samples for s in samples])


def psnr(x: np.ndarray, y: np.ndarray) -> float:
  return 10 * np.log10(4 / np.mean((np.float64(x) - y) ** 2))


def si_sdr(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """[b] dB; x is the reference (Le Roux et al., 2019)."""
  x, y = (np.float64(v).reshape(len(v), -1) for v in (x, y))
  target = np.sum(x * y, 1, keepdims=True) / np.sum(x * x, 1, keepdims=True) * x
  return 10 * np.log10(np.sum(target**2, 1) / np.sum((y - target) ** 2, 1))


def statistics(z: np.ndarray) -> str:
  z = np.float64(z).reshape(-1, z.shape[-1])
  kurtosis = np.mean((z - z.mean()) ** 4) / z.var() ** 2
  std = z.std(axis=0)
  return f'{z.mean():6.2f} {z.std():5.2f} {std.min():6.2f}..{std.max():.2f} {kurtosis:8.0f}'


def there_and_back(c, x, **how):
  encode, decode = jax.jit(lambda x: c.encode(x)), jax.jit(lambda z: c.decode(z, **how))
  z = encode(x)
  return np.asarray(z), np.asarray(decode(z))


def video_table():
  print(f'video: {CLIPS} clips of {FRAMES} frames at {FPS:g} fps')
  print('size  s channels   PSNR    mean   std least..most kurtosis')
  for size in (32, 64):
    frames, _ = clips(size)
    for s in (2, 4, 8):
      for channels in (16, 24, 32):
        c = codec.build_video({'name': 'dct', 'space_factor': s, 'channels': channels})
        z, y = there_and_back(c, frames)
        print(f'{size:4d} {s:2d} {channels:8d} {psnr(frames / 127.5 - 1, y):6.2f}  {statistics(z)}')


def audio_table():
  _, stereo = clips(32)
  print(f'\naudio: {CLIPS} clips of {stereo.shape[1]} samples at 16 kHz')
  print('ears  hop bands channels  to Hz SI-SDR  worst    mean   std least..most kurtosis')
  for ears, hop, bands in (
    (2, 256, 16),
    (2, 256, 32),
    (2, 256, 48),
    (2, 256, 64),
    (2, 512, 64),
    (2, 256, 128),
    (1, 256, 32),
    (1, 256, 64),
    (1, 256, 128),
    (1, 512, 128),
  ):
    c = codec.build_audio({'name': 'mdct', 'hop': hop, 'bands': bands, 'audio_channels': ears})
    x = stereo if ears == 2 else stereo.mean(axis=-1, keepdims=True)
    z, y = there_and_back(c, x, samples=x.shape[1])
    db = si_sdr(x, y)
    print(
      f'{ears:4d} {hop:4d} {bands:5d} {c.channels:8d} {bands / hop * 8000:6.0f} '
      f'{np.median(db):6.2f} {db.min():6.2f}  {statistics(z)}'
    )


if __name__ == '__main__':
  video_table()
  audio_table()
