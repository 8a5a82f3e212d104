"""The causal 3-D VAE of Wan2.1 and Wan2.2: frames <-> latents.

Reference: `diffusers.AutoencoderKLWan`, whose files sr4/convert/ reads.  Each latent sees its
frames and those before them, so a clip may be coded in parts, of which every causal layer remembers
the last frames (causal.py).  In one part or in many, the numbers are the same.

Letters: b rows, T H W frames, t h w c latents.
"""

import dataclasses
import itertools

import einops
from flax import nnx
import jax
import jax.numpy as jnp

from sr4.models import causal
from sr4.models import frames as frames_lib
from sr4.models import tiles
from sr4.nn import conv

QUERIES = 4096  # of a frame's attention at a time: what bounds its logits

# Per channel, of the latents that the released weights make (their config.json).
MEAN = (
  *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
  *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
STD = (
  *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
  *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)
WAN22 = dict(
  channels=48,
  width=160,
  decoder_width=256,
  patch=2,
  shortcuts=True,
  mean=(
    *(-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557),
    *(-0.1382, 0.0542, 0.2813, 0.0891, 0.1570, -0.0098, 0.0375, -0.1825),
    *(-0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502),
    *(-0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230),
    *(-0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520, 0.3748),
    *(0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667),
  ),
  std=(
    *(0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013),
    *(0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978),
    *(0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659),
    *(0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093),
    *(0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887),
    *(0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744),
  ),
)


@dataclasses.dataclass(frozen=True)
class Config:
  """Wan2.1's by default; WAN22 has the fields of Wan2.2's."""

  weights: str = ''  # a file or folder; 'random'
  channels: int = 16
  width: int = 96  # of the encoder's first stage
  decoder_width: int = 0  # of the decoder's last; 0: the encoder's
  multiples: tuple[int, ...] = (1, 2, 4, 4)  # of the width, stage by stage
  blocks: int = 2  # residual blocks of a stage; the decoder has one more
  halved: tuple[bool, ...] = (False, True, True)  # between stages: is time halved with space?
  patch: int = 1  # pixels that become channels, before all else
  shortcuts: bool = False  # around each stage, as in Wan2.2
  mean: tuple[float, ...] = MEAN  # of each channel; () is 0
  std: tuple[float, ...] = STD  # () is 1
  dtype: str = 'bfloat16'
  chunk: int = 1  # latents that are coded at a time, after the first
  tile: int = 0  # pixels of a side above which a frame is coded in tiles; 0: never

  def __post_init__(self):
    if len(self.halved) != len(self.multiples) - 1:
      raise ValueError(
        f'halved={self.halved} must have one entry between each two of {len(self.multiples)} stages'
      )
    for name in ('mean', 'std'):
      if len(getattr(self, name)) not in (0, self.channels):
        raise ValueError(
          f'{name} has {len(getattr(self, name))} entries for channels={self.channels}'
        )
    if min(self.multiples, default=0) < 1:
      raise ValueError(f'multiples={self.multiples} must be one or more, each at least 1')
    if self.chunk < 1:
      raise ValueError(f'chunk={self.chunk} must be at least 1')
    if self.tile < 0 or self.tile % (2 * self.space_factor):
      raise ValueError(f'tile={self.tile} is not 0 or a multiple of {2 * self.space_factor}')

  @property
  def time_factor(self) -> int:
    return 2 ** sum(self.halved)

  @property
  def space_factor(self) -> int:
    return self.patch * 2 ** len(self.halved)


class Norm(nnx.Module):
  """x / |x| * sqrt(C) * gamma over the channels; |x| in fp32."""

  def __init__(self, size: int):
    self.gamma = nnx.Param(jnp.ones(size))

  def __call__(self, x: jax.Array) -> jax.Array:
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    length = jnp.sqrt(jnp.sum(y * y, -1, keepdims=True))
    y = y / jnp.maximum(length, 1e-12) * (x.shape[-1] ** 0.5 * self.gamma[...])
    return y.astype(x.dtype)


class Causal(conv.Conv):
  """A 3 x 3 x 3 convolution that sees no frame after its own."""

  def __init__(self, inputs: int, outputs: int, how: dict):
    super().__init__((3, 3, 3), inputs, outputs, padding=((0, 0), (1, 1), (1, 1)), **how)

  def __call__(self, x: jax.Array, past: causal.Past) -> jax.Array:
    return super().__call__(past.join(x, 2))


class Residual(nnx.Module):
  def __init__(self, inputs: int, outputs: int, how):
    self.norm1, self.conv1 = Norm(inputs), Causal(inputs, outputs, how)
    self.norm2, self.conv2 = Norm(outputs), Causal(outputs, outputs, how)
    self.shortcut = conv.Conv((1, 1, 1), inputs, outputs, **how) if inputs != outputs else None

  def __call__(self, x, past: causal.Past):
    y = self.conv1(jax.nn.silu(self.norm1(x)), past)
    y = self.conv2(jax.nn.silu(self.norm2(y)), past)
    return y + (x if self.shortcut is None else self.shortcut(x))


class Attention(nnx.Module):
  """Of one head, within each frame."""

  def __init__(self, size: int, how):
    self.norm = Norm(size)
    self.qkv, self.proj = (
      conv.Conv((1, 1, 1), size, 3 * size, **how),
      conv.Conv((1, 1, 1), size, size, **how),
    )

  def __call__(self, x):
    tokens = lambda x: x.reshape(-1, x.shape[2] * x.shape[3], 1, x.shape[4])
    q, k, v = map(tokens, jnp.split(self.qkv(self.norm(x)), 3, -1))
    count = -(-q.shape[1] // QUERIES)
    if count == 1:
      y = jax.nn.dot_product_attention(q, k, v)
    else:
      q = jnp.pad(q, [(0, 0), (0, -q.shape[1] % count), (0, 0), (0, 0)])
      some = jnp.moveaxis(q.reshape(q.shape[0], count, -1, *q.shape[2:]), 1, 0)
      y = jax.lax.map(lambda q: jax.nn.dot_product_attention(q, k, v), some)
      y = jax.lax.collapse(jnp.moveaxis(y, 0, 1), 1, 3)[:, : k.shape[1]]
    return x + self.proj(y.reshape(x.shape))


class Middle(nnx.Module):
  def __init__(self, size: int, how):
    self.before, self.after = (Residual(size, size, how) for _ in range(2))
    self.attention = Attention(size, how)

  def __call__(self, x, past: causal.Past):
    return self.after(self.attention(self.before(x, past)), past)


class Down(nnx.Module):
  """Half of height and width; where `time`, of what follows the first frame too."""

  def __init__(self, size: int, time: bool, how):
    padding = ((0, 0), (0, 1), (0, 1))
    self.space = conv.Conv((1, 3, 3), size, size, padding=padding, stride=(1, 2, 2), **how)
    self.time = conv.Conv((3, 1, 1), size, size, stride=(2, 1, 1), **how) if time else None

  def __call__(self, x, past: causal.Past):
    x = self.space(x)
    if self.time is None:
      return x
    if not past.begins:
      return self.time(past.join(x, 1))
    past.keep(x[:, -1:])
    return jnp.concatenate([x[:, :1], self.time(x)], 1) if x.shape[1] > 1 else x


class Up(nnx.Module):
  """Twice the height and width; where `time`, twice the frames after the first too."""

  def __init__(self, inputs: int, outputs: int, time: bool, how):
    self.time = conv.Conv((3, 1, 1), inputs, 2 * inputs, **how) if time else None
    self.space = conv.Conv((1, 3, 3), inputs, outputs, padding=((0, 0), (1, 1), (1, 1)), **how)

  def __call__(self, x, past: causal.Past):
    if self.time is not None:
      first, x = (x[:, :1], x[:, 1:]) if past.begins else (x[:, :0], x)
      x = past.join(x, 2)
      if x.shape[1] > 2:  # Each frame's two halves are frames that follow each other.
        y = jnp.stack(jnp.split(self.time(x), 2, -1), 2)
        first = jnp.concatenate([first, jax.lax.collapse(y, 1, 3)], 1)
      x = first
    for axis in (2, 3):
      x = jnp.repeat(x, 2, axis)
    return self.space(x)


class Stage(nnx.Module):
  """Residual blocks and a change of size; with a shortcut around them that has no weights."""

  def __init__(self, widths: list[int], change, around, how):
    self.blocks = nnx.List([Residual(i, o, how) for i, o in itertools.pairwise(widths)])
    self.change, self.around = change, around

  def __call__(self, x, past: causal.Past):
    y = x
    for block in self.blocks:
      y = block(y, past)
    if self.change is not None:
      y = self.change(y, past)
    return y if self.around is None else y + self.around(x, past.begins)


@dataclasses.dataclass(frozen=True)
class Shrunk:
  """A shortcut to half the size: means over groups of a cell of space, time and channels."""

  outputs: int
  time: int  # frames of a cell
  space: int  # pixels of its sides

  def __call__(self, x, begins: bool):
    if begins:
      x = jnp.pad(x, [(0, 0), (-x.shape[1] % self.time, 0), (0, 0), (0, 0), (0, 0)])
    (b, t, h, w, c), p, s = x.shape, self.time, self.space
    x = x.reshape(b, t // p, p, h // s, s, w // s, s, c).transpose(0, 1, 3, 5, 7, 2, 4, 6)
    return x.reshape(*x.shape[:4], self.outputs, -1).mean(-1)


@dataclasses.dataclass(frozen=True)
class Grown:
  """A shortcut to twice the size: channels, repeated, fill a cell of space and time."""

  outputs: int
  time: int
  space: int

  def __call__(self, x, begins: bool):
    (b, t, h, w, c), p, s = x.shape, self.time, self.space
    x = jnp.repeat(x, self.outputs * p * s * s // c, -1)
    x = x.reshape(b, t, h, w, self.outputs, p, s, s).transpose(0, 1, 5, 2, 6, 3, 7, 4)
    x = x.reshape(b, t * p, h * s, w * s, self.outputs)
    return x[:, p - 1 :] if begins else x  # The first latent is one frame.


class Encoder(nnx.Module):
  def __init__(self, c: Config, how):
    widths = [c.width * m for m in (1, *c.multiples)]
    self.conv_in = Causal(3 * c.patch**2, widths[0], how)
    self.stages = nnx.List()
    for i, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
      last, time = i == len(c.halved), bool(i < len(c.halved) and c.halved[i])
      change = None if last else Down(outputs, time, how)
      around = Shrunk(outputs, 1 + time, 2 - last) if c.shortcuts else None
      self.stages.append(Stage([inputs, *[outputs] * c.blocks], change, around, how))
    self.middle = Middle(widths[-1], how)
    self.norm_out, self.conv_out = Norm(widths[-1]), Causal(widths[-1], 2 * c.channels, how)
    self.moments = conv.Conv((1, 1, 1), 2 * c.channels, 2 * c.channels, **how)

  def __call__(self, x, past: causal.Past):
    x = self.conv_in(x, past)
    for stage in self.stages:
      x = stage(x, past)
    x = self.middle(x, past)
    return self.moments(self.conv_out(jax.nn.silu(self.norm_out(x)), past))


class Decoder(nnx.Module):
  def __init__(self, c: Config, how):
    widths = [(c.decoder_width or c.width) * m for m in (c.multiples[-1], *c.multiples[::-1])]
    self.latents = conv.Conv((1, 1, 1), c.channels, c.channels, **how)
    self.conv_in = Causal(c.channels, widths[0], how)
    self.middle = Middle(widths[0], how)
    self.stages = nnx.List()
    for i, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
      last, time = i == len(c.halved), bool(i < len(c.halved) and c.halved[::-1][i])
      narrowed = not c.shortcuts  # Else a change of size keeps the width.
      inputs = inputs // 2 if i and narrowed else inputs
      change = None if last else Up(outputs, outputs // 2 if narrowed else outputs, time, how)
      around = Grown(outputs, 1 + time, 2) if c.shortcuts and not last else None
      self.stages.append(Stage([inputs, *[outputs] * (c.blocks + 1)], change, around, how))
    self.norm_out, self.conv_out = Norm(widths[-1]), Causal(widths[-1], 3 * c.patch**2, how)

  def __call__(self, z, past: causal.Past):
    x = self.middle(self.conv_in(self.latents(z), past), past)
    for stage in self.stages:
      x = stage(x, past)
    return self.conv_out(jax.nn.silu(self.norm_out(x)), past)


class VideoVAE(nnx.Module):
  """models/codec.py `VideoCodec` with weights."""

  def __init__(self, config: Config, *, rngs: nnx.Rngs):
    how = dict(dtype=config.dtype, rngs=rngs)  # of all convolutions
    self.config = config
    self.encoder, self.decoder = Encoder(config, how), Decoder(config, how)

  @property
  def channels(self) -> int:
    return self.config.channels

  @property
  def time_factor(self) -> int:
    return self.config.time_factor

  @property
  def space_factor(self) -> int:
    return self.config.space_factor

  def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
    return frames_lib.latent_shape(self, frames, height, width)

  def encode(self, frames: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """The posterior's mean, or, with a key, a sample of it; normalised per channel."""
    mean, log_variance = self.posterior(frames)
    if key is not None:
      mean += jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape)
    return (mean - self._of('mean', 0.0)) / self._of('std', 1.0)

  def posterior(self, frames: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and log-variance of a normal distribution, fp32 [b t h w c], not normalised."""
    frames_lib.check_frames(self, frames)
    moments = tiles.tiled(self._encode, frames, self.config.tile, self.space_factor)
    mean, log_variance = jnp.split(moments, 2, -1)
    return mean, jnp.clip(log_variance, -30.0, 20.0)

  def decode(self, latents: jax.Array) -> jax.Array:
    frames_lib.check_latents(self, latents)
    z = latents.astype(jnp.float32) * self._of('std', 1.0) + self._of('mean', 0.0)
    tile = self.config.tile // self.space_factor
    return jnp.clip(tiles.tiled(self._decode, z, tile, 1), -1, 1)

  def black(self, frames: int, height: int, width: int) -> jax.Array:
    self.latent_shape(frames, height, width)
    return self.encode(jnp.full((1, frames, height, width, 3), frames_lib.BLACK))[0]

  def _encode(self, frames: jax.Array) -> jax.Array:
    c = self.config

    def part(frames, past):
      x = cells(frames_lib.to_float(frames), c.patch).astype(c.dtype)
      return self.encoder(x, past).astype(jnp.float32)

    return causal.in_parts(part, frames, c.chunk * self.time_factor, self.time_factor)

  def _decode(self, z: jax.Array) -> jax.Array:
    c = self.config

    def part(z, past):
      return pixels(self.decoder(z.astype(c.dtype), past), c.patch).astype(jnp.float32)

    return causal.in_parts(part, z, c.chunk)

  def _of(self, name: str, default: float) -> jax.Array:
    return jnp.asarray(getattr(self.config, name) or default, jnp.float32)


def cells(x: jax.Array, patch: int) -> jax.Array:
  """[b T H W c] -> [b T H/p W/p c*p*p], column before row in the channels."""
  if patch == 1:
    return x
  return einops.rearrange(x, 'b t (h r) (w q) c -> b t h w (c q r)', q=patch, r=patch)


def pixels(x: jax.Array, patch: int) -> jax.Array:
  """The inverse of `cells`."""
  if patch == 1:
    return x
  return einops.rearrange(x, 'b t h w (c q r) -> b t (h r) (w q) c', q=patch, r=patch)
