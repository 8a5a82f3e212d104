"""How much of a picture or a sound came through."""

import numpy as np


def psnr(a: np.ndarray, b: np.ndarray) -> float:
  """Peak signal to noise ratio of two uint8 arrays of one shape, dB; inf for equals."""
  if a.shape != b.shape or a.dtype != np.uint8 or b.dtype != np.uint8:
    raise ValueError(
      f'{a.dtype} {a.shape} against {b.dtype} {b.shape}; give two uint8 of one shape'
    )
  error = np.mean((a.astype(np.float64) - b) ** 2)
  with np.errstate(divide='ignore'):
    return float(10 * np.log10(255.0**2 / error))


def si_sdr(estimate: np.ndarray, reference: np.ndarray) -> float:
  """Scale-invariant signal to distortion ratio of float [n c], dB (Le Roux et al. 2019, Eq. 5).

  10 log10 |a s|^2 / |a s - e|^2 with a = <e, s> / |s|^2.  NaN for a silent reference,
  -inf for a silent estimate.
  """
  if estimate.shape != reference.shape:
    raise ValueError(f'{estimate.shape} against {reference.shape}; give two of one shape')
  e, s = estimate.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
  if not (s @ s):
    return float('nan')
  target = (e @ s) / (s @ s) * s
  kept, lost = target @ target, (target - e) @ (target - e)
  if not kept:
    return float('-inf')
  with np.errstate(divide='ignore'):
    return float(10 * np.log10(kept / lost))
