"""From clips to a batch, and conditions taken away: what the model is told, and what it is not."""

import dataclasses

import jax
import jax.numpy as jnp

from sr4.core import prng
from sr4.core.av import AV
from sr4.core.batch import Batch
from sr4.core.batch import Clips
from sr4.core.batch import Condition
from sr4.core.batch import Latents
from sr4.core.batch import References
from sr4.core.batch import Segment
from sr4.core.batch import Size
from sr4.core.sharding import on_rows
from sr4.core.sharding import over_rows
from sr4.core.sharding import ROWS
from sr4.flow import refining
from sr4.flow import segments


@dataclasses.dataclass(frozen=True)
class DropConfig:
  """Share of training rows from which a condition is taken, so that it can be guided by."""

  text: float = 0.1
  references: float = 0.1
  modality: float = 0.0  # each branch alone, the other unread


def encode(codecs: AV, size: Size, patch, clips: Clips) -> Batch:
  """Clips of this size as a training batch; rows that lack a modality weigh nothing in its loss."""
  latents, key, at = coded(codecs, size, clips), None, None
  if clips.keyframes is not None:
    key, at = clips.keyframes.frames, clips.keyframes.at
  cond = condition(
    codecs,
    size,
    patch,
    clips.text,
    clips.text_valid,
    clips.present,
    frames=clips.frames,
    known=clips.known,
    keyframes=key,
    at=at,
    references=clips.references,
    latents=latents,
  )
  video = (latents.video,) if size.frames else ()
  if size.keyframes:
    video += (segments.encoded(codecs.video, key, each=True),)
  audio = (latents.audio,) if size.samples else ()
  learnt = clips.present
  if clips.clean is not None:
    learnt = jax.tree.map(lambda has, clean: has & ~clean, clips.present, clips.clean)
  return Batch(
    latents=AV(video or None, audio or None),
    weights=AV(weigh(video, learnt.video), weigh(audio, learnt.audio)),
    cond=cond,
    clean=clips.clean,
  )


def coded(codecs: AV, size: Size, clips: Clips) -> Latents:
  """Latents of all media but keyframes, fp32: those that were made ahead, or made now."""
  if clips.latents is not None:
    return jax.tree.map(lambda x: x.astype(jnp.float32), clips.latents)
  references, made = clips.references, {}
  if size.frames:
    made['video'] = segments.encoded(codecs.video, clips.frames)
  if size.low:
    made['low'] = segments.encoded(codecs.video, clips.low)
    if size.low.keyframes:
      places = jnp.maximum(clips.keyframes.at, 0) * refining.stride(size)
      frames = on_rows(lambda x, at: jax.vmap(lambda x, at: x[at])(x, at))(clips.frames, places)
      made['keyframes'] = segments.encoded(codecs.video, frames, each=True)
  if size.samples:
    made['audio'] = segments.encoded(codecs.audio, clips.samples)
  if size.reference_images:
    made['images'] = segments.encoded(codecs.video, references.images, each=True)
  if size.reference_frames:
    made['clip'] = segments.encoded(codecs.video, references.frames)
  if size.reference_samples:
    made['sound'] = segments.encoded(codecs.audio, references.samples)
  return Latents(**made)


def weigh(latents: tuple, learnt: jax.Array):
  """Loss weights of the segments of one modality: 1 in the rows to be learnt, else 0."""
  one = lambda z: jnp.broadcast_to(
    learnt.astype(jnp.float32).reshape(-1, *(1,) * (z.ndim - 1)), (*z.shape[:-1], 1)
  )
  return tuple(map(one, latents)) or None


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
  keyframes=None,
  at=None,
  references: References | None = None,
  latents: Latents = Latents(),
) -> Condition:
  """What the model is told of clips of this size.

  Args:
    codecs: AV of VideoCodec, AudioCodec.
    patch: (pt, ph, pw) of the video branch.
    text, text_valid: [b m e], [b m] of the text encoder.
    present: AV of bool [b].
    frames, known: [b T H W 3], uint8 or float in [-1, 1], and bool [b T H W] or [b T 1 1]: what is
      given.  Without frames: `latents.video`, of which whole frames from the first on are known.
    keyframes, at: as frames, [b k H*scale W*scale 3], and int [b k], where the Size has keyframes;
      a Refiner's are in `latents`, as is the low clip.
    references, latents: where the Size has slots for them: which there are, and what they are.
  """
  rows = text.shape[0]
  before = segments.references(codecs, size, patch, references, latents)
  video = audio = None
  if size.low:
    video = (*before.video, refining.video(codecs.video, size, patch, latents, at, known))
  elif size.frames:
    shown = frames if frames is not None else latents.video
    video = (*before.video, segments.video(codecs.video, size, patch, rows, shown, known))
  if size.keyframes:
    video += (segments.keyframes(codecs.video, size, patch, at, keyframes, known),)
  if size.samples:
    length = codecs.audio.latent_length(size.samples)
    positions = over_rows(segments.audio_positions(length, codecs.audio.rate), rows)
    audio = (*before.audio, Segment(None, None, positions, segments.everywhere(positions)))
  return Condition(AV(video, audio), text, text_valid, present)


def without_text(cond: Condition, rows=True) -> Condition:
  """The condition with its prompt gone, in the rows named (bool [b], or all)."""
  return dataclasses.replace(cond, text_valid=cond.text_valid & ~expand(rows))


def without_references(cond: Condition, rows=True) -> Condition:
  """The condition with its references gone, in the rows named."""

  def one(segment: Segment) -> Segment:
    if segment.generated:
      return segment
    return dataclasses.replace(segment, valid=segment.valid & ~expand(rows))

  bare = lambda of: None if of is None else tuple(map(one, of))
  return dataclasses.replace(cond, segments=AV(*map(bare, cond.segments)))


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
  cond = without_references(cond, chosen('references', config.references))
  return without_modality(cond, chosen('modality', config.modality))
