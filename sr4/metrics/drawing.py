"""Numbers as pictures for a page: SVG, and PNG inside it.  Needs nothing but numpy."""

import base64
import math
import struct
import zlib

import numpy as np

from sr4.metrics import sync

STRIP = 9  # Frames in a strip.
SOUND_TOP = 2400.0  # Hz in a spectrogram; SR4-World's rings and its codec end there.
LOUD, SILENT = -15.0, -85.0  # dB, the brightest and the darkest of a spectrogram.
HEAT = ((8, 8, 20), (58, 22, 92), (150, 44, 110), (232, 92, 72), (252, 178, 92), (252, 244, 200))


def chart(steps, curves, width=960, height=300) -> str:
  """Lines over steps, on a log axis."""
  left, right, top, bottom = 36, 60, 8, 28
  values = np.concatenate([[v for v in curve if v > 0] for curve in curves.values()])
  low, high = values.min() / 1.05, values.max() * 1.05
  x = lambda step: left + (width - left - right) * (step - steps[0]) / (steps[-1] - steps[0])
  y = lambda value: top + (height - top - bottom) * (1 - position(value, low, high))
  parts = []
  for tick in (m * 10.0**e for e in range(-6, 6) for m in (1, 1.5, 2, 3, 5, 7)):
    if low <= tick <= high:
      parts.append(
        f'<line x1="{left}" x2="{width - right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" '
        f'stroke="var(--line)"/><text x="{left - 8}" y="{y(tick) + 4:.1f}" '
        f'text-anchor="end">{tick:g}</text>'
      )
  for step in np.linspace(steps[0], steps[-1], 5).round().astype(int):
    parts.append(f'<text x="{x(step):.1f}" y="{height - 6}" text-anchor="middle">{step:,}</text>')
  for name, curve in curves.items():
    for line, stroke, opacity in ((curve, 1, 0.35), (smooth(curve), 2, 1)):
      points = ' '.join(f'{x(s):.1f},{y(v):.1f}' for s, v in zip(steps, line) if v > 0)
      parts.append(
        f'<polyline points="{points}" fill="none" stroke="var(--{name})" '
        f'stroke-width="{stroke}" opacity="{opacity}" stroke-linejoin="round"/>'
      )
    parts.append(
      f'<text x="{width - right + 8}" y="{y(smooth(curve)[-1]) + 4:.1f}" '
      f'style="fill:var(--{name})">{name}</text>'
    )
  label = ', '.join(
    f'{name} from {curve[0]:.3g} to {smooth(curve)[-1]:.3g}' for name, curve in curves.items()
  )
  return (
    f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="Loss by step: {label}">'
    f'{"".join(parts)}</svg>'
  )


def smooth(curve):
  """The mean over a tenth of the curve around each point."""
  last = len(curve) - 1
  reach = [min(last // 20, i, last - i) for i in range(last + 1)]  # Ends stay where they are.
  return [float(np.mean(curve[i - r : i + r + 1])) for i, r in enumerate(reach)]


def timeline(label, row, frames, samples, fps, sample_rate, width=360) -> str:
  """Frames, waveform and spectrogram above each other, on one axis of time."""
  seconds = max(len(frames) / fps, len(samples) / sample_rate)
  x = lambda time: width * time / seconds
  strip, tall = filmstrip(frames)
  high = width * tall
  middle, half, floor, deep = high + 30, 22, high + 58, 62
  heat = png(heatmap(sync.spectrogram(samples, sample_rate, top=SOUND_TOP)))
  marks = ''.join(
    f'<line x1="{x(time):.1f}" x2="{x(time):.1f}" y1="{a}" y2="{b}" stroke="var(--{color})" '
    'stroke-width="1.5"/>'
    for name, color, a, b in (
      ('bounces', 'video', high + 3, middle),
      ('rings', 'audio', middle, floor + 5),
    )
    for time in row[name]
  )
  bounces, rings = (
    ', '.join(f'{time:.2f}' for time in row[name]) or 'none' for name in ('bounces', 'rings')
  )
  return (
    f'<svg viewBox="0 0 {width} {floor + deep:.0f}" role="img" aria-label="{label}. Bounces seen '
    f'at (s): {bounces}. Rings heard at (s): {rings}.">'
    f'<image class="pixels" width="{width}" height="{high:.1f}" preserveAspectRatio="none" '
    f'href="{data_uri("image/png", png(strip))}"/>'
    f'<path d="{wave(samples, width, middle, half)}" fill="var(--soft)"/>'
    f'<image y="{floor:.1f}" width="{width}" height="{deep}" preserveAspectRatio="none" '
    f'href="{data_uri("image/png", heat)}"/>{marks}</svg>'
  )


def filmstrip(frames):
  """(uint8 [h w 3], frames side by side from the first to the last; its height over its width)."""
  shown = frames[np.linspace(0, len(frames) - 1, min(STRIP, len(frames))).round().astype(int)]
  line = np.full((*shown.shape[1:2], 1, 3), 90, np.uint8)
  strip = np.concatenate([part for frame in shown for part in (frame, line)][:-1], axis=1)
  return strip, strip.shape[0] / strip.shape[1]


def wave(samples, width, middle, half, points=240) -> str:
  """An SVG path around the least and the greatest sample of each stretch."""
  mono = samples.mean(1)
  edges = np.linspace(0, len(mono), points + 1).astype(int)
  lows, highs = (f.reduceat(mono, edges[:-1]) for f in (np.minimum, np.maximum))
  xs = (np.arange(points) + 0.5) * width / points
  level = lambda v: middle - half * np.clip(v, -1, 1)
  around = [*zip(xs, level(highs) - 0.4), *zip(xs[::-1], level(lows)[::-1] + 0.4)]
  return 'M' + 'L'.join(f'{x:.1f} {y:.1f}' for x, y in around) + 'Z'


def heatmap(decibels):
  """[f t] dB -> uint8 [f t 3], low frequencies at the bottom."""
  at = np.clip((decibels[::-1] - SILENT) / (LOUD - SILENT), 0, 1) * (len(HEAT) - 1)
  return (
    np.stack([np.interp(at, np.arange(len(HEAT)), channel) for channel in zip(*HEAT)], axis=-1)
    .round()
    .astype(np.uint8)
  )


def png(pixels) -> bytes:
  """uint8 [h w 3] as a PNG file."""

  def chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

  height, width, _ = pixels.shape
  rows = np.pad(
    pixels.reshape(height, width * 3), ((0, 0), (1, 0))
  )  # Each begins with its filter: 0.
  header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB.
  return (
    b'\x89PNG\r\n\x1a\n'
    + chunk(b'IHDR', header)
    + chunk(b'IDAT', zlib.compress(rows.tobytes(), 9))
    + chunk(b'IEND', b'')
  )


def data_uri(kind: str, data: bytes) -> str:
  return f'data:{kind};base64,{base64.b64encode(data).decode()}'


def position(value, low, high) -> float:
  """Where a value lies between two others on a log axis: 0 to 1."""
  return min(1.0, max(0.0, math.log(max(value, 1e-9) / low) / math.log(high / low)))
