"""Small records, and media files, for tests of the data pipeline."""

import dataclasses

import numpy as np

from data_pipelines import media
from data_pipelines import mp4
from data_pipelines import record as record_lib


def record(i=0, frames=9, fps=16.0, sound=True, video=True, rate=16_000):
  t, h, w = np.ogrid[:frames, :32, :32]
  x = np.stack([20 + 5 * h + t + 0 * w, 30 + 6 * w - t + 0 * h, 50 + 3 * (h + w) + t + 2 * i], -1)
  x = x.astype(np.uint8)
  n = round(frames / fps * rate)
  s = (0.3 * np.sin(np.arange(n)[:, None] * [0.05, 0.07 + i / 100])).astype(np.float32)
  return record_lib.Record(
    f'clip-{i}',
    x if video else None,
    fps,
    s if sound else None,
    rate,
    {'caption': f'a “{i}” ✓', 'long': 'b'},
  )


def edited(i=0, **kinds) -> record_lib.Record:
  """A record with a mask and references of every kind and form."""
  it, other = record(i, **kinds), record(i + 1, **kinds)
  t, h, w = np.ogrid[: len(it.frames), :32, :32]
  odd = other.frames[:1, :31, :17]
  references = (
    record_lib.Reference('image', odd, None),
    record_lib.Reference('video', other.frames[:5, :16, 4:], None),
    record_lib.Reference('image', other.frames[1:2], other.samples[:2000]),
    record_lib.Reference('audio', None, other.samples[:3001, :1]),
    record_lib.Reference('video', other.frames, other.samples),
  )
  mask = (h - 9 - t) ** 2 + (w - 16) ** 2 < 70
  return dataclasses.replace(it, mask=mask, references=references)


def same(a, b, pixels=0, level=1 / 32768):
  """Asserts that b is a, but for pixels and sound, which may be off by so much on average."""
  assert (a.id, a.fps, a.sample_rate, a.captions) == (b.id, b.fps, b.sample_rate, b.captions)
  assert (a.has_audio, a.has_video) == (b.has_audio, b.has_video)
  assert (a.mask is None) == (b.mask is None)
  if a.mask is not None:
    assert b.mask.dtype == bool
    np.testing.assert_array_equal(a.mask, b.mask)
  assert [r.kind for r in a.references] == [r.kind for r in b.references]
  for x, y in zip((a, *a.references), (b, *b.references)):
    if x.frames is not None:
      assert x.frames.shape == y.frames.shape
      assert abs(x.frames.astype(int) - y.frames).mean() <= pixels
    if record_lib.audible(x.samples):
      assert x.samples.shape == y.samples.shape and y.samples.dtype == np.float32
      assert abs(x.samples - y.samples).mean() <= level
    else:
      assert y.samples is None


def clip(path, seconds=2.0, fps=20, sound=True, level=0.3):
  n = round(seconds * fps)
  frames = np.zeros((n, 32, 48, 3), np.uint8)
  frames += (np.arange(n) * 255 // n).astype(np.uint8)[:, None, None, None]
  tone = level * np.sin(np.arange(media.audio_length(n, fps, 16_000)) / 9)
  mp4.write(path, frames, fps, tone[:, None] if sound else None, 16_000 if sound else None)
