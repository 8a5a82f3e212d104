"""sr4/request_rules.py: every rule broken on purpose."""

import contextlib
import dataclasses

import numpy as np
import pytest

from data_pipelines import media
from data_pipelines import stills
from data_pipelines import wav
from sr4 import request_rules
from sr4.core import errors
from sr4.models import system as system_lib
from tests import small_request
from tests import small_run
from tests.small_request import ask
from tests.small_request import SYSTEM
from tests.small_request import TRAINED

PICTURE = dict(tag='@a', image_urls=('a.png',))
MOMENT = dict(image_url='a.png', time_stamp=1.0)


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  path = tmp_path_factory.mktemp('media')
  small_request.write_media(path)
  return path


@pytest.mark.parametrize(
  'fields, told',
  [
    (dict(prompt=' '), 'prompt: it is empty'),
    (dict(promt='x'), 'promt'),
    (dict(prompt='half \ud83d'), 'prompt: it has control characters, or half a'),
    (dict(negative_prompt='\0'), 'negative_prompt: it has control characters'),
    (dict(frames=17, seconds=5.0), 'seconds: they are of a sound alone'),
    (dict(prompt='@a', frames=0, ref_images=(PICTURE,)), 'frames: 0 is a sound alone'),
    (
      dict(prompt='@a', frames=1, ref_videos=[dict(tag='@a', video_url='a', type='extend')]),
      'frames: 1 of a clip that goes on',
    ),
    (dict(mode='turbo'), "mode: 'turbo' is not among fast, std, pro"),
    (dict(seed=-1), 'seed: -1 is not in 0 to 4294967295'),
    (dict(seed=2**32), 'seed: 4294967296 is not in'),
    (dict(duration=16), 'duration: 16'),
    (dict(duration=2), 'duration: 2'),
    (dict(duration=5, frames=81), 'frames: it says the same'),
    (dict(fps=0.0), 'fps: 0 must be above 0'),
    (dict(frames=0, seconds=-1.0), 'seconds: -1 must be 0 or above'),
    (dict(frames=0, video='a.mp4'), 'frames: 0 is a new sound alone'),
    (dict(frames=0, audio='a.wav'), 'frames: 0 is a new sound alone'),
    (dict(sound=False, audio='a.wav'), 'sound: it is off, and `audio` is given'),
    (dict(sound=False, video='a.mp4'), 'sound: with `video` and no mask'),
    (dict(resolution='8k'), "resolution: '8k' is not among 480p, 720p, 1080p"),
    (dict(aspect_ratio='2:1'), "aspect_ratio: '2:1'"),
    (dict(resolution='480p', height=32), 'height: height and width, or'),
    (dict(first_frame_image='a.png', aspect_ratio='1:1'), 'aspect_ratio: it follows the image'),
    (dict(mid_frame_images=(MOMENT,) * 7), 'mid_frame_images: 7 of them'),
    (dict(duration=3, mid_frame_images=(dict(MOMENT, time_stamp=3.0),)), 'time_stamp: 3 is not'),
    (dict(mid_frame_images=(dict(MOMENT, tag='@gone'),)), "does not name '@gone'"),
    (dict(mid_frame_images=(dict(MOMENT, tag='gone'),)), "'gone' does not start with @"),
    (dict(prompt='@a', ref_images=(PICTURE,), first_frame_image='a.png'), 'ref_images: references'),
    (dict(prompt='@a', ref_images=(PICTURE,), video='a.mp4'), 'ref_images: references'),
    (dict(prompt='x', ref_images=(PICTURE,)), "ref_images[0].tag: the prompt does not name '@a'"),
    (dict(prompt='@a', ref_images=(PICTURE,) * 4), 'ref_images: 4 entries'),
    (dict(prompt='@a', ref_images=(PICTURE,) * 2), "'@a' is there twice"),
    (dict(prompt='@a', ref_images=(dict(PICTURE, image_urls=('a',) * 6),)), '6 of them; 1 to 5'),
    (dict(prompt='@a', ref_images=(dict(PICTURE, type='film'),)), "type 'film'"),
    (
      dict(prompt='@a @b', ref_images=(PICTURE, dict(PICTURE, tag='@b', type='grid'))),
      'all are of one type',
    ),
    (
      dict(prompt='@a', ref_images=(dict(PICTURE, type='grid', image_urls=('a', 'b')),)),
      '2 of them; 1 to 1',
    ),
    (
      dict(prompt='@a @b', ref_videos=[dict(tag=t, video_url='a.mp4') for t in ('@a', '@b')]),
      'ref_videos: 2 of them',
    ),
    (
      dict(prompt='@a @b', ref_audios=[dict(tag=t, audio_url='a.wav') for t in ('@a', '@b')]),
      'ref_audios: one reference sound',
    ),
    (
      dict(prompt='@a', sound=False, ref_audios=[dict(tag='@a', audio_url='a.wav')]),
      'sound: it is off, and a reference sound',
    ),
    (dict(mask_image='a.png'), 'mask_image: it says what of `video` changes'),
    (dict(video='a.mp4', mask_image='a.png', mask_video='b.mp4'), 'mask_image: mask_video says'),
    (dict(video='a.mp4', audio='a.wav'), 'audio: with `video` and no mask'),
    (dict(video='a.mp4', first_frame_image='a.png'), 'video: an edit does not go with'),
    (dict(ref_images=3), 'ref_images=3'),
    (dict(prompt='@a', ref_videos=[dict(tag='@a', video_url='a', type='go')]), "type: 'go'"),
    (
      dict(
        prompt='@a @b',
        ref_videos=[dict(tag='@b', video_url='a', type='extend')],
        ref_images=(PICTURE,),
      ),
      'ref_videos: a clip that is extended',
    ),
    (
      dict(prompt='@a', ref_videos=[dict(tag='@a', video_url='a', type='extend')], audio='a.wav'),
      'audio: a clip that is extended has its own sound',
    ),
  ],
)
def test_a_broken_rule_names_its_field(fields, told):
  with pytest.raises(errors.UserError) as error:
    ask(**fields)
  assert told in str(error.value)


def test_what_the_media_do_not_have(home):
  clip = str(home / 'clip.mp4')

  def fails(told, **fields):
    given = ask(**fields)
    with pytest.raises((errors.UserError, media.MediaError, OSError), match=told):
      given.row(SYSTEM, given.size(SYSTEM, TRAINED))

  fails('mask_image: nothing in it is white', video=clip, mask_image=str(home / 'black.png'))
  fails('audio: .*mask.mp4 has no sound', audio=str(home / 'mask.mp4'))
  film = dict(tag='@film', video_url=clip, type='extend')
  fails('9 frames at 8 fps', prompt='@film', ref_videos=(film,), frames=65)
  fails('frames: given frames are of a clip', first_frame_image=str(home / 'first.png'), frames=1)
  fails('frames', video=clip, mask_image=str(home / 'mask.png'), frames=33)
  late = dict(image_url=str(home / 'first.png'), time_stamp=0.5)
  fails(r'mid_frame_images\[0\].time_stamp: at 0.5 s there is no frame', mid_frame_images=(late,))


def test_files_that_are_of_no_use_are_told_with_their_field(home):
  clip, mute, none = (str(home / name) for name in ('clip.mp4', 'mask.mp4', 'none.png'))
  (home / 'broken.mp4').write_bytes(b'not a clip')
  sound = str(home / 'sound.wav')
  (home / 'sound.wav').write_bytes(wav.to_bytes(np.zeros((800, 1), np.float32), 8000))
  picture, voice = dict(tag='@a', image_urls=[clip, none]), dict(tag='@a', audio_url=mute)
  for told, fields in (
    (f'video: {home}/broken.mp4: not readable', dict(video=str(home / 'broken.mp4'))),
    (f'first_frame_image: {none}: No such file', dict(first_frame_image=none)),
    (f'end_frame_image: {home}: Is a directory', dict(end_frame_image=str(home))),
    (f'video: {sound} has no picture', dict(video=sound)),
    (f'audio: {mute} has no sound', dict(audio=mute)),
    (f'mask_image: {sound} has no picture', dict(video=clip, mask_image=sound)),
    (f'mask_video: {none}: No such file', dict(video=clip, mask_video=none)),
    (f'mid_frame_images[0].image_url: {none}', dict(mid_frame_images=[dict(image_url=none)])),
    (f'ref_images[0].image_urls[1]: {none}', dict(ref_images=[picture])),
    (
      'ref_images[0].audio_url: ',
      dict(ref_images=[dict(picture, image_urls=[clip], audio_url=mute)]),
    ),
    (f'ref_videos[0].video_url: {none}', dict(ref_videos=[dict(tag='@a', video_url=none)])),
    (f'ref_audios[0].audio_url: {mute} has no sound', dict(ref_audios=[voice])),
  ):
    given = ask(prompt='@a', **fields)
    with pytest.raises(request_rules.RequestError) as error:
      given.check_files()
    assert str(error.value).startswith(told)
    with pytest.raises(request_rules.RequestError):
      given.size(SYSTEM, TRAINED)


def test_a_model_without_sound_is_asked_for_none(home):
  silent, clip = small_run.config('/nowhere', sound=False), str(home / 'clip.mp4')
  system = system_lib.build(silent)
  of = lambda **fields: ask(prompt='@a', **fields).size(system, dict(silent))
  assert of().samples == of(sound=False).samples == 0
  assert of(video=clip, mask_image=clip).frames > 0
  for field, fields in (
    ('sound', dict(sound=True)),
    ('frames', dict(frames=0)),
    ('audio', dict(audio=clip)),
    ('video', dict(video=clip)),
    ('ref_audios[0].audio_url', dict(ref_audios=[dict(tag='@a', audio_url=clip)])),
    (
      'ref_images[0].audio_url',
      dict(ref_images=[dict(PICTURE, image_urls=[clip], audio_url=clip)]),
    ),
  ):
    with pytest.raises(request_rules.RequestError) as error:
      of(**fields)
    assert str(error.value).startswith(f'{field}: ') and 'sound' in str(error.value)


def test_an_empty_name_is_no_file():
  for field, fields in (
    ('mid_frame_images[0].image_url', dict(mid_frame_images=[dict(image_url='')])),
    ('ref_images[0].image_urls[1]', dict(ref_images=[dict(PICTURE, image_urls=[__file__, ''])])),
    ('ref_videos[0].video_url', dict(ref_videos=[dict(tag='@a', video_url='')])),
    ('ref_audios[0].audio_url', dict(ref_audios=[dict(tag='@a', audio_url='')])),
  ):
    told = [problem for name, problem in request_rules.of_files(ask(prompt='@a', **fields))]
    names = [name for name, _ in request_rules.of_files(ask(prompt='@a', **fields))]
    assert (names[-1], told[-1]) == (field, 'it is empty; name a file')


def test_seconds_are_of_sounds(home):
  with pytest.raises(request_rules.RequestError, match='seconds: they are of a sound alone'):
    ask(seconds=5.0).size(SYSTEM, TRAINED)
  assert ask(frames=0, seconds=5.0).size(SYSTEM, TRAINED).samples == 40000


@pytest.mark.parametrize('sides, same', [((32, 48), 1), ((21, 32), 1), ((8, 12), 1), ((48, 48), 0)])
def test_a_mask_is_cut_as_the_video_is(home, tmp_path, sides, same):
  """Of any size; of another aspect, what is white would lie elsewhere."""
  white = np.zeros((*sides, 3), np.uint8)
  white[: sides[0] // 2] = 255
  (tmp_path / 'mask.png').write_bytes(stills.to_png(white))
  given = ask(video=str(home / 'clip.mp4'), mask_image=str(tmp_path / 'mask.png'))
  told = 'mask_image: .* is 48 x 48, and the video 48 x 32: give one of the same aspect'
  with contextlib.nullcontext() if same else pytest.raises(request_rules.RequestError, match=told):
    assert given.row(SYSTEM, given.size(SYSTEM, TRAINED)).known.any()


def test_a_mask_that_is_all_white(home):
  clip = str(home / 'clip.mp4')
  (home / 'white.png').write_bytes(stills.to_png(np.full((32, 48, 3), 255, np.uint8)))
  given = ask(video=clip, mask_image=str(home / 'white.png'))
  with pytest.raises(request_rules.RequestError, match='mask_image: all of it is white'):
    given.row(SYSTEM, given.size(SYSTEM, TRAINED))


def test_a_file_that_breaks_off_is_told_by_its_field(home, monkeypatch):
  """Its header is whole."""
  clip = str(home / 'clip.mp4')

  def broken(path, *_, **__):
    raise media.MediaError(f'{path} ends in the midst of it')

  for name in ('read', 'read_image', 'read_audio'):
    monkeypatch.setattr(media, name, broken)
  picture = dict(PICTURE, image_urls=[clip])
  film, voice = dict(tag='@a', video_url=clip), dict(tag='@a', audio_url=clip)
  for field, fields in (
    ('first_frame_image', dict(first_frame_image=clip)),
    ('end_frame_image', dict(end_frame_image=clip)),
    ('mid_frame_images[0].image_url', dict(mid_frame_images=[dict(image_url=clip)])),
    ('video', dict(video=clip, mask_image=clip)),
    ('audio', dict(audio=clip)),
    ('ref_images[0].image_urls[0]', dict(ref_images=[picture])),
    ('ref_videos[0].video_url', dict(ref_videos=[film])),
    ('ref_videos[0].video_url', dict(ref_videos=[dict(film, type='extend')])),
    ('ref_audios[0].audio_url', dict(ref_audios=[voice])),
  ):
    given = ask(prompt='@a', **fields)
    with pytest.raises(request_rules.RequestError) as error:
      given.row(SYSTEM, given.size(SYSTEM, TRAINED))
    assert str(error.value) == f'{field}: {clip} ends in the midst of it'


def test_a_file_without_a_length_is_told_where_that_matters(home, monkeypatch):
  clip, probe = str(home / 'clip.mp4'), media.probe
  monkeypatch.setattr(media, 'probe', lambda path: dataclasses.replace(probe(path), duration=0.0))
  told = 'lasts no time that can be told; give a clip, or write it again'
  film, voice = dict(tag='@a', video_url=clip), dict(tag='@a', audio_url=clip)
  picture = dict(PICTURE, image_urls=[clip])
  for field, fields in (
    ('video', dict(video=clip)),
    ('ref_videos[0].video_url', dict(ref_videos=[film])),
    ('ref_videos[0].video_url', dict(ref_videos=[dict(film, type='extend')])),
    ('ref_audios[0].audio_url', dict(ref_audios=[voice])),
    ('ref_images[0].audio_url', dict(ref_images=[dict(picture, audio_url=clip)])),
  ):
    with pytest.raises(request_rules.RequestError) as error:
      ask(prompt='@a', **fields).check_files()
    assert str(error.value) == f'{field}: {clip} {told}'
  for fields in (dict(video=clip, frames=5), dict(audio=clip), dict(ref_images=[picture])):
    ask(prompt='@a', **fields).check_files()


@pytest.mark.parametrize('most, name', [(10, 'video'), (15, 'audio')])
def test_a_reference_is_no_longer_than_it_may_be(home, monkeypatch, most, name):
  clip, probe, lasts = str(home / 'clip.mp4'), media.probe, most + 0.05
  monkeypatch.setattr(media, 'probe', lambda path: dataclasses.replace(probe(path), duration=lasts))
  entry = {'tag': '@a', f'{name}_url': clip}
  given = ask(prompt='@a', **{f'ref_{name}s': [entry]})
  given.check_files()
  lasts += 0.1
  with pytest.raises(request_rules.RequestError) as error:
    given.check_files()
  assert str(error.value) == (
    f'ref_{name}s[0].{name}_url: {clip} lasts {lasts:.1f} s; {most} s at most, so cut it'
  )
  ask(prompt='@a', ref_videos=[dict(tag='@a', video_url=clip, type='extend')]).check_files()
  ask(video=clip, audio=clip, mask_image=clip).check_files()
