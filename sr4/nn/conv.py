"""Convolutions, channels last; weights are whole on each device."""

import math

from flax import nnx
import jax
import jax.numpy as jnp


class Conv(nnx.Module):
  """y = kernel * x + bias over the axes between batch and channels, in `dtype`, from fp32.

  The kernel is [*window in/groups out], drawn with variance 1/fan-in.
  """

  def __init__(
    self,
    window: tuple[int, ...],
    inputs: int,
    outputs: int,
    *,
    dtype,
    rngs: nnx.Rngs,
    padding=None,  # (before, after) of each axis, in zeros; none by default
    stride=None,  # of each axis, 1 by default
    dilation=None,  # of each axis, 1 by default
    bias: bool = True,
  ):
    shape = (*window, inputs, outputs)
    self.kernel = nnx.Param(jax.random.normal(rngs.params(), shape) * math.prod(shape[:-1]) ** -0.5)
    self.bias = nnx.Param(jnp.zeros(outputs)) if bias else None
    axes = range(len(window))
    self.padding = tuple(padding or ((0, 0) for _ in axes))
    self.stride, self.dilation = (tuple(x or (1 for _ in axes)) for x in (stride, dilation))
    self.dtype = dtype

  def __call__(self, x: jax.Array) -> jax.Array:
    kernel = self.kernel[...].astype(self.dtype)
    y = convolve(x.astype(self.dtype), kernel, self.padding, self.stride, self.dilation)
    return (y if self.bias is None else y + self.bias[...]).astype(self.dtype)


def convolve(x, kernel, padding, stride, dilation) -> jax.Array:
  """[b ... in], [*window in out] -> fp32 [b ... out]."""
  if kernel.ndim == 5 and kernel.shape[0] > 1 and set(dilation) == {1}:
    # XLA's convolution over three axes takes twice the time on a CPU.
    whole, parts = (
      lambda x, kernel: general(x, kernel, padding, stride, dilation),
      lambda x, kernel: by_frames(x, kernel, padding, stride),
    )
    return jax.lax.platform_dependent(x, kernel, cpu=parts, default=whole)
  return general(x, kernel, padding, stride, dilation)


def general(x, kernel, padding, stride, dilation) -> jax.Array:
  letters = 'DHW'[-(x.ndim - 2) :]
  names = (f'N{letters}C', f'{letters}IO', f'N{letters}C')
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    stride,
    padding,
    rhs_dilation=dilation,
    dimension_numbers=names,
    preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
  )


def by_frames(x, kernel, padding, stride) -> jax.Array:
  """The same over [b t h w in], as a sum of convolutions of frames."""
  x = jnp.pad(x, [(0, 0), padding[0], (0, 0), (0, 0), (0, 0)])
  count = (x.shape[1] - kernel.shape[0]) // stride[0] + 1

  def tap(i):
    at = slice(i, i + (count - 1) * stride[0] + 1, stride[0])
    frames = jax.lax.collapse(x[:, at], 0, 2)
    return general(frames, kernel[i], padding[1:], stride[1:], (1, 1))

  y = sum(map(tap, range(kernel.shape[0])))
  return y.reshape(x.shape[0], count, *y.shape[1:])


class Transposed(nnx.Module):
  """A transposed convolution over one axis that makes `stride` places of each, in `dtype`.

  [b l in] -> [b stride*l out]; the kernel is [window in out] with a window of whole strides, of
  which (window - stride) / 2 places are cut from both ends.
  """

  def __init__(self, window: int, stride: int, inputs: int, outputs: int, *, dtype, rngs: nnx.Rngs):
    if window % stride or (window - stride) % 2:
      raise ValueError(f'window {window} must be a multiple of stride {stride}, and as even')
    shape = (window, inputs, outputs)
    scale = (window // stride * inputs) ** -0.5
    self.kernel = nnx.Param(jax.random.normal(rngs.params(), shape) * scale)
    self.bias = nnx.Param(jnp.zeros(outputs))
    self.stride, self.dtype = stride, dtype

  def __call__(self, x: jax.Array) -> jax.Array:
    """Each place sees a few inputs only: a convolution that makes all places of one at once."""
    kernel = self.kernel[...].astype(self.dtype)
    window, inputs, outputs = kernel.shape
    taps = window // self.stride
    # Place p of an input is kernel[p] of it, kernel[p + stride] of the one before, and so on.
    phases = kernel.reshape(taps, self.stride, inputs, outputs)[::-1].transpose(0, 2, 1, 3)
    phases = phases.reshape(taps, inputs, self.stride * outputs)
    y = general(x.astype(self.dtype), phases, ((taps - 1, taps - 1),), (1,), (1,))
    y = y.reshape(x.shape[0], -1, outputs)
    cut = (window - self.stride) // 2
    y = y[:, cut : cut + x.shape[1] * self.stride]
    return (y + self.bias[...]).astype(self.dtype)
