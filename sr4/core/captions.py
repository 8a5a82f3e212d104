"""Captions: the grammar of structured ones, tags of references, and which caption a step reads.

    On a stage a woman says <dialogue>Good evening.</dialogue> <sfx>applause</sfx> <bgm></bgm>

A structured caption is a visual description with spans in it that are shown as writing or heard.
A span may be empty, repeated, or stand in the midst of the description: what precedes a line of
dialogue may name its speaker.  Spans do not nest.  A '<' that begins no tag is plain text.
References given with a prompt are named in it: @image_1, @video_1, @audio_1, from 1 for each kind.
"""

import collections
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import difflib
import re

from sr4.core import errors

TAGS = ('text', 'sfx', 'dialogue', 'singing', 'bgm')  # SPEC section 3, in the order of writing
HEARD = TAGS[1:]
# What no file can hold of a prompt: control characters, halves of surrogate pairs, no characters.
UNWRITABLE = re.compile('[\0-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]')
KINDS = ('image', 'video', 'audio')  # of references

# What may be meant as a tag.  Possessive, so that the time is linear in the text.
_MARKUP = re.compile(r'<(\s*+)(/?+)(\s*+)([^\W\d][\w-]*+)([^<>]*+)(>?+)')
# ASCII at the borders: other scripts set no spaces around a tag.
_REFERENCE = re.compile(
  rf'(?<![A-Za-z0-9])@({"|".join(KINDS)})_([1-9][0-9]{{0,3}})(?![A-Za-z0-9_])'
)
_NEARLY = re.compile(rf'(?i)(?<![A-Za-z0-9])@({"|".join(KINDS)})[ _-]?([0-9]++)(?![A-Za-z0-9_])')


class CaptionError(errors.UserError):
  """A caption against the grammar, or reference tags that do not fit what is given."""


@dataclasses.dataclass(frozen=True)
class Span:
  """Words between <tag> and </tag>."""

  tag: str
  text: str
  at: int  # characters of the visual description before it


@dataclasses.dataclass(frozen=True)
class Structured:
  """A caption taken apart; `format` joins it."""

  visual: str  # all that stands outside the tags
  spans: tuple[Span, ...]  # in the order of the text

  def texts(self, tag: str) -> tuple[str, ...]:
    """What the spans of one tag say, without empty ones."""
    return tuple(span.text for span in self.spans if span.tag == tag and span.text.strip())


def parse(text: str) -> Structured:
  """Takes a caption apart; free text has no spans.  format(parse(text)) == text.

  Raises:
    CaptionError: the first place where a tag is misspelt, unknown, nested, unopened or unclosed.
  """
  structured, problems = _scan(text)
  if problems:
    raise CaptionError(f'caption, {problems[0]}')
  return structured


def format(structured: Structured) -> str:
  """The text of a caption.  parse(format(structured)) == structured.

  Raises:
    CaptionError: there is no such text, as where a span's words have tags in them.
  """
  pieces, place = [], 0
  for span in structured.spans:
    pieces += [structured.visual[place : span.at], f'<{span.tag}>{span.text}</{span.tag}>']
    place = span.at
  text = ''.join([*pieces, structured.visual[place:]])
  if parse(text) != structured:
    raise CaptionError(
      f'{structured!r} is no caption: tags are among {", ".join(TAGS)}, places go up from 0 to the '
      'length of the visual description, and no words look like tags; change what breaks this.'
    )
  return text


def validate(text: str, structured: bool) -> list[str]:
  """All problems of a caption, each with its place, the rule and the fix; none: [].

  Free text may have tags, which must be right; a structured caption has one at least.
  """
  found, problems = _scan(text)
  if not isinstance(text, str):
    return problems
  if structured and not problems and not found.spans:
    problems = [f'no tag: a structured caption marks what is heard or written; add {_all_tags()}']
  return problems + _reference_problems(text)


def references(text: str) -> tuple[tuple[str, int], ...]:
  """(kind, number) of the references that a prompt names, each once, in order."""
  return tuple(dict.fromkeys((m[1], int(m[2])) for m in _REFERENCE.finditer(text)))


def check_references(text: str, kinds: Sequence[str]):
  """Are exactly the given references named?  kinds: of each one given, such as ('image', 'audio').

  The n-th of a kind is @kind_n.

  Raises:
    CaptionError: one that is given and not named, one that is named and not given.
  """
  unknown = [kind for kind in kinds if kind not in KINDS]
  if unknown:
    raise CaptionError(f'a reference is of kind {unknown[0]!r}; there are {", ".join(KINDS)}.')
  named, counts = references(text), collections.Counter(kinds)
  given = [(kind, n + 1) for kind in KINDS for n in range(counts[kind])]
  problems = [
    f'@{kind}_{n} is given, but the prompt does not name it: name it there, or leave it out'
    for kind, n in given
    if (kind, n) not in named
  ]
  problems += [
    f'the prompt names @{kind}_{n}, but {counts[kind]} of kind {kind} are given: give it, or take '
    'it out of the prompt'
    for kind, n in named
    if n > counts[kind]
  ]
  problems += _misspelt(text)
  if problems:
    raise CaptionError(f'references: {"; ".join(problems)}.')


def choose(captions: Mapping[str, str], shares: Mapping[str, float], place: float) -> str:
  """One of a clip's captions by the shares of those that it has.

  Args:
    captions: {name: text}; '' counts as none.
    shares: {name: share}, of any sum.
    place: uniform in [0, 1).

  Returns:
    A wanted caption; where the clip has none of them, 'caption', or its first, or ''.
  """
  negative = {name: share for name, share in shares.items() if not share >= 0}
  if negative:
    raise CaptionError(f'shares of captions are {negative}; give 0 or more.')
  wanted = {name: share for name, share in shares.items() if share and captions.get(name)}
  place *= sum(wanted.values())
  for name, share in wanted.items():
    place -= share
    if place < 0:
      return captions[name]
  if wanted:  # Rounding.
    return captions[name]
  return captions.get('caption') or next(filter(None, captions.values()), '')


def _scan(text: str) -> tuple[Structured, list[str]]:
  """The parts of a caption and all its problems; with problems the parts mean nothing."""
  if not isinstance(text, str):
    return Structured('', ()), [f'{type(text).__name__} is no text: give a str']
  problems, spans, visual = [], [], []
  opened, end, length = None, 0, 0
  implied = collections.Counter()  # Closed by another tag's opening; their own closing may follow.
  for match in _MARKUP.finditer(text):
    problem = _form(match)
    if problem is None:
      continue
    name, closes = match[4], bool(match[2])
    if not problem and closes:
      if opened is not None and opened[4] == name:
        spans.append(Span(name, text[opened.end() : match.start()], length))
        opened, end = None, match.end()
      elif opened is None and implied[name]:
        implied[name] -= 1
      else:
        problem = _unopened(name, opened)
        opened = None
    elif not problem:
      if opened is not None:
        problem = _nested(name, opened)
        implied[opened[4]] += 1
      visual.append(text[end : match.start()])
      length += len(visual[-1])
      opened, end = match, match.end()
    if problem:
      problems.append(f'{_where(match)}: {problem}')
  if opened is not None:
    problems.append(f'{_where(opened)}: it is never closed; write </{opened[4]}> after its words')
  return Structured(''.join(visual) + text[end:], tuple(spans)), problems


def _form(match: re.Match) -> str | None:
  """None: plain text.  '': a right tag.  Else what is wrong with it."""
  gap, slash, inner_gap, name, rest, close = match.groups()
  right = f'<{slash}{name.lower()}>'
  if not (gap or inner_gap or rest) and close:
    if name in TAGS:
      return ''
    if name.lower() in TAGS:
      return f'tags are lower case; write {right}'
    near = difflib.get_close_matches(name[:40].lower(), TAGS, 1, 0.6)
    fix = f'did you mean <{slash}{near[0]}>?' if near else f'there are {_all_tags()}'
    return f'there is no such tag; {fix}'
  if name.lower() not in TAGS or ((gap or inner_gap) and (rest.strip() or not close)):
    return None
  if rest.strip() == '/':
    return f'a tag has no short form; write {right}</{name.lower()}>'
  if not close:
    return f'a tag ends with ">"; write {right}'
  return f'a tag has nothing but its name between < and >; write {right}'


def _unopened(name: str, opened: re.Match | None) -> str:
  if opened is None:
    return f'no <{name}> is open here; write <{name}> before its words, or take this out'
  return f'<{opened[4]}> of character {opened.start() + 1} is open here; write </{opened[4]}>'


def _nested(name: str, opened: re.Match) -> str:
  fix = f'write </{name}>' if opened[4] == name else f'write </{opened[4]}> before it'
  return f'<{opened[4]}> of character {opened.start() + 1} is open, and tags do not nest; {fix}'


def _where(match: re.Match) -> str:
  found = match[0] if len(match[0]) <= 24 else f'{match[0][:24]}...'
  return f'character {match.start() + 1}, {found!r}'


def _all_tags() -> str:
  return ', '.join(f'<{tag}></{tag}>' for tag in TAGS)


def _reference_problems(text: str) -> list[str]:
  """Wrong spelling and gaps in the numbers."""
  named = set(references(text))
  gaps = [
    f'@{kind}_{n} stands without @{kind}_{n - 1}: references of a kind are numbered from 1 '
    'without gaps; number them so'
    for kind, n in sorted(named)
    if n > 1 and (kind, n - 1) not in named
  ]
  return gaps + _misspelt(text)


def _misspelt(text: str) -> list[str]:
  return [
    f'character {m.start() + 1}, {m[0][:24]!r}: nearly a reference; write '
    f'@{m[1].lower()}_{m[2][:4].lstrip("0") or 1}'
    for m in _NEARLY.finditer(text)
    if not _REFERENCE.match(text, m.start())
  ]
