"""What sampling loses and gains when layers are not run again (models/reuse.py).

  JAX_PLATFORMS=cpu python benchmarks/cache_error.py --checkpoint out/demo/checkpoints

Clips one by one, from the same noise as without; errors are relative L2 of the final latents, mean
over clips.  `audio's limit` is a tenth of video's, as the pipeline has it, or the same.
"""

import argparse
import time

import jax
import numpy as np

from sr4 import pipeline
from sr4 import steps
from sr4.core import sharding

PROMPTS = (
  'a red circle bounces',
  'a blue square slides',
  'a green star, a bell',
  'two yellow circles',
)


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--checkpoint', required=True)
  parser.add_argument('--steps', type=int, default=30)
  args = parser.parse_args()
  with sharding.default_mesh():
    system, model, trained = pipeline.load(args.checkpoint)
    size = pipeline.size_of(system, trained)
    exact, _, full = sampled(system, model, size, pipeline.Config(num_inference_steps=args.steps))
    print("| limit | audio's limit | layers run | time | video error | audio error |")
    print('|---|---|---|---|---|---|')
    for sensitive, limits in ((steps.SENSITIVE, (0.4, 0.8, 1.6)), (1, (0.05, 0.1, 0.2))):
      steps.SENSITIVE = sensitive
      jax.clear_caches()
      for limit in limits:
        config = pipeline.Config(num_inference_steps=args.steps, cache_threshold=limit)
        found, share, took = sampled(system, model, size, config)
        far = [
          np.mean(
            [np.linalg.norm(a[n] - b[n]) / np.linalg.norm(b[n]) for a, b in zip(found, exact)]
          )
          for n in ('video', 'audio')
        ]
        print(
          f'| {limit} | {limit / sensitive:g} | {share:.0%} | {took / full:.2f} '
          f'| {far[0]:.3f} | {far[1]:.3f} |',
          flush=True,
        )


def sampled(system, model, size, config) -> tuple[list[dict], float, float]:
  """(latents of each clip, share of the steps in which the layers ran, seconds)."""
  advance, ran = steps.advance, []

  def watched(*args):
    carry, states = advance(*args)
    ran.extend(float(jax.tree.leaves(state.drift)[0]) == 0 for state in states)
    return carry, states

  steps.advance = watched
  try:
    pipeline.Pipeline(system, model, size, config)(PROMPTS[:1], [0])  # Compiles.
    ran.clear()
    began, clips = time.monotonic(), []
    for seed, prompt in enumerate(PROMPTS):
      clips += pipeline.Pipeline(system, model, size, config)([prompt], [seed])
    took = time.monotonic() - began
  finally:
    steps.advance = advance
  return [clip.latents for clip in clips], float(np.mean(ran)) if ran else 1.0, took


if __name__ == '__main__':
  main()
