"""SR4-World tells the truth: what its ground truth says can be measured in pixels and samples."""

import dataclasses
import itertools
import re

import numpy as np
import pytest

from data_pipelines import world
from data_pipelines.world import __main__ as world_main
from data_pipelines.world import font
from data_pipelines.world import kinds
from data_pipelines.world import picture
from data_pipelines.world import sound
from data_pipelines.world import voice

FULL = world.Config(talker=0.5, text=0.5, music=0.5, ambience=0.5, cuts=0.5)
SIMPLE = world.Config.simple(frames=48)
MUTE = world.Config.simple(talker=1, speeds=(0, 0), fps=50, frames=100, channels=1)


def same(one: world.Sample, other: world.Sample) -> bool:
  return (
    np.array_equal(one.frames, other.frames)
    and np.array_equal(one.samples, other.samples)
    and one.captions == other.captions
    and one.truth.contacts == other.truth.contacts
    and np.array_equal(one.truth.tracks, other.truth.tracks, equal_nan=True)
  )


def test_a_sample_is_a_function_of_seed_and_index():
  forward = [world.World(FULL, 7)[i] for i in range(6)]
  shared = world.World(FULL, 7)
  backward = [shared[i] for i in reversed(range(6))][::-1]
  assert all(same(a, b) for a, b in zip(forward, backward))
  assert not any(same(a, b) for a, b in itertools.combinations(forward, 2))
  assert not same(forward[0], world.World(FULL, 8)[0])
  large = [world.World(FULL, seed)[2**63 + 1] for seed in (2**64 - 1, 2**64 - 2, 2**64 - 1)]
  assert same(large[0], large[2]) and not same(large[0], large[1])


def test_shapes_and_ranges():
  c = dataclasses.replace(FULL, height=48, width=80, frames=17, fps=12.5, channels=1)
  sample = world.World(c)[3]
  assert sample.frames.shape == (17, 48, 80, 3) and sample.frames.dtype == np.uint8
  assert sample.samples.shape == (21_760, 1) and sample.samples.dtype == np.float32
  assert 0.01 < np.abs(sample.samples).max() <= 1
  count = len(sample.truth.objects)
  assert sample.truth.tracks.shape == (count, 17, 2)
  assert sample.truth.masks().shape == (count, 17, 48, 80)
  assert world.World(dataclasses.replace(c, samples=999))[3].samples.shape == (999, 1)


@pytest.mark.parametrize('index', range(5))
def test_the_same_world_at_other_rates_and_sizes(index):
  base = dataclasses.replace(FULL, fps=8, frames=16)
  fine = dataclasses.replace(FULL, fps=24, frames=48, height=160, width=160, sample_rate=48_000)
  one, other = world.World(base)[index], world.World(fine)[index]
  np.testing.assert_array_equal(one.truth.tracks, other.truth.tracks[:, ::3])
  assert one.truth.contacts == other.truth.contacts and one.truth.vowels == other.truth.vowels
  assert one.captions == other.captions
  loud, heard = (np.sqrt((x.samples.reshape(200, -1) ** 2).mean(1)) for x in (one, other))
  np.testing.assert_allclose(loud, heard, atol=0.02)


def test_the_wind_is_the_same_at_any_sample_rate():
  windy = world.Config.simple(speeds=(0, 0), ambience=1, sample_rate=8000)
  one = world.World(windy)[0].samples
  other = world.World(dataclasses.replace(windy, sample_rate=16_000))[0].samples
  assert one.std() > 0.005
  np.testing.assert_allclose(one, other[::2], atol=1e-6)


def test_a_shorter_sample_is_the_beginning_of_a_longer_one():
  plain = dataclasses.replace(FULL, cuts=0, talker=0)
  short, long = (world.World(dataclasses.replace(plain, frames=n))[4] for n in (24, 48))
  assert np.array_equal(short.frames, long.frames[:24])
  assert np.array_equal(short.samples, long.samples[: len(short.samples)])


@pytest.mark.parametrize('index', range(6))
def test_contacts_turn_the_path(index):
  truth = world.World(SIMPLE)[index].truth
  assert truth.contacts
  for contact in truth.contacts:
    thing = truth.objects[contact.objects[0]]
    before, now, after = thing.at(contact.time + np.array([-1e-4, 0, 1e-4]))
    axis = 0 if contact.wall in ('left', 'right') else 1
    toward = 1 if contact.wall in ('right', 'bottom') else -1
    assert contact.kind == 'wall'
    assert (now - before)[axis] * toward > 0 > (after - now)[axis] * toward
    assert (now - before)[1 - axis] == pytest.approx((after - now)[1 - axis], abs=1e-9)
    assert abs(now[axis] - (toward > 0)) <= thing.radius + 1e-9


def onset_strength(samples, times, rate, window=0.012):
  """Energy of the highs just after each time over that just before it."""
  highs = np.diff(samples.sum(1), n=2, prepend=[0, 0]) ** 2
  total = np.concatenate([[0], np.cumsum(highs)])
  edges = np.asarray(times)[:, None] + [-window, 0, window]
  at = np.clip(edges * rate, 0, len(highs)).astype(int)
  before, after = np.diff(total[at], axis=1).T
  return (after + 1e-6) / (before + 1e-6)


@pytest.mark.parametrize('index', range(12))
def test_contacts_are_heard_when_they_happen(index):
  sample = world.World(SIMPLE)[index]
  contacts = np.array([contact.time for contact in sample.truth.contacts])
  grid = np.arange(0, 2.98, 0.001)
  strength = onset_strength(sample.samples, grid, SIMPLE.sample_rate)
  near = np.abs(grid[:, None] - contacts) < 0.01
  far = (np.abs(grid[:, None] - contacts) > 0.03).all(1)
  for i, time in enumerate(contacts):
    if time < 2.96:
      assert strength[near[:, i]].max() > 2.3
  assert strength[far].max() < 2.3


def test_the_wall_that_rings_is_heard_on_its_side():
  heard = {}
  for index in range(12):
    sample = world.World(SIMPLE, 1)[index]
    for contact in sample.truth.contacts[:1]:
      first = round(contact.time * SIMPLE.sample_rate)
      power = (sample.samples[first : first + 1600] ** 2).sum(0)
      place = sample.truth.objects[0].at(contact.time)[0]
      assert power[1] / power.sum() == pytest.approx(np.sin(place * np.pi / 2) ** 2, abs=0.05)
      heard.setdefault(contact.wall, []).append(power[1] / power.sum())
  assert max(heard['left']) < 0.2 and min(heard['right']) > 0.8


def test_pitch_tells_the_shape_and_overtones_the_colour():
  for shape, color in itertools.product(world.SHAPES, world.COLORS):
    spectrum = np.abs(np.fft.rfft(sound.ring(shape, color, 16_000)))  # One bin a hertz.
    assert abs(np.argmax(spectrum) - sound.PITCHES[shape]) < 0.04 * sound.PITCHES[shape]
  for shape in world.SHAPES:
    rings = [sound.ring(shape, color, 16_000) for color in world.COLORS]
    spectra = [np.abs(np.fft.rfft(ring))[:2000] for ring in rings]
    spectra = np.stack([s / np.linalg.norm(s) for s in spectra])
    assert (spectra @ spectra.T - np.eye(len(spectra))).max() < 0.97


def test_louder_when_faster():
  slow, fast = (
    world.World(dataclasses.replace(SIMPLE, speeds=(v, v)))[0].samples for v in (0.3, 1.4)
  )
  assert np.abs(fast).max() > 1.5 * np.abs(slow).max()


def eroded(mask):
  inside = mask.copy()
  for axis, step in itertools.product((-2, -1), (-1, 1)):
    inside &= np.roll(mask, step, axis)
  return inside


def test_masks_show_the_objects_and_nothing_else():
  crowd = world.World(dataclasses.replace(FULL, objects=(4, 4)), 2)
  # In the source of an edit an object passes behind and before others.
  for sample in [crowd[i] for i in range(4)] + [crowd.edit(i, 'remove')[0] for i in range(4)]:
    masks = sample.truth.masks()
    assert (masks.sum(0) <= 1).all()
    for mask, thing, track in zip(masks, sample.truth.objects, sample.truth.tracks):
      color = np.array(world.COLORS[thing.color])
      assert (sample.frames[eroded(mask)] == color).all(1).mean() > 0.95
      assert np.array_equal(mask.any((1, 2)), ~np.isnan(track[:, 0]))
      others = [m for m, other in zip(masks, sample.truth.objects) if other.color == thing.color]
      assert not ((sample.frames == color).all(-1) & ~np.any(others, 0)).any()


def test_tracks_are_the_centres_of_the_masks():
  for index in range(6):
    truth = world.World(SIMPLE)[index].truth
    if truth.objects[0].shape == 'triangle':  # Its centre is that of its box, not of its mass.
      continue
    for mask, track in zip(truth.masks()[0], truth.tracks[0]):
      y, x = np.argwhere(mask).mean(0) + 0.5
      assert np.hypot(*(track * 64 - (x, y))) < 0.75


def test_nothing_overlaps_and_nothing_speeds_up():
  crowd = world.Config(objects=(6, 6), talker=1, cuts=0, frames=160)
  truth = world.World(crowd)[0].truth
  times = np.linspace(0, 10, 2001)
  places = np.stack([thing.at(times) for thing in truth.objects])
  for (p, one), (q, other) in itertools.combinations(zip(places, truth.objects), 2):
    assert np.linalg.norm(p - q, axis=-1).min() > one.radius + other.radius - 1e-9
  energy = sum(
    one.radius**2 * (np.diff(one.path, axis=0) ** 2).sum(1) / np.diff(one.knots) ** 2
    for one in truth.objects
  )
  np.testing.assert_allclose(energy, energy[0], rtol=1e-3)
  assert {contact.kind for contact in truth.contacts} == {'wall', 'object', 'face'}


@pytest.mark.parametrize('index', range(40))
def test_captions_name_what_is_there(index):
  sample = world.World(FULL, 3)[index]
  truth, captions = sample.truth, sample.captions
  assert set(captions) == {'short', 'long', 'structured'}
  for caption in captions.values():
    assert all(thing.name in caption for thing in truth.objects)
  inside = {}
  for tag in ('text', 'sfx', 'dialogue', 'singing', 'bgm'):
    found = re.findall(f'<{tag}>(.*?)</{tag}>', captions['structured'])
    assert len(found) == 1
    inside[tag] = found[0]
  assert inside['text'] == ', '.join(truth.words)
  assert inside['dialogue'].split() == [v.symbol for v in truth.vowels if not v.sung]
  assert inside['singing'].split() == [v.symbol for v in truth.vowels if v.sung]
  assert ('talks' in captions['short']) == bool(inside['dialogue'])
  assert ('sings' in captions['short']) == bool(inside['singing'])
  assert bool(inside['bgm']) == (truth.music is not None)
  rung = {truth.objects[i].name for contact in truth.contacts for i in contact.objects}
  assert all(
    (f'chime of the {thing.name} ' in inside['sfx']) == (thing.name in rung)
    for thing in truth.objects
  )
  assert '<' not in captions['long']


def test_every_tag_is_filled_somewhere_and_wordings_vary():
  captions = [world.World(FULL, 3)[i].captions for i in range(20)]
  for tag in ('text', 'sfx', 'dialogue', 'singing', 'bgm'):
    filled = [f'<{tag}></{tag}>' not in c['structured'] for c in captions]
    assert any(filled) and (tag == 'sfx' or not all(filled))
  verbs = [world.World(SIMPLE)[i].captions['short'].split(' ', 3)[3] for i in range(20)]
  assert set(verbs) >= {'bounces', 'bounces around', 'moves and bounces'}


def test_a_face_without_time_to_speak_keeps_silent():
  caption = world.World(world.Config(frames=1, cuts=0, talker=1))[0].captions['short']
  assert caption.endswith('a face keeps silent')


def test_a_name_means_one_object():
  long = world.Config(objects=(6, 6), cuts=1, height=16, width=16, frames=100, fps=10)
  objects = world.World(long)[0].truth.objects
  assert len({thing.name for thing in objects[:48]}) == 48
  for _, shot in itertools.groupby(objects, lambda thing: thing.shot):
    assert len({thing.color for thing in shot}) == 6


@pytest.mark.parametrize('kind', world.EDITS)
@pytest.mark.parametrize('index', range(4))
def test_an_edit_changes_its_mask_only(kind, index):
  w = world.World(dataclasses.replace(FULL, objects=(3, 3)), 5)
  source, target, mask, instruction = w.edit(index, kind)
  differs = (source.frames != target.frames).any(-1)
  assert differs.any() and not differs[~mask].any()
  assert differs[mask].mean() > 0.8
  change = {'remove': -1, 'add': 1, 'recolor': 0}[kind]
  assert len(target.truth.objects) - len(source.truth.objects) == change
  names = [{thing.name for thing in sample.truth.objects} for sample in (source, target)]
  gone, came = names[0] - names[1], names[1] - names[0]
  if kind == 'recolor':
    (old,), (new,) = gone, came
    assert instruction == f'make the {old} {new.split()[0]}' and old.split()[1] == new.split()[1]
    assert same(source, w[index])
  else:
    (name,) = gone | came
    assert instruction.startswith(kind) and name in instruction
    truth = (source if kind == 'remove' else target).truth
    hit = [c.kind for c in truth.contacts if name in [truth.objects[i].name for i in c.objects]]
    assert 'object' not in hit
  times = [[c.time for c in sample.truth.contacts] for sample in (source, target)]
  assert set(times[0]) >= set(times[1]) if kind == 'remove' else set(times[0]) <= set(times[1])
  if times[0] != times[1]:
    assert not np.array_equal(source.samples, target.samples)


def test_the_mouth_opens_as_the_voice_sounds():
  for index in range(4):
    sample = world.World(MUTE)[index]
    assert len(sample.truth.vowels) >= 2 and not sample.truth.contacts
    # Loudness of the 20 ms around the time that each frame shows.
    centered = np.pad(sample.samples[:, 0], (160, 0))[:-160].reshape(100, 320)
    loudness = np.sqrt((centered**2).mean(1))
    assert np.corrcoef(loudness, sample.truth.mouth)[0, 1] > 0.9
    # And it is seen: dark red pixels, as many as the mouth is open.
    lips = (np.abs(sample.frames.astype(int) - picture._LIPS) < 12).all(-1).sum((1, 2))
    assert np.corrcoef(lips, sample.truth.mouth)[0, 1] > 0.9


def test_vowels_differ_in_their_formants():
  low_share = {}
  for symbol in 'aeiou':
    wave = voice.wave(voice.Vowel(symbol, 0.0, 0.5, 100.0, 1.0, False), 16_000)
    power = np.abs(np.fft.rfft(wave)) ** 2
    low_share[symbol] = power[:200].sum() / power.sum()  # Below 400 Hz.
  assert max(low_share, key=low_share.get) in 'iu' and min(low_share, key=low_share.get) == 'a'


def test_cuts_change_the_whole_picture():
  c = world.Config(cuts=1, objects=(1, 1), talker=0, text=0, music=0, ambience=0, frames=64)
  sample = world.World(c, 1)[0]
  assert sample.truth.cuts
  corner = sample.frames[:, 0, 0].astype(int)
  steps = np.flatnonzero(np.abs(np.diff(corner, axis=0)).sum(1)) + 1
  expected = [int(np.ceil(cut * c.fps)) for cut in sample.truth.cuts]
  assert set(steps) <= set(expected) and len(steps) >= len(expected) - 1
  shown = ~np.isnan(sample.truth.tracks[:, :, 0])
  assert (shown.sum(0) == 1).all()
  for shot, row in enumerate(shown):
    assert sample.truth.objects[shot].shot == shot
    assert np.flatnonzero(np.diff(row.astype(int)) == 1).tolist() == [
      first - 1 for first in expected[shot - 1 : shot] if shot
    ]


def test_the_word_is_written_in_the_picture():
  c = dataclasses.replace(SIMPLE, text=1, objects=(1, 1), frames=1)
  sample = world.World(c, 1)[0]
  ink = (sample.frames[0] == picture._INK).all(-1)
  (word,) = sample.truth.words
  assert 0.5 < ink.sum() / (4 * font.bitmap(word).sum()) <= 1  # Two pixels a dot at this size.


def test_a_reference_is_the_object_alone():
  w = world.World(FULL, 4)
  sample = w[0]
  for i, thing in enumerate(sample.truth.objects):
    image, ring = w.reference(0, i)
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8
    assert (image == world.COLORS[thing.color]).all(-1).mean() > 0.1
    assert ring.shape == (16_000, 2) and ring.dtype == np.float32 and np.abs(ring).max() <= 1
    peak = np.argmax(np.abs(np.fft.rfft(ring[:, 0])))
    assert abs(peak - sound.PITCHES[thing.shape]) < 0.04 * peak
  with pytest.raises(ValueError, match='object is 99'):
    w.reference(0, 99)


@pytest.mark.parametrize(
  'change',
  [
    {'height': 8},
    {'width': 0},
    {'frames': 0},
    {'fps': 0},
    {'sample_rate': 100},
    {'channels': 3},
    {'samples': 0},
    {'objects': (3, 1)},
    {'objects': (0, 2)},
    {'objects': (1, 9)},
    {'sizes': (0.01, 0.1)},
    {'sizes': (0.1, 0.5)},
    {'speeds': (-1, 1)},
    {'talker': 1.5},
    {'cuts': -0.1},
    {'background': 'pink'},
  ],
)
def test_wrong_options_are_explained(change):
  ((name, value),) = change.items()
  with pytest.raises(ValueError, match=re.escape(f'{name} is {value!r}')) as error:
    world.Config(**change)
  assert len(str(error.value)) > 40  # The rule and the fix, too.


def test_wrong_places_are_explained():
  w = world.World(SIMPLE)
  with pytest.raises(IndexError, match='index is -1'):
    w[-1]
  with pytest.raises(ValueError, match="kind is 'paint'"):
    w.edit(0, 'paint')
  with pytest.raises(ValueError, match='seed is -1'):
    world.World(SIMPLE, -1)


@pytest.mark.parametrize(
  'words, told',
  [
    (('--start', '-1'), '--start -1 must be 0 or above'),
    (('--seed', '-1'), '--seed -1 must be 0 or above'),
    (('--config.data.root=x',), '--config.data.root=x: it changes what --config reads'),
  ],
)
def test_wrong_words_are_told(words, told, tmp_path, capsys):
  with pytest.raises(SystemExit):
    world_main.main(['--out', str(tmp_path / 'x'), '--count', '1', *words])
  assert told in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_interrupted_it_leaves_no_part_of_a_folder(tmp_path, monkeypatch):
  def interrupt(source, index, kind):
    raise KeyboardInterrupt

  monkeypatch.setattr(kinds, 'make', interrupt)
  with pytest.raises(SystemExit, match='interrupted: the folder that was being written is not'):
    world_main.main(['--out', str(tmp_path / 'x'), '--count', '1'])
  assert not (tmp_path / 'x').exists()
