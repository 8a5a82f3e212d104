"""What a world may be asked for, checked when it is asked."""

import dataclasses
import math

BACKGROUNDS = ('dark', 'varied')


@dataclasses.dataclass(frozen=True)
class Config:
  """One kind of world.

  Lengths in `sizes` and `speeds` are fractions of the picture's shorter side, so that the same
  (seed, index) is the same world at any resolution of one aspect ratio, frame rate and sample rate.
  A shorter sample is the beginning of a longer one, up to a cut or a vowel that no longer fits.
  """

  height: int = 64  # Pixels.
  width: int = 64
  frames: int = 32
  fps: float = 16.0
  sample_rate: int = 16_000  # Hz.
  channels: int = 2  # 1 is mono, 2 is stereo.
  samples: int | None = None  # Per channel; None is round(frames / fps * sample_rate).
  objects: tuple[int, int] = (1, 3)  # Fewest and most in a shot.
  sizes: tuple[float, float] = (0.1, 0.17)  # Radius.
  speeds: tuple[float, float] = (0.4, 1.0)  # Per second.
  talker: float = 0.3  # Probability that a shot shows a face that speaks.
  singing: float = 0.3  # Probability that such a face sings instead.
  text: float = 0.2  # Probability that a shot shows a word.
  music: float = 0.3  # Probability that a sample has music under it.
  ambience: float = 0.2  # Probability that a sample has wind under it.
  cuts: float = 0.2  # Probability that a sample is cut into shots of about a second.
  background: str = 'varied'  # 'dark' is one plain dark colour, 'varied' is plain or a gradient.

  def __post_init__(self):
    for name, least, why in (
      ('height', 16, 'shapes cannot be told apart below that'),
      ('width', 16, 'shapes cannot be told apart below that'),
      ('frames', 1, 'a still image is one frame'),
      ('sample_rate', 4000, 'the rings reach up to 1 kHz and their overtones to 2 kHz'),
    ):
      _at_least(name, getattr(self, name), least, why)
    if self.samples is not None:
      _at_least('samples', self.samples, 1, 'None takes the length of the frames')
    if not 0 < self.fps < math.inf:
      raise ValueError(f'fps is {self.fps!r}; it must be above 0: give frames a second.')
    if self.channels not in (1, 2):
      raise ValueError(f'channels is {self.channels!r}; it must be 1 (mono) or 2 (stereo).')
    _within('objects', self.objects, 1, 6, 'more do not fit beside each other')
    _within('sizes', self.sizes, 0.05, 0.22, 'smaller cannot be seen, larger leaves no way to move')
    _within('speeds', self.speeds, 0.0, 4.0, 'faster cannot be followed between frames')
    for name in ('talker', 'singing', 'text', 'music', 'ambience', 'cuts'):
      value = getattr(self, name)
      if not 0 <= value <= 1:
        raise ValueError(f'{name} is {value!r}; it is a probability: give 0 (never) to 1 (always).')
    if self.background not in BACKGROUNDS:
      raise ValueError(f'background is {self.background!r}; choose one of {BACKGROUNDS}.')

  @classmethod
  def simple(cls, **changes) -> 'Config':
    """One large object on a dark plain background and its rings, nothing else; `changes` on top."""
    never = dict.fromkeys(('talker', 'text', 'music', 'ambience', 'cuts'), 0.0)
    one = {'objects': (1, 1), 'background': 'dark', 'sizes': (0.16, 0.22), 'speeds': (0.4, 0.8)}
    return cls(**(one | never | changes))

  @property
  def num_samples(self) -> int:
    """Samples per channel."""
    if self.samples is not None:
      return self.samples
    return max(1, round(self.frames / self.fps * self.sample_rate))

  @property
  def seconds(self) -> float:
    """How long things happen: the longer of the frames and the sound."""
    return max(self.frames / self.fps, self.num_samples / self.sample_rate)

  @property
  def box(self) -> tuple[float, float]:
    """Width and height of the picture in shorter sides."""
    short = min(self.height, self.width)
    return self.width / short, self.height / short


def _at_least(name, value, least, why):
  if value < least:
    raise ValueError(f'{name} is {value!r}; it must be at least {least} ({why}): raise {name}.')


def _within(name, pair, least, most, why):
  low, high = pair
  if not least <= low <= high <= most:
    raise ValueError(
      f'{name} is {pair!r}; it must be (lowest, highest) with {least} <= lowest <= highest <= '
      f'{most} ({why}): change {name}.'
    )
