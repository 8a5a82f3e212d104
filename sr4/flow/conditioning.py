"""From clips to what the model is told: latents, known regions, positions, dropped conditions."""

import dataclasses

import jax
import jax.numpy as jnp

from sr4.core import prng
from sr4.core.av import AV
from sr4.core.batch import Batch
from sr4.core.batch import Clips
from sr4.core.batch import Condition
from sr4.core.batch import Segment
from sr4.core.batch import Size
from sr4.core.sharding import on_rows
from sr4.core.sharding import over_rows
from sr4.core.sharding import ROWS

BLACK = -1.0


@dataclasses.dataclass(frozen=True)
class DropConfig:
  """Share of training rows from which a condition is taken, so that it can be guided by."""

  text: float = 0.1
  modality: float = 0.0  # each branch alone, the other unread


def encode(codecs: AV, size: Size, patch, clips: Clips) -> Batch:
  """Clips of this size as a training batch; rows that lack a modality weigh nothing in its loss."""
  rows = clips.text.shape[0]
  frames = None if clips.frames is None else pixels(clips.frames)
  cond = condition(
    codecs,
    size,
    patch,
    clips.text,
    clips.text_valid,
    clips.present,
    frames=frames,
    known=clips.known,
  )
  video = on_rows(codecs.video.encode)(frames) if size.frames else None
  audio = on_rows(codecs.audio.encode)(clips.samples) if size.samples else None

  def weigh(z, present):
    shape = (rows,) + (1,) * (z.ndim - 1)
    return (jnp.broadcast_to(present.reshape(shape).astype(jnp.float32), (*z.shape[:-1], 1)),)

  latents = AV(video, audio)
  return Batch(
    latents=AV(*(None if z is None else (z,) for z in latents)),
    weights=AV(*(None if z is None else weigh(z, p) for z, p in zip(latents, clips.present))),
    cond=cond,
  )


def condition(
  codecs: AV,
  size: Size,
  patch,
  text,
  text_valid,
  present: AV,
  *,
  frames=None,
  known=None,
  references: AV = AV((), ()),
) -> Condition:
  """What the model is told of clips of this size.

  Args:
    codecs: AV of VideoCodec, AudioCodec.
    patch: (pt, ph, pw) of the video branch.
    text, text_valid: [b m e], [b m] of the text encoder.
    present: AV of bool [b].
    frames, known: float [b T H W 3] in [-1, 1] and bool [b T]: the frames that are given.
    references: AV of tuples of Segments, as `video_reference` and `audio_reference` make them.
  """
  rows = text.shape[0]
  video = audio = None
  if size.frames:
    video = (
      *references.video,
      video_segment(codecs.video, size, patch, rows, frames, known),
    )
  if size.samples:
    length = codecs.audio.latent_length(size.samples)
    positions = over_rows(audio_positions(length, codecs.audio.rate), rows)
    audio = (
      *references.audio,
      Segment(None, None, positions, over_rows(jnp.ones(length, bool), rows)),
    )
  return Condition(AV(video, audio), text, text_valid, present)


def video_segment(codec, size: Size, patch, rows: int, frames, known) -> Segment:
  """I and M of Eq. 7: I is the latent of black frames where nothing is known, not zeros."""
  latent = over_rows(codec.black(size.frames, size.height, size.width), rows)
  mask = over_rows(jnp.zeros((*latent.shape[1:-1], 1)), rows)
  if known is not None:
    given = jnp.where(known[:, :, None, None, None], frames, BLACK)
    region = known_latents(known, codec.time_factor)[:, :, None, None, None]
    latent = jnp.where(region, on_rows(codec.encode)(given), latent)
    mask = jnp.maximum(mask, region)
  seconds = codec.time_factor / size.fps
  positions = over_rows(video_positions(latent.shape[1:-1], patch, seconds), rows)
  return Segment(latent, mask, positions, over_rows(jnp.ones(positions.shape[1], bool), rows))


def video_reference(latents: jax.Array, patch, seconds_per_latent: float, valid) -> Segment:
  """Reference frames as context before the clip (Eq. 8-9).

  Args:
    latents: [b t h w c], the frames encoded one by one, padded to one size.
    valid: bool [b t]: which there are; the others are seen by no one.
  """
  rows, count = latents.shape[:2]
  positions = video_positions(latents.shape[1:-1], patch, seconds_per_latent)
  positions = positions.at[:, 0].add(-count * seconds_per_latent)  # t = -N_cond + i
  seen = jnp.repeat(valid, positions.shape[0] // count, 1)
  mask = jnp.ones_like(latents[..., :1])
  return Segment(latents, mask, over_rows(positions, rows), seen, generated=False)


def audio_reference(latents: jax.Array, rate: float, valid) -> Segment:
  """A reference sound before the audio tokens: latents [b l c], valid bool [b l]."""
  rows, length, _ = latents.shape
  positions = audio_positions(length, rate) - length / rate
  return Segment(latents, None, over_rows(positions, rows), valid, generated=False)


def video_positions(grid, patch, seconds_per_latent: float) -> jax.Array:
  """[s 3] of a latent grid (t, h, w): seconds, and rows and columns in patches."""
  t, h, w = (size // step for size, step in zip(grid, patch))
  axes = (jnp.arange(t) * patch[0] * seconds_per_latent, jnp.arange(h), jnp.arange(w))
  return jnp.stack(jnp.meshgrid(*axes, indexing='ij'), -1).reshape(-1, 3).astype(jnp.float32)


def audio_positions(length: int, rate: float) -> jax.Array:
  """[l 1] in seconds, for latents that come `rate` times a second."""
  return (jnp.arange(length, dtype=jnp.float32) / rate)[:, None]


def known_latents(known: jax.Array, time_factor: int) -> jax.Array:
  """Frames [b T] -> latent frames [b t]: known where every frame under it is known."""
  groups = known[:, 1:].reshape(known.shape[0], -1, time_factor)
  return jnp.concatenate([known[:, :1], jnp.all(groups, -1)], 1)


def pixels(frames: jax.Array) -> jax.Array:
  """uint8 -> [-1, 1]."""
  return frames.astype(jnp.float32) / 127.5 - 1


def to_uint8(frames: jax.Array) -> jax.Array:
  """The inverse of `pixels`, rounded and clipped."""
  return jnp.clip(jnp.round((frames + 1) * 127.5), 0, 255).astype(jnp.uint8)


def without_text(cond: Condition, rows=True) -> Condition:
  """The condition with its prompt gone, in the rows named (bool [b], or all)."""
  return dataclasses.replace(cond, text_valid=cond.text_valid & ~expand(rows))


def without_modality(cond: Condition, rows=True) -> Condition:
  """The condition with each branch alone, in the rows named."""
  return dataclasses.replace(cond, present=AV(*(p & ~jnp.asarray(rows) for p in cond.present)))


def expand(rows) -> jax.Array:
  rows = jnp.asarray(rows)
  return rows[:, None] if rows.ndim else rows


def drop(key: jax.Array, cond: Condition, config: DropConfig) -> Condition:
  """Takes each condition from a random share of the rows."""
  chosen = lambda name, share: (
    jax.random.uniform(prng.named(key, name), (cond.text.shape[0],), out_sharding=ROWS) < share
  )
  cond = without_text(cond, chosen('text', config.text))
  return without_modality(cond, chosen('modality', config.modality))
