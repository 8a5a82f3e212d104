"""From pixels and sound to what a branch sees: segments, each with its latents and its places.

video     the clip, known where it is given (Eq. 7)
keyframes chosen frames once more at a higher resolution (section 4.5)
images, reference clip, reference sound: context at negative time (Eq. 8-9)
"""

import functools

import jax
import jax.numpy as jnp

from sr4.core.av import AV
from sr4.core.batch import Latents
from sr4.core.batch import References
from sr4.core.batch import Segment
from sr4.core.batch import Size
from sr4.core.sharding import on_rows
from sr4.core.sharding import over_rows
from sr4.core.sharding import spread

BLACK = -1.0


def latent_shapes(codecs: AV, size: Size) -> AV:
  """Of each generated segment of a clip, without rows: AV of tuples of (t, h, w, c) and (l, c)."""
  video, audio = (), ()
  if size.frames:
    video = (codecs.video.latent_shape(size.frames, size.height, size.width),)
  if size.keyframes:
    _, h, w, c = codecs.video.latent_shape(1, *keyframe_sides(size))
    video += ((size.keyframes, h, w, c),)
  if size.samples:
    audio = ((codecs.audio.latent_length(size.samples), codecs.audio.channels),)
  return AV(video, audio)


def keyframe_sides(size: Size) -> tuple[int, int]:
  return size.height * size.keyframe_scale, size.width * size.keyframe_scale


def keyframes_at(size: Size, time_factor: int) -> tuple[int, ...]:
  """Which frames are keyframes when nobody chooses: the ends of latents, evenly spread."""
  last = (size.frames - 1) // time_factor
  spread = max(size.keyframes - 1, 1)
  return tuple(round(i * last / spread) * time_factor for i in range(size.keyframes))


def video(codec, size: Size, patch, rows: int, frames=None, known=None, made=None) -> Segment:
  """The clip: I and M of Eq. 7, all unknown where `known` is None.

  Args:
    frames: uint8, or float in [-1, 1], [b T H W 3]; None: what is known is in `made`.
    known: bool [b T H W] or [b T 1 1]; without frames, those under whole latents from the first on.
    made: latents of the frames [b t h w c].
  """
  sides = size.frames, size.height, size.width
  if known is None:
    latent, mask = unknown(codec, *sides, rows)
  elif frames is not None:
    latent, mask = reveal(codec, frames, known)
  else:
    latent, mask = begun(codec.black(*sides), made, known, codec.time_factor)
  seconds = codec.time_factor / size.fps
  positions = over_rows(video_positions(latent.shape[1:-1], patch, seconds), rows)
  return Segment(latent, mask, positions, everywhere(positions))


def keyframes(codec, size: Size, patch, at, frames=None, known=None, made=None) -> Segment:
  """High-resolution keyframes, each a picture of its own, at the places of the clip they refine.

  Positions are those of the clip: the seconds of the frame, and its own rows and columns, a
  `keyframe_scale`-th of a low-resolution patch apart.

  Args:
    at: int [b k], which frames of the clip.
    frames: as a clip's, [b k H*scale W*scale 3]; None: what is known is in `made`.
    known: of the clip, bool [b T H W] or [b T 1 1], without frames [b T 1 1]; None: nothing is.
    made: latents of each keyframe [b k h w c].
  """
  (rows, count), scale = at.shape, size.keyframe_scale
  height, width = keyframe_sides(size)
  if known is None:
    latent, mask = unknown(codec, 1, height, width, rows)
    latent, mask = (jnp.repeat(x, count, 1) for x in (latent, mask))
  else:

    def shown(known, at):
      known = jnp.take_along_axis(known, at[:, :, None, None], 1)
      return jnp.repeat(jnp.repeat(known, scale, 2), scale, 3) if known.shape[2] > 1 else known

    known = on_rows(shown)(known, at)
    if frames is not None:
      latent, mask = each_frame(lambda f, k: reveal(codec, f, k), frames, known)
    else:
      one = lambda z, known: begun(codec.black(1, height, width), z, known, codec.time_factor)
      latent, mask = each_frame(one, made, known)

  def places(at):
    grid = video_positions((count, *latent.shape[2:-1]), patch, 1.0)
    low = (grid[:, 1:] + 0.5) / scale - 0.5
    seconds = jnp.repeat(at / size.fps, len(grid) // count, 1)[..., None]
    return jnp.concatenate([seconds, jnp.broadcast_to(low, (rows, *low.shape))], -1)

  positions = on_rows(places)(at)
  return Segment(latent, mask, positions, everywhere(positions))


def references(
  codecs: AV, size: Size, patch, given: References | None, coded: Latents = Latents()
) -> AV:
  """AV of tuples of Segments, pictures before the clip; () where the Size has no slots.

  Args:
    given: which there are, and at what length; coded: their latents.
  """
  video, audio = (), ()
  parts, valid = [], []
  if size.reference_images:
    parts.append(coded.images)
    valid.append(given.images_valid)
  if size.reference_frames:
    parts.append(coded.clip)
    valid.append(latents_of(given.frames_valid, codecs.video.time_factor))
  if parts:
    latents, seen = jnp.concatenate(parts, 1), jnp.concatenate(valid, 1)
    video = (video_reference(latents, patch, codecs.video.time_factor / size.fps, seen),)
  if size.reference_samples:
    latents = coded.sound
    last = jnp.sum(given.samples_valid, 1, keepdims=True)
    starts = jnp.arange(latents.shape[1]) * (codecs.audio.sample_rate / codecs.audio.rate)
    audio = (audio_reference(latents, codecs.audio.rate, starts < last),)
  return AV(video, audio)


def video_reference(latents: jax.Array, patch, seconds_per_latent: float, valid) -> Segment:
  """Reference frames as context before the clip (Eq. 8-9).

  Args:
    latents: [b t h w c], pictures and clips one after another, padded to one size.
    valid: bool [b t]: which there are; the others are seen by no one.
  """

  def places(valid):  # t = -N_cond + i, of those that there are.
    grid = video_positions(latents.shape[1:-1], patch, seconds_per_latent)
    each = lambda x: jnp.repeat(x, len(grid) // x.shape[1], 1)
    index = jnp.cumsum(valid, 1) - 1 - jnp.sum(valid, 1, keepdims=True)
    seconds = each(index * seconds_per_latent)[..., None]
    sides = jnp.broadcast_to(grid[:, 1:], (*seconds.shape[:2], 2))
    return jnp.concatenate([seconds, sides], -1), each(valid)

  positions, seen = on_rows(places)(valid)
  mask = jnp.ones_like(latents[..., :1])
  return Segment(latents, mask, positions, seen, generated=False)


def audio_reference(latents: jax.Array, rate: float, valid) -> Segment:
  """A reference sound before the audio tokens: latents [b l c], valid bool [b l]."""
  count = jnp.sum(valid, 1)[:, None, None]
  positions = over_rows(audio_positions(valid.shape[1], rate), len(valid)) - count / rate
  return Segment(latents, None, positions, valid, generated=False)


def unknown(codec, frames: int, height: int, width: int, rows: int):
  """(I, M) where nothing is known: I is the latent of black frames, not zeros."""
  latent = over_rows(codec.black(frames, height, width), rows)
  return latent, over_rows(jnp.zeros((*latent.shape[1:-1], 1)), rows)


def reveal(codec, frames, known):
  """(I, M) of Eq. 7 from frames [b T H W 3] and the mask of what is given of them.

  I is the encoding of the frames with all that is hidden painted black: the latents of the clip
  itself would tell of it around the mask, and in the last latent, which spans four frames.  Where
  nothing under a latent is known, I is the latent of black frames.  M is the share of the pixels
  under a latent that are known: 1 known, 0 to generate.
  """

  def encode(codec, black, frames, known):
    hidden = jnp.asarray(0 if frames.dtype == jnp.uint8 else BLACK, frames.dtype)
    latent = codec.encode(spread(jnp.where(known[..., None], frames, hidden)))
    mask = known_share(known, latent.shape[1:4], codec.time_factor)
    return jnp.concatenate([jnp.where(mask > 0, latent, black), mask], -1)

  both = on_rows(encode)(codec, codec.black(*frames.shape[1:4]), frames, known)
  return both[..., :-1], both[..., -1:]


def begun(black, latents, known, time_factor: int):
  """(I, M) of Eq. 7 from the latents of a clip whose beginning is known.

  A causal codec makes the first latents of the first frames alone, so these are what `reveal` would
  make of pixels, and nothing tells of the frames after them.
  """
  mask = on_rows(lambda k: known_share(k, latents.shape[1:4], time_factor))(known)
  show = lambda black, latents, mask: jnp.where(mask > 0, latents, black)
  return on_rows(show)(black, latents, mask), mask


def known_share(known, grid: tuple[int, int, int], time_factor: int) -> jax.Array:
  """bool [b T H W] or [b T 1 1] -> float32 [b t h w 1], the share known under each latent."""
  rows, (t, h, w) = known.shape[0], grid
  known = known.astype(jnp.float32)
  later = known[:, 1:].reshape(rows, t - 1, time_factor, *known.shape[2:]).mean(2)
  share = jnp.concatenate([known[:, :1], later], 1)
  if share.shape[2] > 1:
    share = share.reshape(rows, t, h, share.shape[2] // h, w, share.shape[3] // w).mean((3, 5))
  return jnp.broadcast_to(share, (rows, *grid))[..., None]


def latents_of(frames: jax.Array, time_factor: int) -> jax.Array:
  """bool [b T] -> [b t]: is every frame under the latent there?"""
  later = [frames[:, i::time_factor] for i in range(1, 1 + time_factor)]
  return jnp.concatenate([frames[:, :1], functools.reduce(jnp.logical_and, later)], 1)


def encoded(codec, media, each: bool = False) -> jax.Array:
  """Latents of rows of media; `each`: every frame is a picture of its own."""
  one = lambda codec, x: codec.encode(spread(x))
  many = lambda codec, x: each_frame(codec.encode, spread(x))
  return on_rows(many if each else one)(codec, media)


def decoded(codec, latents, each: bool = False) -> jax.Array:
  """The inverse of `encoded`, for video."""
  one = lambda codec, z: codec.decode(spread(z))
  many = lambda codec, z: each_frame(codec.decode, spread(z))
  return on_rows(many if each else one)(codec, latents)


def each_frame(f, *clips):
  """f of clips of one frame, for every frame of [b k ...]: results [b 1 ...] -> [b k ...]."""
  count = clips[0].shape[1]
  made = [f(*(clip[:, i : i + 1] for clip in clips)) for i in range(count)]
  return jax.tree.map(lambda *x: jnp.concatenate(x, 1), *made)


def video_positions(grid, patch, seconds_per_latent: float) -> jax.Array:
  """[s 3] of a latent grid (t, h, w): seconds, and rows and columns in patches."""
  t, h, w = (size // step for size, step in zip(grid, patch))
  axes = (jnp.arange(t) * patch[0] * seconds_per_latent, jnp.arange(h), jnp.arange(w))
  return jnp.stack(jnp.meshgrid(*axes, indexing='ij'), -1).reshape(-1, 3).astype(jnp.float32)


def audio_positions(length: int, rate: float) -> jax.Array:
  """[l 1] in seconds, for latents that come `rate` times a second."""
  return (jnp.arange(length, dtype=jnp.float32) / rate)[:, None]


def everywhere(positions: jax.Array) -> jax.Array:
  """bool [b s]: every token is there."""
  return over_rows(jnp.ones(positions.shape[1], bool), positions.shape[0])


def to_uint8(frames: jax.Array) -> jax.Array:
  """[-1, 1] -> uint8, rounded and clipped: what codecs read as the same pixels."""
  return jnp.clip(jnp.round((frames + 1) * 127.5), 0, 255).astype(jnp.uint8)
