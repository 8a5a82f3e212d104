"""What a config names, built: codecs, text encoder and model, fitted to each other."""

from collections.abc import Mapping
import dataclasses
import math

from flax import nnx
import jax

from sr4.core import config as config_lib
from sr4.core import sharding
from sr4.core import tree
from sr4.core.av import AV
from sr4.core.batch import Clips
from sr4.core.batch import Low
from sr4.core.batch import Size
from sr4.models import codec
from sr4.models import kinds
from sr4.models import mmdit
from sr4.models.text import encoder


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class System:
  """Codecs and encoder are frozen; the model is made from a key and trained.

  A pytree of their weights: of shapes, until sr4/convert/weights.py `load` reads them.
  """

  codecs: AV
  text: encoder.TextEncoder
  config: mmdit.Config = dataclasses.field(metadata={'static': True})

  def placed(self, sizes=()) -> 'System':
    """The shapes of codecs and encoder with their layouts on the mesh that is set.

    Args:
      sizes: as of `remembering`, after which these are the shapes.
    """
    whole = jax.NamedSharding(jax.sharding.get_mesh(), sharding.REPLICATED)
    place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole)
    remember = lambda video: codec.remembering(video, blacks(sizes))
    codecs = self.codecs._replace(video=jax.eval_shape(remember, self.codecs.video))
    return dataclasses.replace(
      self, codecs=jax.tree.map(place, codecs), text=encoder.placed(self.text)
    )

  def remembering(self, sizes) -> 'System':
    """The system, loaded, with what every step of clips of these Sizes would compute anew."""
    remember = lambda video: codec.remembering(video, blacks(sizes))
    run = jax.jit(jax.sharding.auto_axes(remember, out_sharding=sharding.REPLICATED))
    return dataclasses.replace(self, codecs=self.codecs._replace(video=run(self.codecs.video)))

  def without_weights(self) -> 'System':
    """The system with no weights but what it remembers: all that steps on latents take."""
    return dataclasses.replace(
      self,
      codecs=AV(codec.without_weights(self.codecs.video), tree.without_leaves(self.codecs.audio)),
      text=tree.without_leaves(self.text),
    )

  def made(self) -> dict[str, str]:
    """What latents and embeddings of its parts follow from, by part."""
    parts = {
      'video codec': self.codecs.video,
      'audio codec': self.codecs.audio,
      'text encoder': self.text,
    }
    return {name: kinds.identity(part.config) for name, part in parts.items()}

  def embedded(self, clips: Clips) -> Clips:
    """Clips with the embeddings of their prompts; rows over the mesh."""
    return dataclasses.replace(clips, text=encoder.embedded(self.text, clips.text))

  def model(self, key: jax.Array) -> mmdit.MMDiT:
    return mmdit.MMDiT(self.config, rngs=nnx.Rngs(key))

  def size(
    self,
    frames: int = 0,
    height: int = 0,
    width: int = 0,
    fps: float = 16.0,
    *,
    sound: bool = True,
    seconds: float = 0.0,
    keyframes: int = 0,
    keyframe_scale: int = 1,
    reference_images: int = 0,
    reference_frames: int = 0,
    reference_seconds: float = 0.0,
    low: Mapping | None = None,
  ) -> Size:
    """The static shape of such a clip; what codecs and patches cannot divide is an error.

    Args:
      sound: whether the clip has any.  It lasts as long as the frames, or, where there are none,
        `seconds`.
      low: fields of batch.Low: the clip is a Refiner's, and has no sound.
    """
    if not 0 < fps < math.inf:
      raise config_lib.ConfigError(f'fps={fps} must be above 0, and finite')
    if frames:
      self._check_grid(frames, height, width)
    if keyframes:
      self._check_grid(1, height * keyframe_scale, width * keyframe_scale)
    if reference_frames:
      self._check_grid(reference_frames, height, width)
    if low:
      self._check_low(frames, height, width, low := Low(**low))
    rate = self.codecs.audio.sample_rate
    length = frames / fps if frames else seconds
    size = Size(
      frames,
      height,
      width,
      fps,
      samples=round(length * rate) if sound else 0,
      keyframes=keyframes,
      keyframe_scale=keyframe_scale,
      reference_images=reference_images,
      reference_frames=reference_frames,
      reference_samples=round(reference_seconds * rate),
      low=low or None,
    )
    if size.samples and not self.config.audio:
      raise config_lib.ConfigError(
        'model.audio=False, and the clip has sound; set sound=False in its bucket'
      )
    if not size.frames and not size.samples:
      raise config_lib.ConfigError(
        f'a clip of {frames} frames and {length:g} seconds of sound is empty; give frames, or '
        'seconds with sound=True'
      )
    if not size.frames and (keyframes or reference_images or reference_frames):
      raise config_lib.ConfigError(
        'keyframes, reference_images and reference_frames belong to clips with frames, and this '
        'one has none; take them out'
      )
    if reference_seconds and not size.samples:
      raise config_lib.ConfigError(
        f'reference_seconds={reference_seconds:g} belong to clips with sound, and this one has '
        'none; take them out'
      )
    latents = fps / self.codecs.video.time_factor
    if (
      self.config.audio_rope_scale != 'seconds' and frames > 1 and latents != self.config.video_rate
    ):
      raise config_lib.ConfigError(
        f'{latents:g} latents a second, and model.video_rate={self.config.video_rate:g}: with '
        f'model.audio_rope_scale={self.config.audio_rope_scale!r} sound and picture would run '
        "apart; make them the same, or take 'seconds'"
      )
    return size

  def _check_grid(self, frames: int, height: int, width: int):
    try:
      _, h, w, _ = self.codecs.video.latent_shape(frames, height, width)
    except ValueError as error:
      raise config_lib.ConfigError(f'a clip of {frames} x {height} x {width}: {error}') from error
    patch = self.config.patch
    for name, pixels, latent, step in (
      ('height', height, h, patch[1]),
      ('width', width, w, patch[2]),
    ):
      if latent % step:
        unit = self.codecs.video.space_factor * step
        raise config_lib.ConfigError(
          f'{name} {pixels} does not divide into patches: it must be a multiple of {unit}, such as '
          f'{max(unit, round(pixels / unit) * unit)}'
        )

  def _check_low(self, frames: int, height: int, width: int, low: Low):
    """A Refiner's clip and the one it starts from."""
    try:
      t, *_ = self.codecs.video.latent_shape(low.frames, low.height, low.width)
    except ValueError as error:
      raise config_lib.ConfigError(
        f'low: a clip of {low.frames} x {low.height} x {low.width}: {error}'
      ) from error
    whole = low.frames == frames == 1 or (low.frames > 1 and (frames - 1) % (low.frames - 1) == 0)
    if not whole or low.height > height or low.width > width:
      raise config_lib.ConfigError(
        f'low: {low.frames} x {low.height} x {low.width} cannot become {frames} x {height} x '
        f'{width}: frames must be 1 + n * (low.frames - 1), and no side may be smaller'
      )
    if not 0 <= low.keyframes <= t:
      raise config_lib.ConfigError(f'low.keyframes={low.keyframes} is not in 0 to {t}, its latents')

  def tokens(self, size: Size) -> AV:
    """Tokens of a clip of this size in each branch, references and keyframes too, without text."""
    video, audio = self.codecs
    pt, ph, pw = self.config.patch
    cells = lambda t, h, w, _: (t // pt) * (h // ph) * (w // pw)
    one = (size.height, size.width)
    high = tuple(side * size.keyframe_scale for side in one)
    count = 0
    if size.frames:
      count = cells(*video.latent_shape(size.frames, *one))
    if size.keyframes:
      count += size.keyframes * cells(*video.latent_shape(1, *high))
    if size.reference_images:
      count += size.reference_images * cells(*video.latent_shape(1, *one))
    if size.reference_frames:
      count += cells(*video.latent_shape(size.reference_frames, *one))
    heard = [n for n in (size.samples, size.reference_samples) if n]
    return AV(count, sum(map(audio.latent_length, heard)))

  def shown(self, size: Size) -> int:
    """Of the video's tokens, those of references."""
    bare = dataclasses.replace(size, reference_images=0, reference_frames=0)
    return self.tokens(size).video - self.tokens(bare).video


def blacks(sizes) -> list[tuple[int, int, int]]:
  """(frames, height, width) of all that may be unknown in clips of these Sizes."""
  clips = {(s.frames, s.height, s.width) for s in sizes if s.frames}
  high = {
    (1, s.height * s.keyframe_scale, s.width * s.keyframe_scale) for s in sizes if s.keyframes
  }
  return sorted(clips | high)


SECTIONS = ('model', 'video_codec', 'audio_codec', 'text')


def build(config) -> System:
  """From a config with the sections model, video_codec, audio_codec and text.

  The model's channels, text width and audio rate are the codecs' and the encoder's; to state them
  again is an error.
  """
  if missing := [name for name in SECTIONS if name not in config]:
    raise config_lib.ConfigError(f'the config has no section {missing[0]!r}; docs/training.md')
  codecs = AV(
    codec.build_video(config['video_codec']),
    codec.build_audio(config['audio_codec']),
  )
  text = encoder.build_text(config['text'])
  derived = dict(
    video_channels=codecs.video.channels,
    audio_channels=codecs.audio.channels,
    audio_rate=codecs.audio.rate,
    text_width=text.width,
  )
  fields = dict(config['model'])
  stated = sorted(derived.keys() & fields.keys())
  if stated:
    raise config_lib.ConfigError(
      f'config.model.{stated[0]} follows from the codecs and the text '
      'encoder; take it out of config.model'
    )
  size = fields.pop('size', None)
  if size not in mmdit.SIZES:
    raise config_lib.ConfigError(f'config.model.size={size!r} is not among {list(mmdit.SIZES)}')
  model = config_lib.build(mmdit.Config, mmdit.SIZES[size] | fields | derived, 'config.model')
  return System(codecs, text, model)
