"""Structured captions by rules: tables of words, no model."""

from collections.abc import Iterator
import dataclasses
import re

from sr4.core import captions
from sr4.prompt import enhancer


# What a quotation is, by the words beside it.  Scripts without spaces come without borders.
def _cue(latin: str, other: str) -> str:
  return rf'(?:(?<!\w)(?:{latin})(?!\w)|{other})'


_CUES = {
  'text': _cue(
    'signs?|signboard|banner|poster|billboard|logo|titles?|captions?|subtitles?|letters|'
    'label(?:l?ed)?|titled|captioned|marked|inscribed|engraved|lettered|'
    'lettering|words?|text|neon|reads|reading|written|printed|painted|spell(?:s|ing)|displays|'
    'Schild|Aufschrift|Titel|steht|panneau|enseigne|titre|affiche|letrero|cartel|título',
    '写着|写有|写道|招牌|标题|字样|文字|牌子|看板|書かれ|간판',
  ),
  'singing': _cue(
    'sings?|singing|sang|hums?|humming|chants?|chanting|raps?|rapping|croons?|'
    'singt|singen|chantent?|canta|cantan',
    '唱道|唱|歌|노래',
  ),
  'dialogue': _cue(
    'says?|saying|said|asks?|asking|asked|whispers?|whispering|whispered|shouts?|shouting|'
    'shouted|yells?|yelling|repl(?:y|ies|ied)|answers?|answered|calls? out|exclaims?|cries|'
    'murmurs?|mutters?|announces?|speaks?|speaking|sagt|sagen|fragt|ruft|flüstert|antwortet|'
    'dit|disent|demande|crie|murmure|répond|dice|dicen|pregunta|grita|susurra',
    '说|說|问|問|喊|答|道|言|叫|말|외치',
  ),
}
_CUE = re.compile('|'.join(f'(?P<{tag}>{words})' for tag, words in _CUES.items()), re.IGNORECASE)
_FOLLOWING = re.compile(
  rf"\s*[,，]?(?:と|라고)?\s*(?:[\w'-]+\s+){{0,2}}?(?:{_CUE.pattern})", re.IGNORECASE
)
# Straight quotes after a digit are inches; an apostrophe within a word closes nothing.
_QUOTE = re.compile(
  r'(?<![0-9])"([^"]++)"|“([^“”]++)”|„([^„“”]++)[“”]|«([^«»]++)»|»([^«»]++)«|「([^「」]++)」|'
  r'『([^『』]++)』|(?<!\w)‘((?:[^‘’]|(?<=\w)’(?=\w))++)’|'
  r"(?<!\w)'((?:[^']|(?<=\w)'(?=\w))++)'(?!\w)"
)
_SENTENCE = re.compile(r'(?<=[.!?])\s+(?=[^\W\d_a-z]|[@"“„«])|(?<=[。！？])|\n+')
_CAPITALS = re.compile(
  r'(?<!\w)(?:[Ww]ords?|[Rr]eads|[Tt]itle)\s+([A-Z0-9]{2,}(?: [A-Z0-9]{2,})*)(?!\w)'
)


def _quotes(text: str) -> Iterator[tuple[int, str, str]]:
  """(place, tag, words) of what is quoted and known to be said, sung or shown."""
  end, tag = 0, ''
  for match in _QUOTE.finditer(text):
    words = next(filter(None, match.groups())).strip()
    spoken = words.rstrip(',，')
    if spoken:
      tag = _tag_of(text[end : match.start()], words, text[match.end() : match.end() + 60], tag)
    if spoken and tag:
      yield match.start(), tag, spoken
    end = match.end()


def _tag_of(before: str, words: str, after: str, last: str) -> str:
  """The tag of a quotation, or '': by the nearest cue before, else after, else by its form."""
  clause = _SENTENCE.split(before)[-1]
  near = list(_CUE.finditer(clause))
  if near and _touches(clause[near[-1].end() :]):
    tag = near[-1].lastgroup
    shown = len(near) > 1 and near[-2].lastgroup == 'text'
    # 'a sign that says' shows, 'the sign behind the man says' speaks.
    between = clause[near[-2].end() : near[-1].start()] if shown else ''
    return 'text' if shown and re.fullmatch(r'\s*(?:(?:that|which)\s+)?', between) else tag
  if last and re.fullmatch(r'[\s,，、;]*(?:and|or|then|und|et|y|和)?\s*', clause):
    return last
  following = _FOLLOWING.match(after)
  comma = words[-1] in ',，.!?…。！？' or after.lstrip()[:1] in (',', '，', 'と', '라')
  if following and (following.lastgroup == 'text' or comma or not clause.strip()):
    return following.lastgroup
  ends = words[-1] in '.!?…。！？' and (' ' in words or not (clause and words.isascii()))
  return 'dialogue' if ends or clause.rstrip().endswith((':', '：')) else ''


def _touches(gap: str) -> bool:
  """Does a cue with this behind it belong to the quotation that follows?"""
  few = len(gap.split()) <= 3 and (gap.isascii() or len(gap) <= 24)
  return few or gap.rstrip().endswith((',', ':', '，', '：'))


# What sounds: verbs as they end in -ing, and nouns with what is then heard.
_VERBS = (
  'barking meowing mooing neighing howling growling roaring chirping buzzing bouncing ringing '
  'chiming crashing exploding honking clicking creaking slamming knocking splashing dripping '
  'crackling rustling clapping cheering laughing coughing sneezing snoring whistling clinking '
  'shattering thundering'
)
_NOUNS = {
  'rain(?:s|ing|fall)?': 'rain falling',
  'thunder(?:storm)?': 'thunder',
  'wind(?! (?:turbine|farm|power|instrument))|windy': 'wind',
  'surf|(?:ocean|sea) waves': 'waves breaking',
  'waterfall|river': 'water flowing',
  'campfire|fireplace|bonfire': 'a fire crackling',
  'engines?|motors?': 'an engine running',
  'sirens?': 'a siren',
  'traffic(?! (?:light|sign|cone))': 'traffic',
  'footsteps?': 'footsteps',
  'applause|applauds?|applauding': 'applause',
  'laughter': 'laughter',
  'gunshots?|gunfire': 'gunshots',
  'explosions?': 'an explosion',
  'fireworks': 'fireworks',
  'bells?(?! peppers?)': 'a bell',
  'birdsong': 'birdsong',
  'typing': 'typing',
  'heartbeat': 'a heartbeat',
}
_SMALL = (
  r'(?:an?|the|no|and|or|but|while|as|with|without|in|on|at|of|off|by|to|from|over|under|is|are|'
  r'was|were|plays?|playing|hears?|some|any|there|then|that|which|who|like|into|through|for)'
)
_WORDS = rf'(?:(?!{_SMALL}(?!\w))[\w-]++ )'
_SUBJECT = re.compile(
  rf'(?<!\w)(?:an?|the|his|her|its|their|my|two|three) ({_WORDS}{{1,4}})$', re.IGNORECASE
)
_INSTRUMENT = '(?:piano|guitar|violin|cello|saxophone|flute|trumpet|drum|accordion)s?'
_MUSIC = re.compile(
  rf'(?<![\w-])(?:(?:play(?:s|ing)?|strum(?:s|ming)?) (?:(?:an?|the|his|her|their|some) )?'
  rf'(?P<played>{_WORDS}{{0,3}}?{_INSTRUMENT}(?: music)?)|(?P<named>{_WORDS}{{0,4}}'
  r'(?:music|soundtrack|melody|melodies|tune|jazz|symphony|orchestra|lullaby)))(?!\w)',
  re.IGNORECASE,
)
# Behind it one word, or an `or`, or `sound of`: no rain, no loud rain or thunder, isn't raining.
_ABSENT = re.compile(
  r"(?<!\w)(?:no|not|never|without|[a-z]+n['’]t)\s+"
  r'(?:(?:[\w-]+\s+){1,3}n?or\s+|(?:sounds?|noises?|signs?)\s+of\s+)?(?:[\w-]+\s+)?$',
  re.IGNORECASE,
)
_NOTHING = re.compile(r'(?:none|nothing|silence|silent|no \w+)', re.IGNORECASE)
# Whole sentences about what is heard; they leave the visual description.
_TOLD = {
  'sfx': re.compile(r'(?:Heard|Sounds?|Sound effects?|SFX): *(.+)', re.IGNORECASE),
  'dialogue': re.compile(r'(?:The|A) voice says:? *([^"“„«「]+)', re.IGNORECASE),
  'singing': re.compile(r'(?:The|A) voice sings:? *([^"“„«「]+)', re.IGNORECASE),
  'bgm': re.compile(
    r'(?:In the background plays|(?:Background )?music:|BGM:) *(.+)', re.IGNORECASE
  ),
}
_JOINTS = {'text': ', ', 'sfx': '; ', 'bgm': '; '}  # Lines that are said or sung stay apart.


def _forms(verb: str) -> str:
  stem = re.sub(r'([pm])\1$', r'\1', verb.removesuffix('ing'))
  bare = '(?<=s )' if stem in ('ring', 'bark') else ''  # Which are things as well.
  return f'{stem}(?:{stem[-1]}?(?:ed|ing)|e?s|e)|{bare}{stem}'


_SOUNDING = re.compile(
  r'(?<!\w)(?:'
  + '|'.join(f'(?P<{verb}>{_forms(verb)})' for verb in _VERBS.split())
  + '|'
  + '|'.join(f'(?P<noun{i}>{words})' for i, words in enumerate(_NOUNS))
  + r')(?!\w)',
  re.IGNORECASE,
)


def _effects(text: str) -> Iterator[str]:
  """What sounds in a description, by the tables and, of SR4-World, by its own physics."""
  for sentence in _SENTENCE.split(text):
    chimes, rest = _chimes(sentence)
    yield from chimes
    for match in _SOUNDING.finditer(rest):
      before = rest[max(0, match.start() - 80) : match.start()]
      subject = _SUBJECT.search(before)
      named = before[: subject.start()] if subject else before  # The dog that does not bark.
      if _ABSENT.search(before) or _ABSENT.search(named):
        continue
      if match.lastgroup.startswith('noun'):
        yield list(_NOUNS.values())[int(match.lastgroup.removeprefix('noun'))]
        continue
      if match[0].lower() in ('rings', 'barks') and not _is_one(subject):
        continue
      words = [w for w in subject[1].split() if not w.endswith('ly')] if subject else []
      yield ' '.join((['the', *words] if words else []) + [match.lastgroup])


def _is_one(subject: re.Match | None) -> bool:
  """Is it one thing, which rings, and not what has rings: two wedding, a woman wearing gold?"""
  if not subject:
    return False
  article, *words = subject[0].casefold().split()
  return article not in ('two', 'three') and not any(word.endswith('ing') for word in words)


def _chimes(sentence: str) -> tuple[list[str], str]:
  """The rings of SR4-World's objects that touch something; the sentence without such words."""
  from data_pipelines import world
  from data_pipelines.world import captions as world_captions
  from data_pipelines.world import sound

  named = re.compile(
    rf'(?<!\w)({"|".join(world.COLORS)}) ({"|".join(world.SHAPES)})(?!\w)', re.IGNORECASE
  )
  things = list(dict.fromkeys((m[1].lower(), m[2].lower()) for m in named.finditer(sentence)))
  rest = named.sub('object', sentence)
  touch = re.compile(r'(?<!\w)(?:bounc|collid|hit|ring|chim)(?:es?|s|ing|ed)?(?!\w)', re.IGNORECASE)
  if not things or not touch.search(rest):
    return [], rest if things else sentence
  chimes = []
  for color, shape in things:
    hertz = sound.PITCHES[shape]
    pitch = 'low ' if hertz < 300 else 'high ' if hertz > 500 else ''
    chime = world_captions.article(f'{pitch}{sound.TIMBRE_WORDS[color]} chime')
    chimes.append(f'{chime} of the {color} {shape}')
  return chimes, touch.sub('', rest)


def _music(text: str) -> Iterator[str]:
  for match in _MUSIC.finditer(text):
    start = match.start(match.lastgroup)
    if not _ABSENT.search(text[max(0, start - 80) : start]):
      yield match[match.lastgroup]


@dataclasses.dataclass(frozen=True)
class RuleBased:
  """The default: tables of words, no model.  A pure function; it adds no sight and no time.

  The description stays as it is, and all five tags follow, as in SR4-World.  Quotations are known
  in many scripts, their verbs in some languages, sounds and music in English.
  """

  def __call__(
    self, prompt: str, *, seconds: float, sound: bool, references: tuple[str, ...]
  ) -> str:
    if enhancer.is_structured(prompt, references):
      return prompt
    visual, said, told = prompt.strip(), {tag: [] for tag in captions.TAGS}, set()
    if sound:
      visual, said, told = _take_told(visual)
    # What is quoted or written is not what happens: the word JAZZ is no music.
    plain = _QUOTE.sub(_blank, visual)
    shown = [(m.start(1), 'text', m[1]) for m in _CAPITALS.finditer(plain)]
    plain = _CAPITALS.sub(_blank, plain)
    for _, tag, words in sorted([*_quotes(visual), *shown]):
      if sound or tag == 'text':
        said[tag].append(words)
    for tag, heard in (('sfx', _effects), ('bgm', _music)):
      if sound and tag not in told:
        said[tag] = list(dict.fromkeys(heard(plain)))
    return _written(_sentence(visual), said)


def _blank(match: re.Match) -> str:
  return ' ' * len(match[0])


def _take_told(text: str) -> tuple[str, dict[str, list[str]], set[str]]:
  """The text without the sentences that only tell what is heard, what these tell, and of which
  tags they do: that there is none, too."""
  said, told, kept, end = {tag: [] for tag in captions.TAGS}, set(), [], 0
  for border in [*_SENTENCE.finditer(text), None]:
    sentence = text[end : border.start() if border else len(text)]
    tag, match = next(
      ((tag, m) for tag, form in _TOLD.items() if (m := form.fullmatch(sentence.strip()))),
      (None, None),
    )
    if tag:
      words = match[1].strip().rstrip('.')
      said[tag] += [] if _NOTHING.fullmatch(words) else [words]
      told.add(tag)
    else:
      kept.append(sentence + (border[0] if border else ''))
    end = border.end() if border else end
  return ''.join(kept).strip(), said, told


def _sentence(text: str) -> str:
  """With a capital and a full stop."""
  if not text:
    return text
  stop = '。' if '\u3040' <= text[-1] <= '\u9fff' else '.' if text[-1].isalnum() else ''
  return text[0].upper() + text[1:] + stop


def _written(visual: str, said: dict[str, list[str]]) -> str:
  """The caption: the description, then every tag, in their order."""
  text, spans = visual + ' ' * bool(visual), []
  for tag in captions.TAGS:
    lines = said[tag]
    if tag in _JOINTS or not lines:
      lines = [_JOINTS.get(tag, '').join(lines)]
    for line in lines:
      text += ' ' * bool(spans)
      spans.append(captions.Span(tag, line, len(text)))
  return captions.format(captions.Structured(text, tuple(spans)))
