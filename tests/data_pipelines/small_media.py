"""Clips whose picture and sound begin at one moment, and what a reader found of it."""

import numpy as np

from data_pipelines import media

SHAPE = {'height': 48, 'width': 64}
SOUND = {'sample_rate': 16_000, 'channels': 2}


def flash_and_click(frames, fps, rate, flash, channels=2, height=48, width=64):
  """Black until frame `flash`, white from there; silent until then, a tone from there."""
  pixels = np.zeros((frames, height, width, 3), np.uint8)
  pixels[flash:] = 255
  t = np.arange(media.audio_length(frames, fps, rate)) - round(flash / fps * rate)
  tone = np.where(t >= 0, 0.5 * np.cos(2 * np.pi * 1000 * t / rate), 0)
  return pixels, np.repeat(tone[:, None], channels, 1).astype(np.float32)


def offset(clip: media.Clip) -> float:
  """Seconds from the flash to the click."""
  bright = clip.frames[:, :, 20:].mean((1, 2, 3)) > 128
  loud = np.abs(clip.samples[:, 0]) > 0.25
  assert bright.any() and loud.any() and not bright[0]
  return loud.argmax() / clip.sample_rate - bright.argmax() / clip.fps
