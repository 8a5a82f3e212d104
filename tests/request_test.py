"""sr4/request.py: what a request makes, what it gives, and every rule broken on purpose."""

import dataclasses

import numpy as np
import pytest

from data_pipelines import media
from sr4 import pipeline
from sr4 import request_rules
from sr4.core import captions
from sr4.core import errors
from sr4.core.batch import Low
from tests import small_request
from tests import small_run
from tests.small_request import ask
from tests.small_request import SYSTEM
from tests.small_request import TRAINED


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  path = tmp_path_factory.mktemp('media')
  small_request.write_media(path)
  return path


def test_nothing_but_a_prompt_is_as_trained():
  size = ask().size(SYSTEM, TRAINED)
  assert (size.frames, size.height, size.width, size.fps, size.samples) == (5, 16, 16, 8.0, 5000)
  row = ask().row(SYSTEM, size)
  assert row.caption == 'a red circle' and row.frames is None and row.known is None


def test_sizes(home):
  of = lambda **fields: ask(**fields).size(SYSTEM, TRAINED)
  sides = lambda size: (size.frames, size.height, size.width)
  assert sides(of(duration=3, resolution='480p')) == (25, 480, 832)
  assert sides(of(resolution='480p', aspect_ratio='9:16')) == (5, 840, 472)
  assert sides(of(resolution='720p', aspect_ratio='1:1')) == (5, 960, 960)
  assert sides(of(aspect_ratio='4:3')) == (5, 16, 16)
  assert sides(of(height=24)) == (5, 24, 16)
  wide = of(first_frame_image=str(home / 'wide.png'))
  assert sides(wide) == (5, 8, 24)  # 1:2 in about 256 pixels
  assert sides(of(video=str(home / 'clip.mp4'))) == (9, 16, 16)
  assert of(sound=False).samples == 0
  assert sides(of(frames=1)) == (1, 16, 16) and of(frames=1).samples == 0
  assert of(frames=1, sound=True).samples == of(frames=1, audio=str(home / 'clip.mp4')).samples > 0
  keyed = small_run.config('/nowhere')
  keyed.data.buckets.clips.update(keyframes=2, keyframe_scale=2)
  size = ask(frames=0, seconds=0.5).size(SYSTEM, dict(keyed))
  assert (size.frames, size.samples, size.keyframes) == (0, 4000, 0)


def test_sizes_of_a_model_of_sounds_alone(home):
  heard = small_run.config('/nowhere')
  heard.data.buckets = dict(sounds=dict(records=('sounds',), rows=4, frames=0, seconds=1.0))
  of = lambda **fields: ask(**fields).size(SYSTEM, dict(heard))
  assert (of().frames, of().samples, of(duration=3).samples) == (0, 8000, 24000)
  for field, value in (('frames', 5), ('video', str(home / 'clip.mp4'))):
    with pytest.raises(request_rules.RequestError, match=f'{field}: the model makes sounds alone'):
      of(**{field: value})


def test_a_duration_in_milliseconds_is_as_many_frames(home, monkeypatch):
  """As Matroska has it; nor is half a frame at the end of a Refiner's clip none."""
  clip, probe, lasts = str(home / 'clip.mp4'), media.probe, 2.062
  monkeypatch.setattr(media, 'probe', lambda path: dataclasses.replace(probe(path), duration=lasts))
  assert ask(video=clip, fps=16.0).size(SYSTEM, TRAINED).frames == 33
  film = ask(prompt='@a', ref_videos=[dict(tag='@a', video_url=clip)], fps=16.0)
  assert film.size(SYSTEM, TRAINED).reference_frames == 33
  assert media.frames_in(57 / 32, 16.0) == 29 and media.frames_in(1.0, 8.0) == 8


def test_frames_at_their_times(home):
  mid = dict(image_url=str(home / 'wide.png'), time_stamp=0.25, tag='@then')
  given = ask(
    prompt='a red circle, @then',
    first_frame_image=str(home / 'first.png'),
    end_frame_image=str(home / 'grid.png'),
    mid_frame_images=(mid,),
  )
  size = dataclasses.replace(given.size(SYSTEM, TRAINED), height=16, width=24)
  row = given.row(SYSTEM, size)
  assert row.caption == 'a red circle, then'
  np.testing.assert_array_equal(row.known[:, 0, 0], [True, False, True, False, True])
  np.testing.assert_array_equal(row.frames[0], media.read_image(home / 'first.png', 16, 24))
  np.testing.assert_array_equal(row.frames[2], media.read_image(home / 'wide.png', 16, 24))
  np.testing.assert_array_equal(row.frames[4], media.read_image(home / 'grid.png', 16, 24))


def test_keyframes_are_given_as_large_as_they_are(home):
  given = ask(first_frame_image=str(home / 'first.png'))
  size = dataclasses.replace(given.size(SYSTEM, TRAINED), keyframes=2, keyframe_scale=2)
  row = given.row(SYSTEM, size)
  high = size.height * 2, size.width * 2
  np.testing.assert_array_equal(row.keyframes[0], media.read_image(home / 'first.png', *high))
  np.testing.assert_array_equal(row.at, [0, 4])


@pytest.mark.parametrize('mask', ['mask.mp4', 'mask.png'])
def test_white_is_what_changes(home, mask):
  name = 'mask_video' if mask.endswith('mp4') else 'mask_image'
  given = ask(video=str(home / 'clip.mp4'), **{name: str(home / mask)})
  size = given.size(SYSTEM, TRAINED)
  size = dataclasses.replace(size, height=32, width=48)
  row = given.row(SYSTEM, size)
  wanted = np.ones((9, 32, 48), bool)
  wanted[3 if mask.endswith('mp4') else 0 :, 8:24, 12:36] = False
  assert np.mean(row.known == wanted) > 0.99 and not any(row.clean)
  assert row.frames.shape == (9, 32, 48, 3)


def test_a_sound_for_a_picture_and_a_picture_for_a_sound(home):
  clip = str(home / 'clip.mp4')
  to_sound, to_picture = ask(video=clip), ask(audio=clip)
  row = to_sound.row(SYSTEM, to_sound.size(SYSTEM, TRAINED))
  assert row.clean == (True, False) and row.known is None and row.frames.shape == (9, 16, 16, 3)
  row = to_picture.row(SYSTEM, size := to_picture.size(SYSTEM, TRAINED))
  assert row.clean == (False, True) and row.samples.shape == (size.samples, 1)
  assert row.frames is None and to_sound.kinds() != to_picture.kinds() != ask().kinds()


def test_references_by_their_tags(home):
  given = ask(
    prompt='@boy meets @boys, as @film, who says @voice',
    ref_images=(
      dict(tag='@boy', image_urls=(str(home / 'wide.png'),)),
      dict(tag='@boys', image_urls=(str(home / 'first.png'), str(home / 'grid.png'))),
    ),
    ref_videos=(dict(tag='@film', video_url=str(home / 'clip.mp4')),),
    ref_audios=(dict(tag='@voice', audio_url=str(home / 'clip.mp4')),),
  )
  size = given.size(SYSTEM, TRAINED)
  assert (size.reference_images, size.reference_frames) == (3, 9)
  row = given.row(SYSTEM, size)
  assert row.caption == '@image_1 meets @image_2 @image_3, as @video_1, who says @audio_1'
  assert [x.shape for x in row.images] == [(size.height, size.width, 3)] * 3
  assert (
    row.clip.shape == (9, size.height, size.width, 3) and len(row.sound) == size.reference_samples
  )
  # The wide one stands between black bars.
  assert row.images[0][0].max() == 0 and row.images[0][size.height // 2].max() > 0


def test_a_tag_ends_where_it_ends(home):
  """No longer word has it in it; other scripts set no space behind it."""
  hero = dict(tag='@hero', image_urls=(str(home / 'first.png'),))
  caption = lambda prompt: ask(prompt=prompt, ref_images=(hero,)).caption()
  assert caption('@hero meets @heroine') == '@image_1 meets @heroine'
  assert caption('@hero跑步, @hero.') == '@image_1跑步, @image_1.'
  with pytest.raises(errors.UserError, match="the prompt does not name '@hero'"):
    ask(prompt='@heroine', ref_images=(hero,))


def test_a_grid_is_its_panels(home):
  grid = dict(tag='@sheet', type='grid', image_urls=(str(home / 'grid.png'),))
  given = ask(prompt='as in @sheet', ref_images=(grid,))
  size = given.size(SYSTEM, TRAINED)
  assert size.reference_images == 4
  row = given.row(SYSTEM, size)
  assert row.caption == 'as in @image_1 @image_2 @image_3 @image_4' and len(row.images) == 4


@pytest.mark.parametrize('back', [False, True])
def test_a_clip_goes_on_where_another_ends_or_leads_up_to_it(home, back):
  kind = 'extend_back' if back else 'extend'
  film = dict(tag='@film', video_url=str(home / 'clip.mp4'), type=kind)
  given = ask(prompt='@film goes on', ref_videos=(film,), frames=17)
  size = given.size(SYSTEM, TRAINED)
  assert (size.frames, size.reference_frames) == (17, 0)
  row = given.row(SYSTEM, size)
  assert row.caption == 'film goes on' and row.clean == (False, False)
  like = dict(height=size.height, width=size.width, fps=8.0, sample_rate=8000, channels=1)
  source = media.read(home / 'clip.mp4', frames=9, **like)
  known, count = row.known[:, 0, 0], 4 if back else 5  # Whole latents: 4 frames, 1 at the start.
  np.testing.assert_array_equal(np.flatnonzero(known), np.arange(17)[-4:] if back else range(5))
  wanted = source.frames[:4] if back else source.frames[-5:]
  np.testing.assert_array_equal(row.frames[known], wanted)
  assert row.heard.sum() == count * 1000 and row.heard[-1 if back else 0]
  np.testing.assert_array_equal(
    row.samples[row.heard], source.samples[:4000] if back else source.samples[-5000:]
  )
  made = pipeline.Clip('', row.frames + 1 * ~row.known[..., None], row.samples, None, {})
  both = given.joined(made, SYSTEM, size)
  assert len(both.frames) == 17 + 9 - count and len(both.samples) == 1000 * len(both.frames)
  theirs = slice(-9, None) if back else slice(9)
  np.testing.assert_array_equal(both.frames[theirs], source.frames)
  np.testing.assert_array_equal(
    both.samples[len(both.samples) - 9000 :] if back else both.samples[:9000], source.samples
  )
  assert np.all(both.frames[:13] == 1 if back else both.frames[9:] == 1)


@pytest.mark.parametrize('frames', [17, 29])
@pytest.mark.parametrize('kind', ['extend', 'extend_back'])
def test_a_refiner_is_given_the_context_of_the_base_model(home, kind, frames):
  """At the same seconds; its picture and the base model's sound are cut at one place."""
  film = dict(tag='@film', video_url=str(home / 'clip.mp4'), type=kind)
  given = ask(prompt='@film goes on', ref_videos=(film,), frames=frames)
  size = given.size(SYSTEM, TRAINED)
  low = Low(size.frames, size.height, size.width)
  large = dataclasses.replace(size, frames=2 * frames - 1, fps=16.0, samples=0, low=low)
  one, two = given.row(SYSTEM, size), given.row(SYSTEM, large)
  known = one.known[:, 0, 0]
  np.testing.assert_array_equal(two.known[::2], one.known)
  np.testing.assert_array_equal(two.frames[::2][known], one.frames[known])
  joined = lambda row, size: given.joined(
    pipeline.Clip('', row.frames, one.samples, None, {}), SYSTEM, size
  )
  first, second = joined(one, size), joined(two, large)
  np.testing.assert_array_equal(second.frames[::2], first.frames)
  if kind == 'extend':
    np.testing.assert_array_equal(second.samples, first.samples)
  else:  # The other's sound ends with its last frame.
    np.testing.assert_array_equal(second.samples, first.samples[: len(second.samples)])
    assert len(first.samples) - len(second.samples) == 500


def test_the_prompt_may_name_no_more_than_is_given():
  given = ask(prompt='@image_1 jumps')
  with pytest.raises(captions.CaptionError, match='give it, or take it out'):
    given.row(SYSTEM, given.size(SYSTEM, TRAINED))


def test_flags_go_over_a_mode_and_fields_over_both():
  assert ask(mode='fast').sampling({}) == dict(num_inference_steps=12, solver='unipc')
  flags = dict(num_inference_steps=8, shift=2.0)
  found = ask(mode='fast', shift=3.0, audio_guidance_scale=2.0).sampling(flags)
  assert found == dict(num_inference_steps=8, solver='unipc', shift=3.0, audio_guidance_scale=2.0)
  assert ask().sampling(flags) == flags
