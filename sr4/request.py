"""What is asked of a pipeline: the fields of the product's requests, and the Size and Row of each.

  request = config.build(request.Request, fields, 'request')
  request.check_files()                     what can be said of its media before a model is loaded
  size = request.size(system, trained)      what is made
  row = request.row(system, size)           what is given of it, of this size or a Refiner's

Media are files.  A request is one of:

  text to video    none, or `audio` (a picture of this sound), or `video` (a sound for this picture)
  image to video   `first_frame_image`, `end_frame_image`, `mid_frame_images`
  edit             `video`, and `mask_video` or `mask_image`: white is what changes
  omni             `ref_images`, `ref_videos`, `ref_audios`, each named in the prompt by its tag
  extension        `ref_videos` of type `extend` or `extend_back`; `joined` puts both in one clip
"""

from collections.abc import Mapping
import dataclasses
import itertools
import math

from data_pipelines import media
from data_pipelines.tasks import Row
from sr4 import extension as extension_lib
from sr4 import pipeline
from sr4 import request_media
from sr4 import request_rules
from sr4.core import captions
from sr4.core.av import AV
from sr4.core.batch import Size

SAMPLING = (
  *('num_inference_steps', 'video_guidance_scale', 'audio_guidance_scale', 'modality_scale'),
  *('reference_scale', 'shift', 'audio_shift'),
)


@dataclasses.dataclass(frozen=True)
class MidFrame:
  image_url: str
  time_stamp: float = -1.0  # seconds; -1: between its neighbours
  tag: str = ''


@dataclasses.dataclass(frozen=True)
class RefImages:
  tag: str
  image_urls: tuple[str, ...]
  type: str = 'image'  # or grid: one picture of up to nine panels
  audio_url: str = ''  # the voice of what is shown


@dataclasses.dataclass(frozen=True)
class RefVideo:
  tag: str
  video_url: str
  type: str = 'reference'  # or extend, extend_back: what is made comes after it, or before


@dataclasses.dataclass(frozen=True)
class RefAudio:
  tag: str
  audio_url: str


@dataclasses.dataclass(frozen=True)
class Request:
  prompt: str
  negative_prompt: str = ''
  audio_negative_prompt: str | None = None  # as the other where it is not given
  seed: int | None = None
  # How it is sampled: fields of pipeline.Config.
  mode: str = ''  # of request_rules.MODES
  num_inference_steps: int | None = None
  video_guidance_scale: float | None = None
  audio_guidance_scale: float | None = None
  modality_scale: float | None = None
  reference_scale: float | None = None
  shift: float | None = None
  audio_shift: float | None = None
  # The clip.  What is not given is as trained, or as the first picture or clip that is given.
  duration: int | None = None  # seconds, 3 to 15
  resolution: str = ''
  aspect_ratio: str = ''
  frames: int | None = None  # 1: a picture, without sound; 0: `seconds` of sound alone
  height: int | None = None
  width: int | None = None
  fps: float | None = None
  seconds: float | None = None
  sound: bool | None = None
  # What is known of it.
  first_frame_image: str = ''
  end_frame_image: str = ''
  mid_frame_images: tuple[MidFrame, ...] = ()
  video: str = ''
  audio: str = ''
  mask_video: str = ''
  mask_image: str = ''
  # What it refers to.
  ref_images: tuple[RefImages, ...] = ()
  ref_videos: tuple[RefVideo, ...] = ()
  ref_audios: tuple[RefAudio, ...] = ()

  def __post_init__(self):
    for field, problem in request_rules.problems(self):
      raise request_rules.RequestError(f'{field}: {problem}')

  def check_files(self):
    """Reads the headers of all media.

    Raises:
      RequestError: of a file that is not there, is no media, or has no picture or no sound.
    """
    for field, problem in request_rules.of_files(self):
      raise request_rules.RequestError(f'{field}: {problem}')

  @property
  def extension(self) -> extension_lib.Extension | None:
    """The clip that is continued."""
    for entry in self.ref_videos:
      if entry.type.startswith('extend'):
        return extension_lib.Extension(entry.video_url, back=entry.type == 'extend_back')
    return None

  def joined(self, clip, system, size: Size):
    """The clip that was made, and the one that it extends, in one; without an extension itself."""
    if not (extension := self.extension):
      return clip
    known = extension.known(size, system.codecs.video.time_factor)
    source = extension.source(system, size, *clip.frames.shape[1:3])
    return extension.joined(source, clip, known, extension_lib.stride(size))

  @property
  def images(self) -> bool:
    """Is any frame given as a picture?"""
    return bool(self.first_frame_image or self.end_frame_image or self.mid_frame_images)

  def sampling(self, given: Mapping) -> dict:
    """Fields of pipeline.Config: those given over the mode's, its own over these."""
    own = {name: getattr(self, name) for name in SAMPLING if getattr(self, name) is not None}
    return request_rules.MODES.get(self.mode, {}) | dict(given) | own

  @property
  def gives_media(self) -> bool:
    """Is some of what comes back given?"""
    return self.images or bool(self.video or self.audio or self.extension)

  @property
  def whole_video(self) -> bool:
    """Is a clip given, and only its sound to be made?"""
    return bool(self.video and not self.mask_video and not self.mask_image)

  @property
  def voices(self) -> list[tuple[str, str]]:
    """(field, file) of each reference sound."""
    found = [(f'ref_images[{i}]', entry) for i, entry in enumerate(self.ref_images)]
    found += [(f'ref_audios[{i}]', entry) for i, entry in enumerate(self.ref_audios)]
    return [(f'{name}.audio_url', entry.audio_url) for name, entry in found if entry.audio_url]

  def kinds(self) -> tuple:
    """What it gives: requests that give the same kinds can be made by one program."""
    masked = bool(self.mask_video or self.mask_image)
    return (
      bool(self.video),
      masked,
      bool(self.audio),
      self.images,
      bool(self.extension),
      any(self.negative()),
    )

  def negative(self) -> AV:
    """What is not to be seen, and what not to be heard."""
    heard = self.audio_negative_prompt
    return AV(self.negative_prompt, self.negative_prompt if heard is None else heard)

  def size(self, system, trained: Mapping) -> Size:
    """What is made: as trained, but for what is asked.

    Raises:
      RequestError: as check_files; or of a picture or a sound, which the model does not make.
    """
    self.check_files()
    usual, changes = pipeline.size_of(system, trained), {}
    for field, problem in request_rules.of_model(self, usual.frames > 0, system.config.audio):
      raise request_rules.RequestError(f'{field}: {problem}')
    for name in ('frames', 'fps', 'sound', 'seconds'):
      if getattr(self, name) is not None:
        changes[name] = getattr(self, name)
    fps, step = changes.get('fps', usual.fps), system.codecs.video.time_factor
    whole = lambda seconds: 1 + step * max(0, int(seconds * fps + 1e-3) // step)
    like = None if self.extension else next(iter(self.ref_videos), None)
    source = self.video or (like.video_url if like else '')
    if self.duration is not None:
      changes |= {'frames': whole(self.duration)} if usual.frames else {'seconds': self.duration}
    elif source and self.frames is None and usual.frames:
      lasts = min(media.probe(source).duration, request_rules.SECONDS + 1 / fps)
      changes['frames'] = 1 + step * ((media.frames_in(lasts, fps) - 1) // step)
    if frames := changes.get('frames', usual.frames):
      changes |= self._sides(system, usual)
      # No more than the latents of a shorter clip, and none of one that is there.
      most = 0 if self.whole_video else 1 + (frames - 1) // step
      changes['keyframes'] = min(usual.keyframes, most)
    else:
      changes['keyframes'] = 0
    if self.frames == 1 and self.sound is None and not self.audio and not self.whole_video:
      changes['sound'] = False
    if images := sum(request_media.counts(self)):
      changes['reference_images'] = images
    if like:
      lasts = min(media.probe(source).duration, request_rules.CLIP_SECONDS)
      changes['reference_frames'] = 1 + step * ((media.frames_in(lasts, fps) - 1) // step)
    for _, path in self.voices:
      changes['reference_seconds'] = min(media.probe(path).duration, request_rules.SECONDS)
    return pipeline.size_of(system, trained, **changes)

  def _sides(self, system, usual: Size) -> dict:
    """Height and width where they are not the usual ones."""
    if self.height or self.width:
      return dict(height=self.height or usual.height, width=self.width or usual.width)
    shown = (
      *(self.first_frame_image, self.end_frame_image, self.video),
      *(entry.image_url for entry in self.mid_frame_images),
      *(entry.video_url for entry in self.ref_videos),
    )
    shown, ratio = next(filter(None, shown), ''), usual.height / usual.width
    area = math.prod(request_rules.RESOLUTIONS.get(self.resolution, (usual.height, usual.width)))
    if self.aspect_ratio:
      across, down = map(int, self.aspect_ratio.split(':'))
      ratio = down / across
    elif shown:
      height, width = media.displayed(shown)
      ratio = height / width
    elif self.resolution:
      ratio = 9 / 16
    else:
      return {}
    if self.resolution and abs(ratio - 9 / 16) < 0.01:
      return dict(zip(('height', 'width'), request_rules.RESOLUTIONS[self.resolution]))
    factor = system.codecs.video.space_factor
    unit = lambda side, patch: max(1, round(side / factor / patch)) * factor * patch
    _, high, wide = system.config.patch
    return dict(
      height=unit(math.sqrt(area * ratio), high), width=unit(math.sqrt(area / ratio), wide)
    )

  def row(self, system, size: Size) -> Row:
    """What is given of a clip of this size.

    Raises:
      RequestError: a file that is broken, or shorter than the clip.
    """
    return request_media.row(self, system, size)

  def caption(self) -> str:
    """The prompt with the tags that the model knows.

    Raises:
      CaptionError: it names what is not given, or not what is.
    """
    text, names, images = self.prompt, {}, itertools.count(1)
    counts = request_media.counts(self)
    for entry, count in zip(self.ref_images, counts):
      names[entry.tag] = ' '.join(f'@image_{next(images)}' for _ in range(count))
    clips = () if self.extension else self.ref_videos
    names |= {entry.tag: '@video_1' for entry in clips}
    names |= {entry.tag: entry.tag[1:] for entry in self.ref_videos[len(clips) :]}
    names |= {entry.tag: '@audio_1' for entry in self.ref_audios}
    names |= {frame.tag: frame.tag[1:] for frame in self.mid_frame_images if frame.tag}
    for tag in sorted(names, key=len, reverse=True):
      # So that no name is found in another's.
      text = request_rules.named(tag).sub(lambda found: f'\0{found[0][1:]}\0', text)
    for tag, name in names.items():
      text = text.replace(f'\0{tag[1:]}\0', name)
    kinds = ['image'] * sum(counts) + ['video'] * len(clips)
    captions.check_references(text, kinds + ['audio'] * len(self.ref_audios))
    return text
