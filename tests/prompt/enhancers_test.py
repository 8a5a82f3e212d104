"""sr4/prompt/: what enhancers return is in the grammar, and they say when they cannot."""

import http.server
import json
import re
import threading
import time

import numpy as np
import pytest

from data_pipelines import world
from sr4.core import captions
from sr4.prompt import chat
from sr4.prompt import enhancer
from sr4.prompt import rules

GOOD = (
  'A man waves: <dialogue>Hi!</dialogue> <text></text> <sfx></sfx> <singing></singing> <bgm></bgm>'
)
EMPTY = ' '.join(f'<{tag}></{tag}>' for tag in captions.TAGS)
SECRET = 'sk-do-not-tell'


def ruled(text: str, sound=True, references=()) -> captions.Structured:
  caption = rules.RuleBased()(text, seconds=5, sound=sound, references=references)
  assert captions.validate(caption, structured=True) == []
  return captions.parse(caption)


@pytest.mark.parametrize(
  'text, tag, told',
  [
    ('A woman says "hello there" and leaves', 'dialogue', ['hello there']),
    ('A woman says "hi" and a man replies, "bye!"', 'dialogue', ['hi', 'bye!']),
    ('"Where to?" asks Ann, "home?"', 'dialogue', ['Where to?', 'home?']),
    ('A boy says "yes", "no" and "maybe"', 'dialogue', ['yes', 'no', 'maybe']),
    ("A boy says 'I don't know' to the dogs' owner", 'dialogue', ["I don't know"]),
    ('Anna: “Come in.”', 'dialogue', ['Come in.']),
    ('She sings "La la la" on stage', 'singing', ['La la la']),
    ('"La la", he hums', 'singing', ['La la']),
    ('a sign that reads "OPEN"', 'text', ['OPEN']),
    ('a jar labeled "TEA"', 'text', ['TEA']),
    ('a sign that says "FREE HUGS" at dawn', 'text', ['FREE HUGS']),
    ('a "SALE" sign in a window', 'text', ['SALE']),
    ('The word MOON stands at the top', 'text', ['MOON']),
    ('她说：“你好，世界”，挥手', 'dialogue', ['你好，世界']),
    ('招牌上写着“营业中”', 'text', ['营业中']),
    ('他唱道：「月亮」', 'singing', ['月亮']),
    ('彼女は「こんにちは」と言う', 'dialogue', ['こんにちは']),
    ('「開店」と書かれた看板', 'text', ['開店']),
    ('Ein Mann sagt: „Guten Morgen“', 'dialogue', ['Guten Morgen']),
    ('Ein Schild mit der Aufschrift „Bäckerei“', 'text', ['Bäckerei']),
    ('Er ruft »Halt!«', 'dialogue', ['Halt!']),
    ('Une femme dit « Bonjour » et sourit', 'dialogue', ['Bonjour']),
  ],
)
def test_quotations(text, tag, told):
  said = ruled(text)
  assert {t: list(said.texts(t)) for t in ('text', 'dialogue', 'singing')} == {
    'text': [],
    'dialogue': [],
    'singing': [],
    tag: told,
  }


@pytest.mark.parametrize(
  'text, effects, music',
  [
    ('An old brown dog loudly barks in the rain', 'the old brown dog barking; rain falling', ''),
    ('Footsteps, then applause', 'footsteps; applause', ''),
    ('A ball bounces while an engine runs', 'the ball bouncing; an engine running', ''),
    ('The phone rings. Two dogs bark.', 'the phone ringing; the dogs barking', ''),
    ('A party with soft piano music', '', 'soft piano music'),
    ('A girl plays the old violin', '', 'old violin'),
    # Nothing is heard of these.
    ('A red ring on bark, a piano in a hall, a traffic light', '', ''),
    ('A street without rain and with no loud music', '', ''),
    ('No rain or thunder, not a dog barking', '', ''),
    ("It isn't raining; there is no sound of traffic", '', ''),
    ('A woman wearing gold rings, two wedding rings and a wind turbine', '', ''),
    ('Red bell peppers. Music: none. Sound: nothing.', '', ''),
    ('A piano and soft music. Sound: rain. Music: none.', 'rain', ''),
    ('Without a word the old phone rings', 'the old phone ringing', ''),
    ('A man reads "Rain and jazz music" and the word JAZZ', '', ''),
    ('He said he bought a new "thing" yesterday', '', ''),
    ('A "loud" man says hello', '', ''),
    ('A "vintage" car; a man sings to a 12" and a 10" pizza', '', ''),
  ],
)
def test_sounds_and_music(text, effects, music):
  said = ruled(text)
  assert ('; '.join(said.texts('sfx')), '; '.join(said.texts('bgm'))) == (effects, music)
  assert not said.texts('dialogue') and not said.texts('singing')


def test_form_is_that_of_the_world():
  form = '<text></text> <sfx>{}</sfx> <dialogue></dialogue> <singing></singing> <bgm></bgm>'
  for text, chimes in (
    ('a red circle bounces', 'a low pure chime of the red circle'),
    ('an orange ring bounces around', 'a high bell-like chime of the orange ring'),
    (
      'a green cross and a blue ring bounce',
      'a bright chime of the green cross; a high hollow chime of the blue ring',
    ),
    ('a red circle glides', ''),
  ):
    made = rules.RuleBased()(text, seconds=2, sound=True, references=())
    assert made == f'{text[0].upper()}{text[1:]}. {form.format(chimes)}'


@pytest.mark.parametrize('changes', [{}, {'talker': 0.7, 'text': 0.7, 'music': 0.5, 'cuts': 0.5}])
def test_captions_of_the_world_are_recovered(changes):
  """Long ones in full; of short ones all that rings, in the world's own words."""
  samples = world.World(world.Config(height=16, width=16, fps=2, frames=6, **changes), 3)
  for i in range(150):
    said = samples[i].captions
    made = rules.RuleBased()(said['long'], seconds=3, sound=True, references=())
    assert made == said['structured']
    if 'bounce' in said['short'] and ', then ' not in said['short']:
      true = captions.parse(said['structured']).texts('sfx')[0]
      short = ruled(said['short']).texts('sfx')[0].split('; ')
      chimes = {re.split(r' at | \d+ times ', effect)[0] for effect in true.split('; ')}
      assert chimes - {'wind'} <= set(short)


def test_without_sound_only_writing_is_marked_and_nothing_is_lost():
  text = 'A dog barks, a man says "hi" under a sign "OPEN". Music: slow jazz.'
  silent = ruled(text, sound=False)
  assert silent.visual.strip() == text and silent.texts('text') == ('OPEN',)
  assert not any(silent.texts(tag) for tag in captions.HEARD)
  heard = ruled(text)
  assert heard.texts('bgm') == ('slow jazz',) and 'jazz' not in heard.visual


def test_structured_comes_back_unchanged_and_references_survive():
  for sound in (True, False):
    made = rules.RuleBased()(GOOD, seconds=5, sound=sound, references=())
    assert made == GOOD
  text = '@image_1 speaks like @audio_1 in the style of @video_1. Sound: steps of @image_1.'
  made = rules.RuleBased()(text, seconds=5, sound=True, references=('image', 'video', 'audio'))
  assert captions.references(made) == captions.references(text)
  with pytest.raises(captions.CaptionError, match='@image_1 is given'):
    rules.RuleBased()('a dog', seconds=5, sound=True, references=('image',))
  with pytest.raises(captions.CaptionError, match='did you mean <sfx>'):
    rules.RuleBased()('a dog <sfxx>barks</sfxx>', seconds=5, sound=True, references=())


def test_any_free_text_becomes_a_caption():
  random = np.random.default_rng(0)
  pieces = 'Heard: |The voice says |a red circle| bounces|OPEN|word |rain |. | says | sings | sign '
  pieces = [*pieces.split('|'), 'music', 'text', '说', *'"“”「」«»‘’„<>/,x3@: 。\n', "'"]
  made = 0
  for _ in range(1500):
    text = ''.join(random.choice(pieces, random.integers(1, 25)))
    if not captions.validate(text, structured=False):
      first = ruled(text)
      made += 1
      assert ruled(text) == first and ruled(captions.format(first)) == first
  assert made > 1000
  for text in (
    '"' * 5001,
    '“' * 20_000,
    "'a " * 5000,
    'a' * 50_000,
    'dog bark ' * 2000,
    'x, ' * 9000,
  ):
    ruled(text)


class Endpoint:
  """A local server that gives prepared answers; the last one again and again."""

  def __init__(self, *answers):
    self.answers, self.requests = list(answers), []
    endpoint = self

    class Handler(http.server.BaseHTTPRequestHandler):
      def do_POST(self):
        body = self.rfile.read(int(self.headers.get('Content-Length', 0)))
        endpoint.requests.append((self.path, dict(self.headers), json.loads(body or 'null')))
        answers = endpoint.answers
        code, body = answers.pop(0) if len(answers) > 1 else answers[0]
        if code is None:
          time.sleep(body)
          return
        self.send_response(code)
        if 300 <= code < 400:
          self.send_header('Location', body)
          body = ''
        self.end_headers()
        self.wfile.write(body.encode())

      do_GET = do_POST  # What follows a redirection.

      def log_message(self, *_):
        pass

    self.server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    self.url = f'http://127.0.0.1:{self.server.server_port}/v1'
    threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def serve(monkeypatch):
  monkeypatch.setenv('no_proxy', '*')
  started = []

  def start(*answers):
    started.append(Endpoint(*answers))
    return started[-1]

  yield start
  for endpoint in started:
    endpoint.server.shutdown()
    endpoint.server.server_close()


def says(content) -> tuple[int, str]:
  return 200, json.dumps({'choices': [{'message': {'role': 'assistant', 'content': content}}]})


def asked(endpoint, text='a man waves', sound=True, references=(), **fields) -> str:
  enhance = chat.ChatEnhancer(endpoint.url, 'some-model', **fields)
  return enhance(text, seconds=5, sound=sound, references=references)


def test_chat_good_answer(serve):
  endpoint = serve(says(f'\n{GOOD} '))
  assert asked(endpoint) == GOOD
  ((path, headers, body),) = endpoint.requests
  assert path == '/v1/chat/completions' and 'Authorization' not in headers
  assert body['model'] == 'some-model'
  system, user = (message['content'] for message in body['messages'])
  assert all(f'<{tag}></{tag}>' in system for tag in captions.TAGS)
  assert user == 'Length: 5 seconds. Sound: yes. References: none.\nPrompt: a man waves'
  assert asked(endpoint, GOOD + ' x') == GOOD + ' x' and len(endpoint.requests) == 1


def test_the_example_of_the_instruction_obeys_it():
  example = chat.EXAMPLE[-1].removeprefix('The caption: ')
  assert captions.validate(example, structured=True) == []
  assert {span.tag for span in captions.parse(example).spans} == set(captions.TAGS)
  captions.check_references(example, ('image',))


@pytest.mark.parametrize(
  'bad, told, given',
  [
    ('A man <sfx>wind', 'it is never closed', {}),
    ('A man waves.', 'no tag', {}),
    (f'```\n{GOOD}\n```', 'a code fence', {}),
    (f'{GOOD} @image_1', 'names @image_1', {}),
    (GOOD, '@image_1 is given', {'text': '@image_1 waves', 'references': ('image',)}),
    (GOOD, '<dialogue> is filled', {'sound': False}),
    (GOOD.replace('<bgm></bgm>', ''), '<bgm>: each tag occurs once at least', {}),
    (EMPTY, 'no word of what is seen', {}),
    (json.dumps({'caption': GOOD}), 'it is in brackets or quotes', {}),
    (f'"{GOOD}"', 'it is in brackets or quotes', {}),
    (f'{GOOD} \x00', 'control characters', {}),
    (f'A man. {EMPTY}', 'the quoted words "Hello, Bob" are gone', {'text': 'he says "Hello, Bob"'}),
  ],
)
def test_chat_bad_answer_goes_back_once_with_the_problem(serve, bad, told, given):
  name = ' @image_1' if given.get('references') else ''
  good = f'A man. {EMPTY}{name} {given.get("text", "")}'.strip()
  endpoint = serve(says(bad), says(good))
  assert asked(endpoint, **given) == good
  messages = endpoint.requests[1][2]['messages']
  assert [m['role'] for m in messages] == ['system', 'user', 'assistant', 'user']
  assert messages[2]['content'] == bad.strip() and told in messages[3]['content']


def test_an_answer_that_is_cut_off_goes_back(serve):
  code, body = says(GOOD)
  cut = json.loads(body)
  cut['choices'][0]['finish_reason'] = 'length'
  endpoint = serve((code, json.dumps(cut)), says(GOOD))
  assert asked(endpoint) == GOOD
  assert 'it is cut off; write a shorter' in endpoint.requests[1][2]['messages'][3]['content']


def test_an_answer_may_come_in_parts(serve):
  parts = [{'type': 'text', 'text': part} for part in (GOOD[:9], GOOD[9:])]
  assert asked(serve(says(parts))) == GOOD


def test_chat_always_bad_is_an_error_with_the_answer(serve):
  endpoint = serve(says('A man <sfx>wind'))
  with pytest.raises(enhancer.PromptError, match="answered twice.*never closed.*'A man <sfx>wind'"):
    asked(endpoint)
  assert len(endpoint.requests) == 2


@pytest.fixture
def no_pauses(monkeypatch):
  pauses = []
  monkeypatch.setattr(chat.time, 'sleep', pauses.append)
  return pauses


def test_chat_failures_that_pass_are_tried_again(serve, no_pauses):
  endpoint = serve((500, 'busy'), (429, 'slowly'), says(GOOD))
  assert asked(endpoint) == GOOD and len(no_pauses) == 2
  endpoint = serve((500, 'out of memory'))
  with pytest.raises(enhancer.PromptError, match="HTTP 500: 'out of memory'"):
    asked(endpoint, retries=1)
  assert len(endpoint.requests) == 2
  endpoint = serve((404, 'no such model'))
  with pytest.raises(enhancer.PromptError, match="HTTP 404: 'no such model'"):
    asked(endpoint)
  assert len(endpoint.requests) == 1


def test_chat_timeout_and_nobody_there(serve):
  endpoint = serve((None, 0.5))
  with pytest.raises(enhancer.PromptError, match='did not answer: .*timed out'):
    asked(endpoint, timeout=0.1, retries=0)
  endpoint.server.server_close()
  endpoint.url = 'http://127.0.0.1:9/v1'
  with pytest.raises(enhancer.PromptError, match='127.0.0.1:9/v1/chat/completions did not answer'):
    asked(endpoint, retries=0)


@pytest.mark.parametrize(
  'body',
  [
    '<html>',
    '[]',
    '{"choices": []}',
    '{"choices": [{"message": {"content": null}}]}',
    '3',
    '[' * 99_999,
  ],
)
def test_chat_answers_that_are_no_completion(serve, body):
  with pytest.raises(enhancer.PromptError, match='answered no chat completion') as error:
    asked(serve((200, body)))
  assert repr(body[:300])[:-1] in str(error.value) and len(str(error.value)) < 600


def test_the_key_is_sent_and_told_to_nobody(serve, monkeypatch, capfd):
  monkeypatch.setenv('SOME_KEY', f'{SECRET}\n')
  endpoint = serve(says(GOOD))
  assert asked(endpoint, key='SOME_KEY') == GOOD
  assert endpoint.requests[0][1]['Authorization'] == f'Bearer {SECRET}'
  told = []
  for answer in ((401, f'wrong key {SECRET}'), (200, SECRET), says(f'<sfx> {SECRET}')):
    with pytest.raises(enhancer.PromptError) as error:
      asked(serve(answer), key='SOME_KEY')
    told.append(str(error.value))
  other = serve((401, ''))
  with pytest.raises(enhancer.PromptError):
    asked(serve((302, f'{other.url}/x')), key='SOME_KEY')
  ((path, headers, _),) = other.requests
  assert path == '/v1/x' and 'Authorization' not in headers
  captured = capfd.readouterr()
  assert SECRET not in ''.join([*told, captured.out, captured.err])
  assert all('***' in t for t in told)


def test_wrong_fields_and_a_missing_key(serve, monkeypatch):
  monkeypatch.delenv('SOME_KEY', raising=False)
  monkeypatch.setenv('ODD_KEY', 'a\nb')
  for key in ('SOME_KEY', 'ODD_KEY'):
    with pytest.raises(enhancer.PromptError, match=f'variable {key} is unset or holds no key'):
      asked(serve((200, '')), key=key)
  with pytest.raises(enhancer.PromptError, match='is the name of an environment variable') as error:
    chat.ChatEnhancer('http://x/v1', 'm', key=SECRET)
  assert SECRET not in str(error.value)
  for fields in ({'timeout': 0}, {'retries': -1}, {'url': 'file:///etc/passwd'}, {'url': 'x.org'}):
    with pytest.raises(enhancer.PromptError):
      chat.ChatEnhancer(**({'url': 'http://x/v1', 'model': 'm'} | fields))
