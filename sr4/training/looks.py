"""What is looked at while training: held-out losses, and clips."""

import dataclasses
import os

import jax

from sr4 import pipeline
from sr4 import provenance
from sr4.training import data
from sr4.training import validation


@dataclasses.dataclass(frozen=True)
class PreviewConfig:
  """Clips sampled while training; every = 0: none."""

  every: int = 0
  prompts: tuple[str, ...] = ()

  def __post_init__(self):
    if self.every < 0:
      raise ValueError(f'preview.every={self.every} must be 0 (never) or more')
    if self.every and not self.prompts:
      raise ValueError(f'preview.every={self.every} without preview.prompts; give some, or every=0')


class Looks:
  """Held-out losses and previews, where they are due.

  Args:
    config: the whole config; c: its sections, built (training/loop.py).
    buckets: of the training's schedule; previews have the size of the heaviest.
  """

  def __init__(self, config, c, system, buckets, key, workdir: str):
    self.c, self.system, self.folder = c, system, os.path.join(workdir, 'previews')
    self.size = max(buckets, key=lambda b: b.weight).size
    self.held_out = None
    if c.validate.every:
      load = data.make_held_out(config, system, c.train.seed, c.validate.root, c.validate.batches)
      self.held_out = validation.HeldOut(system, c.flow, load, key)

  def due(self, done: int) -> tuple[str, ...]:
    """Which of 'eval' and 'preview' after so many steps."""
    every, last = self.c.validate.every, done == self.c.train.steps
    held_out = every and (done % every == 0 or last)
    preview = self.c.preview.every and done and done % self.c.preview.every == 0
    return ('eval',) * bool(held_out) + ('preview',) * bool(preview)

  def __call__(self, kind: str, done: int, model) -> dict[str, float]:
    """The losses, where it is these."""
    if kind == 'eval':
      return self.held_out(model)
    folder = os.path.join(self.folder, f'{done:07d}')
    write_previews(self.system, model, self.size, self.c.sample, self.c.preview.prompts, folder)
    return {}


def write_previews(system, model, size, sampling, prompts, folder: str):
  """FOLDER/00.mp4 and so on, of a prompt each."""
  from data_pipelines import mp4

  sampler = pipeline.Pipeline(system, model, size, sampling)
  clips = sampler(prompts, range(len(prompts)))
  if jax.process_index() == 0:
    os.makedirs(folder, exist_ok=True)
    for i, clip in enumerate(clips):
      mp4.write(
        os.path.join(folder, f'{i:02d}.mp4'),
        clip.frames,
        size.fps,
        clip.samples,
        system.codecs.audio.sample_rate,
        metadata=provenance.Origin(clip.prompt).tags(),
      )
