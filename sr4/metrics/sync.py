"""Is what is heard in time with what is seen: rings against the bounces off the walls."""

from collections.abc import Sequence
import itertools

import numpy as np

from sr4.metrics import foreground

CAP = 1.0  # Seconds: the error of a clip that shows bounces and is silent, or rings without any.

# Sound.  Found on SR4-World behind its codec, with noise added to the latents.
WINDOW = 0.012  # Seconds before and after, whose energies are compared.
RISE = 2.5  # Energy after over energy before, from which it is a ring and not a decay.
QUIET = 160.0  # Energy of slope that is no sound yet, full scales^2 / s; a faint ring has 1000.
FAINT = 0.03  # The same as a share of the loudest moment of the clip.
APART = 0.04  # Seconds between two rings, at least.

# Picture.
BEND = 1 / 64  # Of the shorter side: how much nearer two lines must be to a track than one.
REACH = 1 / 16  # Of the shorter side: how near to a wall it must come to have touched it.


def onsets(samples: np.ndarray, sample_rate: int) -> np.ndarray:
  """Seconds at which something begins to ring in float [n c]: float64 [k], ascending.

  The energy of the slope (an attack is sharper than what rings on) in a window after each sample,
  over that in a window before, which has a floor, so that noise does not ring.
  """
  slope = np.diff(samples.astype(np.float64), axis=0, prepend=samples[:1]) * sample_rate
  energy = np.concatenate([[0], np.cumsum((slope**2).sum(1) / sample_rate)])
  width = round(WINDOW * sample_rate)
  padded = np.pad(energy, width, mode='edge')  # Outside the clip it is silent.
  before, after = energy - padded[: len(energy)], padded[2 * width :] - energy
  rise = after / (before + max(QUIET, FAINT * after.max()))
  found, apart = [], round(APART * sample_rate)
  while rise.max() >= RISE:
    at = int(rise.argmax())
    found.append(at / sample_rate)
    rise[max(0, at - apart) : at + apart] = 0
  return np.sort(np.array(found))


def contacts(frames: np.ndarray, fps: float) -> np.ndarray:
  """Seconds at which the one object of uint8 [t h w 3] bounces off a wall: float64 [k], ascending.

  Across and down, its track is cut into the fewest straight lines; where two lines of opposite
  direction cross, between frames, and it has come close to the wall, it has touched it.
  """
  x = foreground.difference(frames)
  inside = foreground.objects(x)
  track = foreground.centres(np.linalg.norm(x, axis=-1) * inside)
  seen, short = np.isfinite(track[:, 0]), min(frames.shape[1:3])
  if seen.sum() < 3:
    return np.zeros(0)
  times, found = np.flatnonzero(seen), []
  for axis, shadow in enumerate((inside.any(1), inside.any(2))):  # [t w], [t h]
    gap = np.stack([shadow.argmax(1), shadow[:, ::-1].argmax(1)])[:, seen]  # To either wall.
    for turn, high in _turns(times.astype(float), track[seen, axis], BEND * short):
      around = np.abs(times - turn) < 1.5
      if gap[int(high), around].min(initial=short) <= REACH * short:  # Unseen, it touches nothing.
        found.append(turn / fps)
  return np.sort(np.array(found))


def _turns(times, places, bend):
  """When the places [t] at ascending times [t] turn back, and whether at their high end."""
  lines = _lines(times, places, bend)
  fits = [np.polyfit(times[i:j], places[i:j], 1) if j - i > 1 else None for i, j in lines]
  for (one, other), (_, end) in zip(itertools.pairwise(fits), lines):
    # A line of one frame, the first or the last: as fast as the other, but back.
    if one is None:
      one = _back(other, times[end - 1], places[end - 1])
    if other is None:
      other = _back(one, times[end], places[end])
    if one[0] * other[0] < 0:
      cross = (other[1] - one[1]) / (one[0] - other[0])
      yield float(np.clip(cross, times[end - 1], times[end])), one[0] > 0


def _back(line, time, place):
  """The line of opposite slope through this point."""
  return np.array([-line[0], place + line[0] * time])


def _lines(times, places, bend):
  """Cuts [t] into ranges (start, stop): least squares plus bend^2 for each line.

  A line of one frame may only be the first or the last.
  """
  count = len(times)
  best, cut = np.full(count + 1, np.inf), np.zeros(count + 1, int)
  best[0] = 0
  for stop in range(1, count + 1):
    costs = _squares(times[:stop], places[:stop]) + best[:stop] + bend**2
    if 1 < stop < count:
      costs[-1] = np.inf
    cut[stop] = costs.argmin()
    best[stop] = costs[cut[stop]]
  ranges, stop = [], count
  while stop:
    ranges.append((int(cut[stop]), stop))
    stop = int(cut[stop])
  return ranges[::-1]


def _squares(times, places):
  """Sums of squares left by the best line through the frames from each start to the end: [stop]."""
  x, y = (times - times[-1])[::-1], (places - places[-1])[::-1]
  n = np.arange(1, len(x) + 1)
  sx, sy, xx, xy, yy = (np.cumsum(v) for v in (x, y, x * x, x * y, y * y))
  varx, vary, cov = xx - sx**2 / n, yy - sy**2 / n, xy - sx * sy / n
  return np.maximum(vary - cov**2 / np.maximum(varx, 1e-9), 0)[::-1]


def rings_and_bounces(frames, fps, samples, sample_rate) -> tuple[np.ndarray, np.ndarray]:
  """(onsets, contacts) of one clip, without rings after the last frame: no bounce can be seen."""
  rings = onsets(samples, sample_rate)
  return rings[rings <= (len(frames) - 1) / fps], contacts(frames, fps)


def onset_error(onsets: Sequence[float], contacts: Sequence[float], cap: float = CAP) -> float:
  """Mean distance in seconds of rings and bounces, each paired with one of the other kind.

  The pairs are those with the least sum; a pair further apart than `cap` counts as `cap`, and so
  does each that is left over.  One list empty: `cap`.  Both empty: NaN, there is nothing to judge.
  (Without pairs, by the nearest of the other kind, a clip full of noise would seem in time.)
  """
  few, many = sorted((np.sort(onsets), np.sort(contacts)), key=len)
  if not len(many):
    return float('nan')
  # The best pairs keep their order: saved[j] is what pairs with the first j of many take off.
  saved = np.zeros(len(many) + 1)
  for one in few:
    paired = saved[:-1] + np.maximum(cap - np.abs(many - one), 0)
    saved[1:] = np.maximum.accumulate(np.maximum(saved[1:], paired))
  return float(cap - saved[-1] / len(many))


def median_error(pairs) -> float:
  """Median of `onset_error` over pairs (onsets, contacts) not both empty; NaN without any."""
  errors = [onset_error(*pair) for pair in pairs]
  errors = [error for error in errors if not np.isnan(error)]
  return float(np.median(errors)) if errors else float('nan')


def shuffled(pairs) -> list[tuple]:
  """Every clip's rings with every other clip's bounces: what chance would reach."""
  pairs = list(pairs)
  return [
    (onsets, contacts)
    for i, (onsets, _) in enumerate(pairs)
    for j, (_, contacts) in enumerate(pairs)
    if i != j
  ]


def spectrogram(
  samples: np.ndarray, sample_rate: int, seconds: float = 0.032, top: float = 4000.0
) -> np.ndarray:
  """float [n c] -> float64 [f t], dB of a full-scale sine, from 0 Hz up to `top`.

  Hann windows of `seconds`, a quarter of that apart, of the mean of the channels' energy.
  """
  size = max(4, round(seconds * sample_rate))
  padded = np.pad(samples.astype(np.float64), ((size // 2, size // 2), (0, 0)))
  views = np.lib.stride_tricks.sliding_window_view(padded, size, axis=0)[:: size // 4]  # [t c size]
  window = np.hanning(size + 1)[:-1]
  spectrum = np.abs(np.fft.rfft(views * window, axis=-1)) / (window.sum() / 2)
  power = (spectrum**2).mean(1).T[: int(top * size / sample_rate) + 1]
  return 10 * np.log10(power + 1e-12)
