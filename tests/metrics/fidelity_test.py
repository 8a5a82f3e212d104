"""sr4/metrics/fidelity.py against what the formulas say by hand."""

import numpy as np
import pytest

from sr4.metrics import fidelity


def test_psnr():
  a = np.full((2, 4, 4, 3), 100, np.uint8)
  assert fidelity.psnr(a, a) == np.inf
  assert fidelity.psnr(a, a + np.uint8(1)) == pytest.approx(48.1308, abs=1e-4)
  assert fidelity.psnr(a * 0, np.full_like(a, 255)) == pytest.approx(0)
  with pytest.raises(ValueError, match='two uint8 of one shape'):
    fidelity.psnr(a, a[:1])


def test_si_sdr():
  rng = np.random.default_rng(0)
  clean, noise = rng.normal(size=(2, 1000, 2))
  noise -= (noise * clean).sum() / (clean * clean).sum() * clean  # Nothing of the clean one in it.
  noise *= 0.1 * np.linalg.norm(clean) / np.linalg.norm(noise)
  assert fidelity.si_sdr(clean + noise, clean) == pytest.approx(20)
  assert fidelity.si_sdr(-3 * (clean + noise), clean) == pytest.approx(20)
  assert fidelity.si_sdr(clean, clean) > 200
  assert fidelity.si_sdr(clean * 0, clean) == -np.inf
  assert np.isnan(fidelity.si_sdr(clean, clean * 0))
