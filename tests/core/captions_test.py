"""sr4/core/captions.py: the grammar is exact both ways, and says what is wrong with what is not."""

import numpy as np
import pytest

from data_pipelines import world
from sr4.core import captions

EVENING = (
  'A woman says <dialogue>Good evening.</dialogue> <sfx>applause</sfx> and bows. <bgm></bgm>'
)
PLAIN = (
  'a < b',
  '<3',
  'x<y',
  '<-',
  '<<',
  '</>',
  '1 <= 2',
  '<_<',
  'if a <b and c> d',
  '< text',
  '\ud800\0',
)


def _valid(random) -> tuple[str, captions.Structured]:
  """A caption put together at random, and what it must be taken apart into."""
  words = ['', ' ', 'rain', 'a < b', '<3', '你好', '@image_1', '\n', '>', '/', '< ']
  say = lambda: ''.join(random.choice(words, random.integers(4)))
  text, visual, spans = '', '', []
  for _ in range(random.integers(6)):
    between, tag, inside = say(), str(random.choice(captions.TAGS)), say()
    visual += between
    spans.append(captions.Span(tag, inside, len(visual)))
    text += f'{between}<{tag}>{inside}</{tag}>'
  end = say()
  return text + end, captions.Structured(visual + end, tuple(spans))


def test_parts_of_a_caption():
  s = captions.parse(EVENING)
  assert s.visual == 'A woman says   and bows. '
  assert s.spans == (
    captions.Span('dialogue', 'Good evening.', 13),
    captions.Span('sfx', 'applause', 14),
    captions.Span('bgm', '', 25),
  )
  assert s.texts('dialogue') == ('Good evening.',) and s.texts('bgm') == () == s.texts('text')
  assert captions.parse('a <sfx>x</sfx><sfx> </sfx><sfx>y</sfx>').texts('sfx') == ('x', 'y')


def test_parse_and_format_are_inverse_on_valid_captions():
  random = np.random.default_rng(0)
  tagged = 0
  for _ in range(2000):
    text, expected = _valid(random)
    assert captions.parse(text) == expected, text
    assert captions.format(captions.parse(text)) == text
    tagged += len(expected.spans)
  assert tagged > 2000


def test_any_text_is_a_caption_or_a_caption_error():
  random = np.random.default_rng(1)
  pieces = ['<', '>', '/', ' ', '</', '@', 'image_1', 'x', '\0', 'é', *captions.TAGS]
  pieces += [f'<{tag}>' for tag in captions.TAGS] + [f'</{tag}>' for tag in captions.TAGS]
  outcomes = {True: 0, False: 0}
  for trial in range(6000):
    if trial % 3:
      text = ''.join(random.choice(pieces, random.integers(1, 12)))
    elif trial % 2:
      text = random.bytes(40).decode('utf-8', 'surrogateescape')
    else:
      text = ''.join(map(chr, random.integers(0, 0x3000, 30)))
    problems = captions.validate(text, structured=False)
    try:
      parsed = captions.parse(text)
    except captions.CaptionError as error:
      assert problems and problems[0] in str(error)
      outcomes[False] += 1
    else:
      assert captions.format(parsed) == text
      outcomes[True] += 1
  assert min(outcomes.values()) > 1000
  for text in (b'<sfx>', None, 3):
    with pytest.raises(captions.CaptionError, match='is no text'):
      captions.parse(text)


@pytest.mark.parametrize(
  'text',
  [
    '<' * 200_000,
    '<a' * 100_000,
    '<' + 'a' * 200_000,
    '<sfx>' * 5000,
    '</sfx>' * 5000,
    '<   ' * 50_000,
  ]
  + [
    '<sfx>' * 3000 + '</bgm>' * 3000,
    '@image_' + '9' * 200_000,
    '@image_1' * 20_000,
    '<text ' * 20_000,
  ],
  ids=lambda text: text[:8],
)
def test_long_and_hostile_texts_come_to_an_end(text):
  captions.validate(text, structured=True)
  captions.references(text)


@pytest.mark.parametrize('text', PLAIN)
def test_a_stray_sign_is_plain_text(text):
  for whole in (text, f'{text}<sfx>{text}</sfx>{text} '):
    assert captions.format(captions.parse(whole)) == whole
  assert captions.parse(text).visual == text


@pytest.mark.parametrize(
  'text, told',
  [
    ('ab <sfx>rain', "character 4, '<sfx>': it is never closed; write </sfx>"),
    ('ab rain</sfx>', "character 8, '</sfx>': no <sfx> is open here; write <sfx> before"),
    ('<sfx>a</bgm>', "character 7, '</bgm>': <sfx> of character 1 is open here; write </sfx>"),
    ('<sfx>a<bgm>b</bgm></sfx>', "character 7, '<bgm>': <sfx> of character 1 is open, and tags do"),
    (
      '<sfx>a<sfx>',
      "character 7, '<sfx>': <sfx> of character 1 is open, and tags do not nest; write",
    ),
    (
      '<dialoge>hi</dialoge>',
      "character 1, '<dialoge>': there is no such tag; did you mean <dialogue>?",
    ),
    ('</singin>', 'did you mean </singing>?'),
    ('<br>', 'there is no such tag; there are <text></text>, <sfx></sfx>'),
    ('<音乐>', 'there is no such tag; there are'),
    ('<Text>A</Text>', 'tags are lower case; write <text>'),
    ('< sfx >', 'nothing but its name between < and >; write <sfx>'),
    ('</ sfx>', 'write </sfx>'),
    ('<dialogue who="Ann">', 'nothing but its name between < and >; write <dialogue>'),
    ('<bgm/>', 'a tag has no short form; write <bgm></bgm>'),
    ('<sfx>rain</sfx', "character 10, '</sfx': a tag ends with"),
  ],
)
def test_errors_say_place_rule_and_fix(text, told):
  with pytest.raises(captions.CaptionError) as error:
    captions.parse(text)
  assert str(error.value).startswith('caption, character ') and told in str(error.value)


def test_validate_gives_all_problems_and_one_for_one_fault():
  assert len(captions.validate('<sfx>a<bgm>b</bgm></sfx>', True)) == 1
  assert len(captions.validate('<sfx>a</bgm> b', True)) == 1
  many = captions.validate('<sfxx> <sfx> @image_2 @Image1 </bgm> <text>', True)
  for problem in ('<sfxx>', 'write </sfx>', '<text>', '@image_2 stands without', 'write @image_1'):
    assert any(problem in p for p in many), problem
  assert len(many) == 5
  assert captions.validate('free text', structured=False) == []
  assert 'no tag' in captions.validate('free text', structured=True)[0]
  assert captions.validate(EVENING, structured=True) == []


@pytest.mark.parametrize(
  'visual, span',
  [
    ('abc', captions.Span('sfx', '</sfx>', 0)),
    ('abc', captions.Span('sfx', '<bgm>', 0)),
    ('abc', captions.Span('noise', 'rain', 0)),
    ('abc', captions.Span('sfx', 'rain', 4)),
    ('abc', captions.Span('sfx', 'rain', -1)),
    ('<sfx></sfx>', captions.Span('sfx', 'rain', 0)),
  ],
)
def test_format_refuses_what_would_not_come_back(visual, span):
  with pytest.raises(captions.CaptionError):
    captions.format(captions.Structured(visual, (span,)))


def test_references():
  text = (
    '@image_2 and @image_1中的人, @audio_1. me@image_3.org @image_1 @image_4th @image_0 @video_02'
  )
  assert captions.references(text) == (('image', 2), ('image', 1), ('audio', 1))
  assert len(captions.validate(text, False)) == 2  # @image_0, @video_02
  captions.check_references('@image_1 hits @image_2 to @audio_1', ('image', 'audio', 'image'))
  captions.check_references('nobody, mail me@home', ())


@pytest.mark.parametrize(
  'text, kinds, told',
  [
    ('a dog', ('image',), '@image_1 is given, but the prompt does not name it'),
    ('@image_1', ('image', 'image'), '@image_2 is given'),
    ('@image_1', (), 'names @image_1, but 0 of kind image are given'),
    ('@image_1 @image_3', ('image', 'image'), 'names @image_3, but 2'),
    ('@image1', ('image',), 'nearly a reference; write @image_1'),
    ('@Video_2 @video_1', ('video',), 'write @video_2'),
    ('@image_1', ('picture',), "'picture'; there are image, video, audio"),
  ],
)
def test_references_that_do_not_fit(text, kinds, told):
  with pytest.raises(captions.CaptionError) as error:
    captions.check_references(text, kinds)
  assert told in str(error.value)


def test_choose_by_shares():
  have = {'short': 's', 'long': 'l', 'structured': 't'}
  shares = {'short': 1.0, 'long': 2.0, 'structured': 1.0}
  drawn = [captions.choose(have, shares, (i + 0.5) / 400) for i in range(400)]
  assert {x: drawn.count(x) for x in 'slt'} == {'s': 100, 'l': 200, 't': 100}
  drawn = [captions.choose(have | {'long': ''}, shares, (i + 0.5) / 400) for i in range(400)]
  assert {x: drawn.count(x) for x in 'slt'} == {'s': 200, 'l': 0, 't': 200}
  rounds = {'short': 0.1, 'long': 0.1, 'structured': 0.4}  # Subtracted in turn they leave 0.
  assert captions.choose(have, rounds, 1 - 2**-53) == 't'
  assert captions.choose(have, {'short': 0.0, 'long': 1.0}, 0.0) == 'l'


def test_choose_without_any_wanted():
  assert captions.choose({'caption': 'c'}, {'short': 1.0}, 0.5) == 'c'
  assert captions.choose({'long': 'l', 'caption': 'c'}, {'short': 1.0}, 0.5) == 'c'
  assert captions.choose({'short': '', 'long': 'l'}, {'short': 1.0}, 0.5) == 'l'
  assert captions.choose({}, {'short': 1.0}, 0.5) == ''
  for share in (-1.0, float('nan')):
    with pytest.raises(captions.CaptionError, match='give 0 or more'):
      captions.choose({'short': 's'}, {'short': share}, 0.5)


@pytest.mark.parametrize('changes', [{}, {'talker': 1.0, 'text': 1.0, 'music': 1.0, 'cuts': 1.0}])
def test_captions_of_the_world_are_in_the_grammar(changes):
  samples = world.World(world.Config(height=16, width=16, fps=2, frames=6, **changes), 11)
  for i in range(150):
    text = samples[i].captions['structured']
    assert captions.validate(text, structured=True) == []
    parsed = captions.parse(text)
    assert tuple(span.tag for span in parsed.spans) == captions.TAGS
    assert captions.format(parsed) == text
    assert samples[i].captions['long'].startswith(parsed.visual.strip())
