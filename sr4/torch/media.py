"""What is given to the sampler in torch: checked, and as tensors; and pixels out."""

import numpy as np
import torch


def check(pipe, sides, samples: int, image, last_image, video, mask_video, audio):
  """ValueError for what does not go together."""
  seen, patch = pipe.codecs.video, pipe.transformer.patch
  if not sides[0] and not samples:
    raise ValueError('num_frames=0 and no sound; give one of them, and `seconds` of sound alone')
  if sides[0] and (sides[0] - 1) % seen.time_factor:
    raise ValueError(f'num_frames={sides[0]} must be 1 + n * {seen.time_factor}, or 0')
  for name, side, step in (('height', sides[1], patch[1]), ('width', sides[2], patch[2])):
    if side % (unit := seen.space_factor * step):
      raise ValueError(f'{name}={side} must be a multiple of {unit}')
  if mask_video is not None and video is None:
    raise ValueError('mask_video without video; give the clip that it lies over')
  if video is not None and (image is not None or last_image is not None):
    raise ValueError('video, and image or last_image too; give one or the other')
  if audio is not None and not samples:
    raise ValueError('audio, and sound=False; leave out one of them')
  for name, x, shape in (
    ('image', image, (*sides[1:], 3)),
    ('last_image', last_image, (*sides[1:], 3)),
    ('video', video, (*sides, 3)),
    ('mask_video', mask_video, sides),
  ):
    if x is not None and np.shape(x) != shape:
      raise ValueError(f'{name} is {np.shape(x)}; here it must be {shape}')


def given(sides, rows: int, image, last_image, video, mask_video):
  """(frames in [-1, 1] [b T H W 3], known bool [b T H W]), or None twice."""
  if video is not None:
    frames = pixels(video)
    known = torch.ones(sides, dtype=torch.bool)
    if mask_video is not None:
      known = torch.from_numpy(np.asarray(mask_video) == 0)
  elif image is None and last_image is None:
    return None, None
  else:
    frames, known = torch.full((*sides, 3), -1.0), torch.zeros(sides, dtype=torch.bool)
    for at, x in ((0, image), (-1, last_image)):
      if x is not None:
        frames[at], known[at] = pixels(x), True
  return (x.expand(rows, *x.shape) for x in (frames, known))


def pixels(x):
  """uint8 -> fp32 in [-1, 1]."""
  return tensor(x) / 127.5 - 1


def tensor(x):
  return torch.from_numpy(np.array(x, np.float32))


def fitted(audio, samples: int):
  """[n channels] -> [1 samples channels], cut or with silence behind it."""
  x = tensor(audio)[None, :samples]
  return torch.nn.functional.pad(x, (0, 0, 0, samples - x.shape[1]))


def to_uint8(frames) -> np.ndarray:
  """[-1, 1] -> uint8, rounded and clipped."""
  return ((frames.cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
