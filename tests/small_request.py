"""Requests of small_run's model, and media for them."""

import numpy as np

from data_pipelines import mp4
from data_pipelines import stills
from sr4 import request
from sr4.core import config as config_lib
from sr4.models import system as system_lib
from tests import small_run

TRAINED = dict(small_run.config('/nowhere'))
SYSTEM = system_lib.build(TRAINED)
RANDOM = np.random.default_rng(0)


def ask(**fields) -> request.Request:
  return config_lib.build(request.Request, dict(prompt='a red circle') | fields, 'request')


def write_media(path):
  smooth = np.linspace(40, 200, 32, dtype=np.uint8)[None, :, None, None]
  frames = (
    np.broadcast_to(smooth, (9, 32, 48, 3)) + np.arange(9, dtype=np.uint8)[:, None, None, None]
  )
  sound = RANDOM.uniform(-0.5, 0.5, (9000, 1)).astype(np.float32)
  mp4.write(path / 'clip.mp4', frames, 8.0, sound, 8000)
  mask = np.zeros((9, 32, 48, 3), np.uint8)
  mask[3:, 8:24, 12:36] = 255
  mp4.write(path / 'mask.mp4', mask, 8.0, None, 8000)
  (path / 'mask.png').write_bytes(stills.to_png(mask[5]))
  (path / 'black.png').write_bytes(stills.to_png(mask[0]))
  grid = np.zeros((48, 48, 3), np.uint8)
  for i in range(4):  # Two rows of three, of which four have something in them.
    grid[16 * (i // 3) :, :][:16, 16 * (i % 3) :][:, :16] = RANDOM.integers(0, 256, (16, 16, 3))
  for name, picture in (('grid', grid), ('wide', grid[:24]), ('first', frames[0])):
    (path / f'{name}.png').write_bytes(stills.to_png(np.ascontiguousarray(picture)))
