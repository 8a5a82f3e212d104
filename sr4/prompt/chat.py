"""Structured captions by a chat model, behind any OpenAI-compatible endpoint."""

from collections.abc import Sequence
import dataclasses
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request

from sr4.core import captions
from sr4.prompt import enhancer
from sr4.prompt.enhancer import PromptError

INSTRUCTION = """\
You rewrite a request for a short video clip as one structured caption.
Describe in plain sentences what is seen: subjects, actions, place, light, camera. Mark the rest:
<text></text> writing that is seen, letter by letter
<sfx></sfx> sound effects
<dialogue></dialogue> words spoken; name the speaker in the text before the tag
<singing></singing> words sung
<bgm></bgm> background music
Each tag occurs at least once, empty where there is nothing, and may be repeated. Tags do not nest,
have no attributes and are written exactly so; there are no others. Keep quoted words as they are,
in their language. Keep every reference such as @image_1 and add none. Without sound leave <sfx>,
<dialogue>, <singing> and <bgm> empty. Answer with the caption alone, without a code fence.
Example:
"""
EXAMPLE = (
  'The request: Length: 5 seconds. Sound: yes. References: @image_1.',
  'Prompt: @image_1 opens her cafe in the morning and says "Good morning!"',
  'The caption: At dawn @image_1 unlocks the glass door of a small cafe and turns to the camera as '
  'it slowly moves closer. A wooden sign swings above her: <text>CAFE</text> She smiles and says: '
  '<dialogue>Good morning!</dialogue> <sfx>keys jingling, a door bell</sfx> <singing></singing> '
  '<bgm>soft acoustic guitar</bgm>',
)
_QUOTES = ('"', '\u201c', '\u201d')
_MOST = 1 << 20  # bytes of an answer
_PASSING = (408, 429, 500, 502, 503, 504)  # HTTP codes that pass


@dataclasses.dataclass(frozen=True)
class ChatEnhancer:
  """Asks an OpenAI-compatible chat model.  An answer against the grammar goes back to it once.

  Raises, when called:
    PromptError: with what the endpoint answered; nothing else stands in for it.
  """

  url: str  # up to /v1, as in http://localhost:8000/v1
  model: str
  key: str | None = dataclasses.field(default=None, repr=False)  # NAME of an environment variable
  timeout: float = 60  # seconds without a byte
  retries: int = 2  # after a broken connection, a timeout or a code that passes

  def __post_init__(self):
    if not (re.fullmatch(r'https?://[^/\s]\S*', self.url) and self.url.isascii()):
      raise PromptError(f'url={self.url!r}: give one of http or https, as http://localhost:8000/v1')
    if self.timeout <= 0 or self.retries < 0:
      raise PromptError(f'timeout={self.timeout} must be above 0, retries={self.retries} 0 or more')
    if self.key is not None and not re.fullmatch(r'[A-Za-z_]\w*', self.key):
      raise PromptError('key is the name of an environment variable, not the key; give its name')

  def __call__(
    self, prompt: str, *, seconds: float, sound: bool, references: tuple[str, ...]
  ) -> str:
    if enhancer.is_structured(prompt, references):
      return prompt
    named = ', '.join(f'@{kind}_{n}' for kind, n in captions.references(prompt)) or 'none'
    request = (
      f'Length: {seconds:g} seconds. Sound: {"yes" if sound else "no"}. References: {named}.\n'
      f'Prompt: {prompt}'
    )
    messages = [
      {'role': 'system', 'content': INSTRUCTION + '\n'.join(EXAMPLE)},
      {'role': 'user', 'content': request},
    ]
    for _ in range(2):
      answer, whole = self._ask(messages)
      problems = [] if whole else ['it is cut off; write a shorter one']
      problems += _problems(answer, prompt, sound, references)
      if not problems:
        return answer
      told = f'That is no right caption: {"; ".join(problems[:8])}. Write it again, whole.'
      messages += [{'role': 'assistant', 'content': answer}, {'role': 'user', 'content': told}]
    raise PromptError(
      f'{self._url()} answered twice with no structured caption ({"; ".join(problems[:3])}): '
      f'{self._quoted(answer)}; give another model, or a structured prompt'
    )

  def _ask(self, messages: list[dict]) -> tuple[str, bool]:
    """(the text of the answer, is it whole?), after as many tries as it takes."""
    data = json.dumps({'model': self.model, 'messages': messages}).encode()
    for left in range(self.retries, -1, -1):
      try:
        code, body = self._post(data)
      except (OSError, http.client.HTTPException) as error:
        code, failure = None, f'did not answer: {getattr(error, "reason", error) or error!r}'
      else:
        if code < 300:
          return self._content(body)
        failure = f'answered HTTP {code}: {self._quoted(body.decode(errors="replace"))}'
      if not left or code not in (None, *_PASSING):
        break
      time.sleep(0.2 * 2 ** (self.retries - left))
    raise PromptError(
      f'{self._url()} {failure}; check that it runs and serves {self.model!r}, or do without the '
      'enhancer'
    )

  def _post(self, data: bytes) -> tuple[int, bytes]:
    """HTTP code and body."""
    request = urllib.request.Request(
      self._url(), data, {'Content-Type': 'application/json', 'User-Agent': 'sr4'}
    )
    if self.key:  # Not passed on where the endpoint redirects to another host.
      request.add_unredirected_header('Authorization', f'Bearer {self._secret()}')
    try:
      response = urllib.request.urlopen(request, timeout=self.timeout)
    except urllib.error.HTTPError as error:
      response = error
    with response:
      return response.status, response.read(_MOST + 1)

  def _content(self, body: bytes) -> tuple[str, bool]:
    text = body.decode(errors='replace')
    try:
      if len(body) > _MOST:
        raise ValueError(f'over {_MOST} bytes')
      choice = json.loads(text)['choices'][0]
      content = choice['message']['content']
      if isinstance(content, list):  # In parts.
        content = ''.join(part['text'] for part in content)
      if not isinstance(content, str):
        raise TypeError('content is no text')
      return content.strip(), choice.get('finish_reason') != 'length'
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
      raise PromptError(
        f'{self._url()} answered no chat completion: {self._quoted(text)}; give the url of an '
        'OpenAI-compatible server up to /v1'
      ) from None

  def _url(self) -> str:
    return f'{self.url.rstrip("/")}/chat/completions'

  def _secret(self) -> str:
    secret = os.environ.get(self.key, '').strip()
    if not secret or not secret.isascii() or not secret.isprintable():
      raise PromptError(
        f'the environment variable {self.key} is unset or holds no key; set it to the key'
      )
    return secret

  def _quoted(self, text: str) -> str:
    """The beginning of an answer, without the key: some servers repeat it."""
    if self.key:
      text = text.replace(self._secret(), '***')
    return repr(text if len(text) <= 300 else f'{text[:300]}...')


def _problems(answer: str, prompt: str, sound: bool, references: Sequence[str]) -> list[str]:
  problems = captions.validate(answer, structured=True)
  try:
    captions.check_references(answer, references)
  except captions.CaptionError as error:
    problems.append(str(error))
  if '```' in answer:
    problems.append('a code fence; answer with the caption alone')
  if captions.UNWRITABLE.search(answer):
    problems.append('control characters, or half a surrogate pair; take them out')
  if answer.startswith(('{', '[')) or (answer[:1] in _QUOTES and answer[-1:] in _QUOTES):
    problems.append('it is in brackets or quotes; answer with the caption alone')
  if not problems:
    problems += _lost(answer, prompt)
  if not problems and not sound:
    filled = [tag for tag in captions.HEARD if captions.parse(answer).texts(tag)]
    problems += [f'<{tag}> is filled, but the clip has no sound; leave it empty' for tag in filled]
  return problems


def _lost(answer: str, prompt: str) -> list[str]:
  """What the instruction wants, and a caption of right grammar has not."""
  tags = [f'<{tag}>' for tag in captions.TAGS if f'<{tag}>' not in answer]
  problems = [f'{" ".join(tags)}: each tag occurs once at least, empty where there is nothing']
  problems = problems if tags else []
  if not re.sub(r'<(\w+)>.*?</\1>', '', answer, flags=re.DOTALL).strip():
    problems.append('no word of what is seen; describe it outside of the tags')
  plain = lambda text: ' '.join(re.sub(r'[^\w\s]', '', text).casefold().split())
  for quoted in re.findall(r'["\u201c]([^"\u201c\u201d]+)["\u201d]', prompt):
    if plain(quoted) not in plain(answer):
      problems.append(f'the quoted words "{quoted}" are gone; keep them as they are')
  return problems
