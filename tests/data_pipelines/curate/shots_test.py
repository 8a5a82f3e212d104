"""Cuts: where they are, and nowhere else."""

import numpy as np
import pytest

from data_pipelines import media
from data_pipelines import mp4
from data_pipelines import real
from data_pipelines import world
from data_pipelines.curate import shots

scenedetect = pytest.importorskip('scenedetect')


def cuts(found):
  """The times between the shots, which follow on each other."""
  assert all(a < b for a, b in found)
  assert [b for _, b in found[:-1]] == [a for a, _ in found[1:]]
  return [a for a, _ in found[1:]]


@pytest.fixture(scope='module')
def bikes(tmp_path_factory):
  clips = real.fetch(tmp_path_factory.getbasetemp().parent / 'sr4_real_media')
  if not clips:
    pytest.skip('the real clips cannot be fetched here')
  return {c.path.stem: c.path for c in clips}['bikes']


@pytest.mark.real_media
def test_five_cuts_of_a_real_video(bikes, monkeypatch):
  found = shots.shots(bikes)
  assert found[0][0] == 0 and found[-1][1] == 10
  np.testing.assert_allclose(cuts(found), [1.20, 3.04, 5.48, 7.48, 9.68], atol=0.0401)
  monkeypatch.setattr(shots, 'CHUNK', 31)  # One begins on a cut.
  assert shots.shots(bikes) == found


@pytest.mark.real_media
def test_as_the_library_on_whole_pictures(bikes):
  detector = scenedetect.AdaptiveDetector(min_scene_len=shots.SHORTEST)
  want = scenedetect.detect(str(bikes), detector)
  got = shots.shots(bikes)
  np.testing.assert_allclose(got, [(a.seconds, b.seconds) for a, b in want], atol=1e-3)


@pytest.mark.parametrize('size', [64, 96])
def test_cuts_of_worlds(size):
  """Precision and recall are 1 on these."""
  config = world.Config(cuts=1.0, frames=64, height=size, width=size)
  w, count = world.World(config, 1), 0
  for i in range(4):
    sample = w[i]
    found = shots.shots(mp4.write(None, sample.frames, 16, sample.samples, 16_000))
    np.testing.assert_allclose(cuts(found), sample.truth.cuts, atol=2 / 16)
    assert found[-1][1] == pytest.approx(4, abs=1e-3)
    count += len(sample.truth.cuts)
  assert count > 4


def test_one_shot():
  for i in range(4):
    sample = world.World(world.Config(cuts=0.0, frames=48), 2)[i]
    assert len(shots.shots(mp4.write(None, sample.frames, 16))) == 1
  pan = np.random.default_rng(0).integers(0, 256, (8, 300, 3), np.uint8).repeat(8, 0).repeat(8, 1)
  fast = np.stack([pan[:, 24 * t : 24 * t + 96] for t in range(90)])  # Six widths a second.
  (shot,) = shots.shots(mp4.write(None, fast, 25))
  assert shot == (0, pytest.approx(3.6))
  for short in (1, 2, 4):
    found = shots.shots(mp4.write(None, fast[:short], 25))
    assert found == [(0, pytest.approx(short / 25))]


def test_cuts_between_still_pictures():
  slides = np.random.default_rng(0).integers(0, 256, (4, 1, 1, 3), np.uint8)
  frames = (slides * np.ones((1, 64, 64, 1), np.uint8)).repeat(20, 0)
  np.testing.assert_allclose(cuts(shots.shots(mp4.write(None, frames, 20))), [1, 2, 3], atol=0.051)


def test_times_are_on_the_clock_of_the_container(monkeypatch):
  sample = world.World(world.Config(cuts=1.0, frames=64), 1)[0]
  data, late = mp4.write(None, sample.frames, 16), 0.5
  want, probe, read = shots.shots(data), media.probe, media.read

  def later(source):
    info = probe(source)
    return media.Info(**{**vars(info), 'start': late})

  monkeypatch.setattr(media, 'probe', later)
  monkeypatch.setattr(
    media, 'read', lambda source, start, **ask: read(source, start=start - late, **ask)
  )
  np.testing.assert_allclose(shots.shots(data), np.add(want, late))


def test_what_has_no_shots(tmp_path):
  sound = mp4.write(None, np.zeros((2, 16, 16, 3), np.uint8), 8, np.zeros((4000, 1)), 16_000)
  info = media.probe(sound)
  for change, what in (({'width': 0}, 'no video'), ({'duration': 0.0}, 'no duration')):
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(media, 'probe', lambda source, c=change: media.Info(**{**vars(info), **c}))
      with pytest.raises(media.MediaError, match=what):
        shots.shots('a.mp4')
  (tmp_path / 'b.mp4').write_bytes(b'nothing')
  with pytest.raises(media.MediaError, match='b.mp4'):
    shots.shots(tmp_path / 'b.mp4')
