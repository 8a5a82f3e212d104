"""Duplicates: the same is found however it was written, and others are left alone."""

import hashlib

import numpy as np
import pytest

from data_pipelines import mp4
from data_pipelines import real
from data_pipelines import world
from data_pipelines.curate import duplicates
from data_pipelines.curate import excerpt

cv2 = pytest.importorskip('cv2')


def apart(a, b):
  return max((x ^ y).bit_count() for x, y in zip(a, b, strict=True))


def flipped(hash_, bits, rng):
  return hash_ ^ sum(1 << int(k) for k in rng.choice(64, bits, replace=False))


def test_exact_is_of_the_bytes(tmp_path):
  (tmp_path / 'a').write_bytes(b'one' * 10**6)
  (tmp_path / 'b').write_bytes(b'one' * 10**6)
  (tmp_path / 'c').write_bytes(b'two' * 10**6)
  a, b, c = (duplicates.exact(tmp_path / x) for x in 'abc')
  assert a == b == hashlib.sha256(b'one' * 10**6).hexdigest() != c


def test_a_hash_survives_scaling_light_and_coding():
  config = world.Config(frames=32, height=96, width=96, background='varied')
  for i in range(6):
    frames = world.World(config, 3)[i].frames
    clip = duplicates.of_clip(frames)
    assert len(clip) == duplicates.PICTURES and all(0 <= x < 2**64 for x in clip)
    brighter = np.round(frames * 0.8 + 20).astype(np.uint8)
    assert apart(clip, duplicates.of_clip(brighter)) <= 4
    smaller = excerpt.read(mp4.write(None, frames, 16, crf=26), 0, 2, side=64).frames
    assert apart(clip, duplicates.of_clip(smaller)) <= 6


def test_a_hash_is_of_the_cosines():
  y, x = np.mgrid[:64, :64] / 64
  wave = np.cos(3 * np.pi * x) * np.cos(2 * np.pi * y)  # Coefficient (2, 3) alone.
  grey = np.round(127 + 100 * wave)[..., None].repeat(3, -1).astype(np.uint8)
  assert duplicates.perceptual(grey) >> (2 * 8 + 3 - 1) & 1
  assert not duplicates.perceptual(255 - grey) >> (2 * 8 + 3 - 1) & 1
  flat = [np.full((30, 40, 3), v, np.uint8) for v in (0, 77, 255)]
  assert {duplicates.perceptual(x) for x in flat} == {0}
  assert len(duplicates.of_clip(grey[None])) == 1


def test_worlds_are_not_near():
  clips = {}
  for config in (world.Config(frames=16, fps=8.0), world.Config.simple(frames=16, fps=8.0)):
    for i in range(30):
      name = f'{config.background} {i}'
      clips[name] = duplicates.of_clip(world.World(config, 0)[i].frames)
  assert duplicates.groups(clips) == []
  again = {f'{name} again': hashes for name, hashes in clips.items()}
  assert duplicates.groups(clips | again) == sorted([n, f'{n} again'] for n in clips)


@pytest.mark.parametrize('distance', [0, 1, 6, 12])
@pytest.mark.parametrize('length', [1, 3])
def test_groups_are_those_of_all_pairs(distance, length):
  rng = np.random.default_rng(distance)
  hashes = {}
  for i in range(60):
    base = tuple(int(x) for x in rng.integers(0, 2**64, length, dtype=np.uint64))
    hashes[f'{i:02d}'] = base
    for near in range(rng.integers(4)):  # Up to the distance, and just above it.
      bits = rng.integers(max(0, distance - 1), distance + 2, length)
      hashes[f'{i:02d} {near}'] = tuple(flipped(x, b, rng) for x, b in zip(base, bits))
  names = sorted(hashes)
  sets = {name: {name} for name in names}
  for a in names:
    for b in names:
      if apart(hashes[a], hashes[b]) <= distance and sets[a] is not sets[b]:
        sets[a] |= sets[b]
        for c in sets[b]:
          sets[c] = sets[a]
  want = sorted({tuple(sorted(s)) for s in sets.values() if len(s) > 1})
  assert [tuple(g) for g in duplicates.groups(hashes, distance)] == want and len(want) > 5
  shuffled = {name: hashes[name] for name in rng.permutation(names).tolist()}
  assert duplicates.groups(shuffled, distance) == duplicates.groups(hashes, distance)


def test_groups_of_equal_ones_of_chains_and_of_other_lengths():
  many = {f'{i:05d}': (7, 7) for i in range(20_000)}  # Black clips, say: no pairs of them are made.
  assert duplicates.groups(many) == [sorted(many)]
  chain = {'a': (0,), 'b': (0b111111,), 'c': (0b111111111111,), 'd': (2**60 - 1,), 'e': (0, 0)}
  assert duplicates.groups(chain | {'f': (), 'g': ()}) == [['a', 'b', 'c']]
  assert duplicates.groups({}) == []
  with pytest.raises(ValueError, match='distance is 64'):
    duplicates.groups(chain, 64)


def test_few_of_all_pairs_are_compared(monkeypatch):
  rng, compared = np.random.default_rng(0), []
  count = np.bitwise_count
  monkeypatch.setattr(np, 'bitwise_count', lambda x: compared.append(len(x)) or count(x))
  hashes = rng.integers(0, 2**64, 5000, dtype=np.uint64).tolist()
  assert duplicates.groups({str(i): (x,) for i, x in enumerate(hashes)}) == []
  assert 0 < sum(compared) < 5000**2 / 2 / 5000  # 84 sorts of 2**-21 of the pairs each.


@pytest.mark.real_media
def test_a_distorted_clip_is_the_same_clip(tmp_path_factory):
  clips = real.fetch(tmp_path_factory.getbasetemp().parent / 'sr4_real_media')
  if not clips:
    pytest.skip('the real clips cannot be fetched here')
  hashes = {
    c.path.stem: duplicates.of_clip(excerpt.read(c.path, 0, 4, side=160).frames) for c in clips
  }
  assert duplicates.groups(hashes) == [['carphone_distorted', 'carphone_pristine']]
