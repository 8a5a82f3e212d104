"""What a batch asks of the devices, and what they could give: tokens, FLOPs, peak, memory.

Planning says what a step should take; what it took is measured with the same figures.
"""

import dataclasses
import resource

from sr4.models import system as system_lib
from sr4.planning import flops
from sr4.planning import topology

GIB = 1 << 30
# bf16 TFLOP/s, dense, of what jax.Device.device_kind names; the vendors' pages.  None of a CPU.
GPUS = {
  'NVIDIA A100-SXM4-40GB': 312,
  'NVIDIA A100-SXM4-80GB': 312,
  'NVIDIA H100 80GB HBM3': 989,
  'NVIDIA H200': 989,
}
TPUS = {
  'TPU v4': 'v4',
  'TPU v5 lite': 'v5e',
  'TPU v5': 'v5p',
  'TPU v6 lite': 'v6e',
  'TPU7x': 'tpu7x',
}


@dataclasses.dataclass(frozen=True)
class Work:
  """One batch, over all devices, by its own geometry."""

  rows: int
  tokens: int  # of both branches, references and keyframes too, without text
  clip_seconds: float  # of media; a picture is one frame of its bucket's fps
  flops: float  # forward and backward, without what is computed again


def work(system: system_lib.System, size, clips) -> Work:
  """Of a batch of this Size.  clips: the global batch, or its shapes."""
  rows, text = clips.text_valid.shape
  tokens = system.tokens(size)
  rate = system.codecs.audio.sample_rate
  seconds = size.frames / size.fps if size.frames else size.samples / rate
  one = flops.forward(system.config, tokens, text, system.shown(size))
  return Work(rows, rows * sum(tokens), rows * seconds, 3 * rows * one)


def rates(done: list[Work], seconds: float, devices: int, peak: float | None) -> dict:
  """Names to numbers for what was done in so many seconds.

  Totals over total time: a mean of each step's rates would weigh a short step as a long one.

  Args:
    peak: bf16 TFLOP/s of a device; None: there is no mfu.
  """
  per_second = {
    f.name: sum(getattr(w, f.name) for w in done) / max(seconds, 1e-9)
    for f in dataclasses.fields(Work)
  }
  tflops = per_second['flops'] / devices / 1e12
  return {
    'samples_per_second': per_second['rows'],
    'tokens_per_second': per_second['tokens'],
    'tokens_per_second_per_device': per_second['tokens'] / devices,
    'clip_seconds_per_device_hour': 3600 * per_second['clip_seconds'] / devices,
    'tflops_per_device': tflops,
  } | ({'mfu': tflops / peak} if peak else {})


def peak_tflops(kind: str) -> float | None:
  """bf16 TFLOP/s of a device of this kind; None where it is not known."""
  if kind in TPUS:
    return topology.GENERATIONS[TPUS[kind]].tflops
  return GPUS.get(kind) or next(
    (x for name, x in GPUS.items() if kind.startswith(name + '-')), None
  )


def high_water(devices) -> dict:
  """The most memory that was in use so far: of a device, or of the process where none tells."""
  peaks = [(device.memory_stats() or {}).get('peak_bytes_in_use') for device in devices]
  if peaks and None not in peaks:
    return {'device_peak_gib': max(peaks) / GIB}
  kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return {'process_peak_gib': kilobytes * 1024 / GIB}


def limit_gib(devices) -> float | None:
  """GiB that a program may use of each device; None where one does not tell (a CPU)."""
  limits = [(device.memory_stats() or {}).get('bytes_limit') for device in devices]
  return min(limits) / GIB if limits and None not in limits else None
