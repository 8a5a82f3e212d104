"""How the weights of a model that makes clips lie: narrower than trained, or in the host's memory.

The kernels of the layers are nearly all of a model.  In float8 (e4m3: 4 bits of exponent, 3 of
mantissa) each output has a scale, a power of two, so that 2^-4 of a weight is all that is lost and
nothing is rounded again when it is used.  In the host's memory they wait for their turn: the model
fetches one layer at a time (mmdit.MMDiT.layers).
"""

from collections.abc import Iterator
import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp

from sr4.nn import linear

WEIGHTS = dict(float32=jnp.float32, bfloat16=jnp.bfloat16, float8=jnp.float8_e4m3fn)
LAYERS = ('dual', 'single')


@dataclasses.dataclass(frozen=True)
class Config:
  weights: str = 'float32'  # of WEIGHTS
  offload: bool = False  # to the host's memory

  def __post_init__(self):
    if self.weights not in WEIGHTS:
      raise ValueError(f'weights={self.weights!r} is not among {", ".join(WEIGHTS)}')


def kernels(model) -> Iterator[tuple[str, linear.Linear]]:
  """(name of the kernel, its layer with a leading axis of depth) of all that is stored so."""
  for name in LAYERS:
    yield from _linears(getattr(model, name), name)


def _linears(module, path: str):
  if isinstance(module, linear.Linear):
    yield f'{path}.kernel', module
  elif isinstance(module, nnx.Module):
    for name, child in vars(module).items():
      yield from _linears(child, f'{path}.{name}')


def laid_out(model, c: Config):
  """An abstract model (core/tree.py) with its kernels, and their scales, as they will lie."""
  for _, layer in kernels(model):
    kernel, bias = shape_of(layer.kernel), shape_of(layer.bias)
    layout = kernel.sharding.with_memory_kind('pinned_host' if c.offload else None)
    narrow = jax.ShapeDtypeStruct(kernel.shape, WEIGHTS[c.weights], sharding=layout)
    layer.kernel = nnx.Param(narrow)
    if c.weights == 'float8':
      layer.scale = nnx.data(nnx.Param(bias))
  return model


def shape_of(param: nnx.Param) -> jax.ShapeDtypeStruct:
  """What an abstract parameter holds."""
  (x,) = jax.tree.leaves(param)
  return x


def stored(name: str, layer: linear.Linear, kernel: jax.Array) -> dict[str, jax.Array]:
  """{name: array} of a kernel, fp32, as the layer of an abstract model says it lies."""
  like = shape_of(layer.kernel)
  if layer.scale is None:
    return {name: jax.device_put(kernel.astype(like.dtype), like.sharding)}
  narrow, scale = narrowed(kernel, layer.summed[1])
  return {
    name: jax.device_put(narrow, like.sharding),
    name.removesuffix('kernel') + 'scale': jax.device_put(scale, shape_of(layer.scale).sharding),
  }


@jax.jit(static_argnums=1)
def narrowed(kernel: jax.Array, summed: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
  """(float8 [depth ...], fp32 powers of two as the layer's bias), whose product is the kernel.

  `summed`: the axes of a layer's kernel that its product contracts.
  """
  summed = tuple(1 + axis for axis in summed)
  most = jnp.max(jnp.abs(kernel), summed, keepdims=True)
  narrow = WEIGHTS['float8']
  # 2^e from the exponent of the largest: it, and so all others, fit.
  _, exponent = jnp.frexp(most / float(jnp.finfo(narrow).max))
  scale = jnp.ldexp(jnp.float32(1), exponent)
  return (kernel / scale).astype(narrow), jnp.squeeze(scale, summed)
