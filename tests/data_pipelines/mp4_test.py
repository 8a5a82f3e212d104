"""data_pipelines/mp4.py: what is written is read, and what cannot be leaves nothing."""

import errno
import io
import os
import resource
import subprocess
import sys

import av
import numpy as np
import pytest

from data_pipelines import media
from data_pipelines import mp4
from tests.data_pipelines import small_media as small


@pytest.mark.parametrize(
  'fps, rate, frames, channels',
  [
    (16, 16_000, 33, 2),
    (25, 48_000, 60, 1),
    (30_000 / 1001, 44_100, 61, 2),
    (12.5, 22_050, 17, 1),
    (7, 8_000, 5, 2),
    (24, 48_000, 2, 2),
  ],
)
def test_written_is_read_in_sync_and_of_exact_length(fps, rate, frames, channels):
  pixels, tone = small.flash_and_click(frames, fps, rate, frames // 2, channels)
  data = mp4.write(None, pixels, fps, tone, rate)
  clip = media.read(
    data, **small.SHAPE, fps=fps, frames=frames, sample_rate=rate, channels=channels
  )
  assert clip.frames.shape == (frames, 48, 64, 3) and clip.frames.dtype == np.uint8
  assert clip.samples.shape == (round(frames / fps * rate), channels)
  assert clip.samples.dtype == np.float32
  assert abs(clip.frames.astype(int) - pixels).max() <= 12
  assert abs(small.offset(clip)) <= 1 / rate  # To the sample; the promise is 10 ms.
  info = media.probe(data)
  assert info.start == 0 and info.duration == pytest.approx(frames / fps, abs=1e-6)
  assert (info.fps, info.sample_rate, info.channels) == (pytest.approx(fps), rate, channels)
  with av.open(io.BytesIO(data)) as container:
    assert container.streams.audio[0].duration == len(tone)  # Not rounded to milliseconds.


def test_colours_survive():
  colours = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3), np.uint8)
  pixels = colours.repeat(16, 1).repeat(16, 2).repeat(8, 0)
  data = mp4.write(None, pixels, 16, crf=8)
  got = media.read(data, height=64, width=64, fps=16, frames=8, **small.SOUND).frames
  assert abs(got.astype(int) - pixels)[:, 8::16, 8::16].max() <= 3
  # Tagged BT.709, limited: players do not have to guess.
  with av.open(io.BytesIO(data)) as container:
    frame = next(container.decode(video=0))
    assert (frame.colorspace, frame.color_range) == (1, 1)


def test_the_same_input_gives_the_same_bytes(tmp_path):
  pixels, tone = small.flash_and_click(33, 25, 48_000, 22, height=64, width=96)
  ask, notes = (pixels, 25, tone, 48_000), {'comment': 'ours', 'step': '7'}
  first = mp4.write(None, *ask, metadata=notes)
  # Without x264's cpu-independent one in three differs, depending on what lies where in memory.
  for i in range(24):
    elsewhere = [np.ones(997 * (i + k) ** 2) for k in range(i)]
    assert mp4.write(None, *ask, metadata=notes) == first, len(elsewhere)
  mp4.write(tmp_path / 'a.mp4', *ask, metadata=notes)
  assert (tmp_path / 'a.mp4').read_bytes() == first and os.listdir(tmp_path) == ['a.mp4']
  with av.open(str(tmp_path / 'a.mp4')) as container:
    assert notes.items() <= container.metadata.items()
  assert first.index(b'moov') < first.index(b'mdat')  # Plays before it is loaded.


def test_gop_sets_the_key_frames():
  data = mp4.write(None, small.flash_and_click(40, 16, 16_000, 30)[0], 16, gop=10)
  with av.open(io.BytesIO(data)) as container:
    keys = [p.is_keyframe for p in container.demux(video=0) if p.size]
  assert all(keys[i] for i in (0, 10, 20)) and sum(keys) <= 6


@pytest.mark.parametrize(
  'frames, arguments, what',
  [
    (np.zeros((2, 47, 64, 3), np.uint8), {}, '47x64.*even sizes.*48x64'),
    (np.zeros((2, 48, 64, 3), np.float32), {}, 'frames are float32'),
    (np.zeros((0, 48, 64, 3), np.uint8), {}, 'frames are'),
    (np.zeros((2, 48, 64, 3), np.uint8), {'fps': 0}, 'fps is 0'),
    (np.zeros((2, 48, 64, 3), np.uint8), {'samples': np.zeros(9)}, r'samples are float64 \[9\]'),
    (np.zeros((2, 48, 64, 3), np.uint8), {'samples': np.full((9, 1), np.nan)}, 'NaN'),
    (np.zeros((2, 48, 64, 3), np.uint8), {'samples': np.zeros((9, 3))}, r'\[9, 3\]'),
    (
      np.zeros((2, 48, 64, 3), np.uint8),
      {'samples': np.zeros((9, 1)), 'sample_rate': 12_345},
      'sample_rate is 12345',
    ),
  ],
)
def test_what_cannot_be_written_says_so(frames, arguments, what):
  with pytest.raises(ValueError, match=what):
    mp4.write(None, frames, **({'fps': 16, 'sample_rate': 16_000} | arguments))


def test_unwritable_places_name_the_path_and_leave_nothing(tmp_path):
  pixels = np.zeros((2, 48, 64, 3), np.uint8)
  with pytest.raises(FileNotFoundError, match='none/a.mp4') as e:
    mp4.write(tmp_path / 'none' / 'a.mp4', pixels, 16)
  assert e.value.errno == errno.ENOENT
  assert not os.listdir(tmp_path)


FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # The write then fails with EFBIG.
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
import numpy as np
from data_pipelines import mp4
noise = np.random.default_rng(0).integers(0, 256, (16, 48, 64, 3), np.uint8)
try:
  mp4.write(sys.argv[1], noise, 16)
except OSError as e:
  print(type(e).__name__, e.errno, e.filename)
"""


def test_a_disk_that_fills_up_leaves_what_was_there(tmp_path):
  path = tmp_path / 'a.mp4'
  path.write_bytes(b'before')
  done = subprocess.run(
    [sys.executable, '-c', FULL, str(path)], capture_output=True, text=True, check=True
  )
  assert done.stdout.split() == ['OSError', str(errno.EFBIG), str(path)]
  assert os.listdir(tmp_path) == ['a.mp4'] and path.read_bytes() == b'before'
  assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 2000
