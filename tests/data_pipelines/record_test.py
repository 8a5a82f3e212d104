"""One record: what goes in comes out, and damage is told."""

import dataclasses
import io

import av
import numpy as np
import pytest
import safetensors.numpy

from data_pipelines import record as record_lib
from data_pipelines.record import Reference
from tests.small_records import edited
from tests.small_records import record
from tests.small_records import same

PICTURE = np.full((1, 6, 8, 3), 90, np.uint8)
CLIP = np.repeat(PICTURE, 2, 0)
TONE = np.full((90, 1), 0.25, np.float32)


@pytest.mark.parametrize(
  'kind',
  [
    {},
    {'sound': False},
    {'video': False},
    {'frames': 1},
    {'fps': 30_000 / 1001, 'rate': 44_100},
    edited(),
  ],
)
@pytest.mark.parametrize('codec, loss', [('raw', (0, 1 / 32768)), ('mp4', (2, 0.02))])
def test_bytes_give_the_record_back(kind, codec, loss):
  want = kind if isinstance(kind, record_lib.Record) else record(**kind)
  data = record_lib.to_bytes(want, codec)
  same(want, record_lib.from_bytes(data), *loss)
  assert all(record_lib.to_bytes(want, codec) == data for _ in range(8))


def test_raw_sound_is_exact():
  samples = np.arange(-32768, 32768, dtype=np.int16)[:, None]
  got = record_lib.from_bytes(record_lib.to_bytes(dataclasses.replace(record(), samples=samples)))
  np.testing.assert_array_equal(record_lib.to_int16(got.samples), samples)
  loud = np.array([[1.5], [1.0], [-1.0], [-9]], np.float32)
  np.testing.assert_array_equal(record_lib.to_int16(loud)[:, 0], [32767, 32767, -32768, -32768])


@pytest.mark.parametrize(
  'samples', [None, np.zeros((9000, 2), np.float32), np.full((9000, 2), 1e-6, np.float32)]
)
def test_a_silent_clip_has_no_audio(samples):
  got = record_lib.from_bytes(record_lib.to_bytes(dataclasses.replace(record(), samples=samples)))
  assert got.samples is None and not got.has_audio and got.has_video


@pytest.mark.parametrize('codec', record_lib.CODECS)
def test_any_flipped_byte_is_found(codec):
  data = record_lib.to_bytes(edited(), codec)
  for at in (*range(16), *np.random.default_rng(0).integers(0, len(data), 200)):
    broken = bytearray(data)
    broken[at] ^= 1 << at % 8
    with pytest.raises(record_lib.RecordError, match='checksum'):
      record_lib.from_bytes(bytes(broken))
  for cut in (0, 3, 11, len(data) - 1):
    with pytest.raises(record_lib.RecordError, match='checksum'):
      record_lib.from_bytes(data[:cut])


@pytest.mark.parametrize(
  'change, codec, what',
  [
    ({}, 'avi', "codec is 'avi'"),
    ({'frames': None, 'samples': None}, 'raw', 'neither'),
    ({'frames': np.zeros((2, 4, 4, 3))}, 'raw', 'frames are float64'),
    ({'samples': np.zeros(4)}, 'raw', r'samples are float64 \[4\]'),
    ({'samples': np.full((4, 1), np.inf)}, 'raw', 'finite'),
    ({'fps': 0.0}, 'raw', 'fps 0.0'),
    ({'sample_rate': 0}, 'raw', 'sample_rate 0'),
    ({'samples': np.ones((4, 1))}, 'mp4', 'gives back round'),
    ({'frames': np.zeros((2, 7, 8, 3), np.uint8), 'samples': None}, 'mp4', "'clip-0': 7x8.*even"),
    ({'mask': np.ones((9, 32, 31), bool)}, 'raw', r'mask is bool \[9, 32, 31\].*\[9, 32, 32\]'),
    ({'mask': np.ones((9, 32, 32), np.uint8)}, 'raw', 'mask is uint8'),
    ({'mask': np.ones((9, 32, 32), bool), 'frames': None}, 'raw', 'there are none'),
    ({'references': (Reference('picture', PICTURE, None),)}, 'raw', "kind is 'picture'"),
    (
      {'references': (Reference('image', CLIP, None),)},
      'raw',
      '@image_1: 2 frames; an image',
    ),
    ({'references': (Reference('video', None, TONE),)}, 'raw', '@video_1: no frames'),
    ({'references': (Reference('audio', PICTURE, TONE),)}, 'raw', '@audio_1: 1 frames'),
    ({'references': (Reference('audio', None, 0 * TONE),)}, 'raw', 'nothing is to be heard'),
    ({'references': (Reference('audio', None, TONE[:, 0]),)}, 'raw', r'@audio_1: samples are.*\[9'),
    (
      {'references': (Reference('image', PICTURE, None), Reference('image', PICTURE[0], None))},
      'raw',
      r'@image_2: frames are uint8 \[6, 8, 3\]',
    ),
    ({'references': (Reference('video', CLIP, TONE),)}, 'mp4', '@video_1: 90 samples beside 2'),
    (
      {'samples': None, 'sample_rate': 0, 'references': (Reference('audio', None, TONE),)},
      'raw',
      'sample_rate 0',
    ),
  ],
)
def test_what_is_no_record_says_so(change, codec, what):
  with pytest.raises(record_lib.RecordError, match=what):
    record_lib.to_bytes(dataclasses.replace(record(), **change), codec)


def test_what_the_codecs_store():
  """Masks as bits, pictures as pictures: a record of arrays is several times as large."""
  noise = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
  want = dataclasses.replace(
    edited(), references=(Reference('image', noise, None), Reference('image', PICTURE, None))
  )
  arrays = {}
  for codec in record_lib.CODECS:
    data = record_lib.to_bytes(want, codec)
    arrays[codec] = safetensors.numpy.load(data[4:])
  assert set(arrays['raw']) == {
    'frames',
    'samples',
    'mask',
    'reference_0_frames',
    'reference_1_frames',
  }
  stored = arrays['mp4']
  assert set(stored) == {'media', 'mask_bits', 'reference_0_picture', 'reference_1_picture'}
  assert stored['mask_bits'].size < want.mask.size / 8
  assert stored['reference_0_picture'][:2].tobytes() == b'\xff\xd8'  # JPEG
  assert stored['reference_1_picture'][1:4].tobytes() == b'PNG'
  with av.open(io.BytesIO(stored['media'].tobytes())) as container:
    (video,), (audio,) = container.streams.video, container.streams.audio
    assert (video.codec.name, audio.codec.name) == ('h264', 'aac')


def test_key_frames_come_every_16():
  clip = record(frames=40, sound=False)
  data = safetensors.numpy.load(record_lib.to_bytes(clip, 'mp4')[4:])['media']
  with av.open(io.BytesIO(data.tobytes())) as container:
    keys = [i for i, p in enumerate(p for p in container.demux(video=0) if p.size) if p.is_keyframe]
  assert keys[0] == 0 and max(np.diff([*keys, 40])) == record_lib.GOP == 16


def test_references_are_numbered_by_kind():
  assert record_lib.names(edited().references) == (
    '@image_1',
    '@video_1',
    '@image_2',
    '@audio_1',
    '@video_2',
  )


def test_another_schema_is_refused(monkeypatch):
  monkeypatch.setattr(record_lib, 'SCHEMA', 1)
  old = record_lib.to_bytes(record())
  monkeypatch.undo()
  with pytest.raises(record_lib.RecordError, match='schema 1; this program reads 2'):
    record_lib.from_bytes(old)
