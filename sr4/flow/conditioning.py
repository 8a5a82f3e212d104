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
  latents = coded(codecs, size, clips)
  video = (latents.video,) if size.frames else ()
  if size.keyframes:
    video += (latents.keyframes,)
  audio = (latents.audio,) if size.samples else ()
  learnt = clips.present
  if clips.clean is not None:
    learnt = jax.tree.map(lambda has, clean: has & ~clean, clips.present, clips.clean)
  return Batch(
    latents=AV(video or None, audio or None),
    weights=AV(weigh(video, learnt.video), weigh(audio, learnt.audio)),
    cond=condition(codecs, size, patch, clips, latents),
    clean=clips.clean,
  )


def coded(codecs: AV, size: Size, clips: Clips) -> Latents:
  """Latents of all media, fp32: made ahead, or made now; None: there are no such media."""

  def of(name, codec, media, each=False):
    if (made := getattr(clips.latents, name)) is not None:
      return made.astype(jnp.float32)
    return None if media is None else segments.encoded(codec, media, each)

  keyframes = clips.keyframes and clips.keyframes.frames
  if size.low and size.low.keyframes and clips.frames is not None:
    places = jnp.maximum(clips.keyframes.at, 0) * refining.stride(size)
    keyframes = on_rows(lambda x, at: jax.vmap(lambda x, at: x[at])(x, at))(clips.frames, places)
  references = clips.references or References(*[None] * len(References.__match_args__))
  return Latents(
    video=of('video', codecs.video, clips.frames),
    audio=of('audio', codecs.audio, clips.samples),
    images=of('images', codecs.video, references.images, each=True),
    clip=of('clip', codecs.video, references.frames),
    sound=of('sound', codecs.audio, references.samples),
    low=of('low', codecs.video, clips.low),
    keyframes=of('keyframes', codecs.video, keyframes, each=True),
  )


def weigh(latents: tuple, learnt: jax.Array):
  """Loss weights of the segments of one modality: 1 in the rows to be learnt, else 0."""
  one = lambda z: jnp.broadcast_to(
    learnt.astype(jnp.float32).reshape(-1, *(1,) * (z.ndim - 1)), (*z.shape[:-1], 1)
  )
  return tuple(map(one, latents)) or None


def condition(codecs: AV, size: Size, patch, clips: Clips, latents: Latents) -> Condition:
  """What the model is told of clips of this size.

  Args:
    codecs: AV of VideoCodec, AudioCodec.
    patch: (pt, ph, pw) of the video branch.
    clips: with embeddings of their prompts.  Of media only those are needed of which something is
      known; where these are latents, whole frames from the first on.
    latents: of references, of a Refiner's low clip and keyframes, and, where something is known and
      there are no frames, of the clip and its keyframes.
  """
  rows = clips.text.shape[0]
  at = frames = None
  if clips.keyframes is not None:
    at, frames = clips.keyframes.at, clips.keyframes.frames
  before = segments.references(codecs, size, patch, clips.references, latents)
  video = audio = None
  if size.low:
    video = (*before.video, refining.video(codecs.video, size, patch, latents, at, clips.known))
  elif size.frames:
    given = clips.frames, clips.known, latents.video
    video = (*before.video, segments.video(codecs.video, size, patch, rows, *given))
  if size.keyframes:
    given = frames, clips.known, latents.keyframes
    video += (segments.keyframes(codecs.video, size, patch, at, *given),)
  if size.samples:
    length = codecs.audio.latent_length(size.samples)
    positions = over_rows(segments.audio_positions(length, codecs.audio.rate), rows)
    audio = (*before.audio, Segment(None, None, positions, segments.everywhere(positions)))
  return Condition(AV(video, audio), clips.text, clips.text_valid, clips.present)


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
