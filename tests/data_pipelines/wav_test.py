"""data_pipelines/wav.py: what is written is what is heard."""

import numpy as np

from data_pipelines import media
from data_pipelines import wav


def test_a_sound_comes_back():
  samples = np.random.default_rng(0).uniform(-1, 1, (1600, 2)).astype(np.float32)
  data = wav.to_bytes(samples, 16000)
  heard = media.read_audio(data, sample_rate=16000, channels=2, count=1600)
  np.testing.assert_allclose(heard, samples, atol=1 / 32768)
