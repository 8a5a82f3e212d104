"""Rules over scores, as data: what is kept, apart from how it is measured.

    [{"score": "sharpness", "least": 0.02, "kinds": ["video", "image"], "reason": "blurred"}, ...]

Bounds belong to what is kept.  A score that is None does not apply (the sound of a silent video),
and neither does its rule; a score that nobody measures is an error before any work.
"""

from collections.abc import Iterable
from collections.abc import Mapping
import dataclasses
import difflib
import json
import math
import pathlib

from sr4.core import errors

KINDS = ('video', 'image', 'audio')
PICTURE = ('width', 'height', 'sharpness', 'contrast', 'exposure')
MOTION = ('fps', 'motion', 'stability', 'repeated')
SOUND = ('sample_rate', 'volume', 'loudness', 'clipping', 'bandwidth', 'snr', 'silence')
# What is measured without weights.  A video has scores of its sound too, if it has any.
BUILT_IN = {
  'video': ('duration', *PICTURE, *MOTION, *SOUND),
  'image': PICTURE,
  'audio': ('duration', *SOUND),
}


class RuleError(errors.UserError):
  """Rules that cannot be read, or that cannot be judged with the scores there are."""


@dataclasses.dataclass(frozen=True)
class Rule:
  """Keeps what has least <= score <= most."""

  score: str
  least: float | None = None
  most: float | None = None
  kinds: tuple[str, ...] = KINDS  # Of the clip: a video's sound is judged by rules for 'video'.
  reason: str = ''  # What is wrong with a clip that breaks it, in a few words.
  classes: tuple[str, ...] = ()  # Only sound of these classes; (): all.

  def keeps(self, value: float) -> bool:
    low, high = self.least, self.most
    return (low is None or value >= low) and (high is None or value <= high)

  def __str__(self):
    low, high = (None if x is None else f'{x:g}' for x in (self.least, self.most))
    bounds = [f'at least {low}'] * (low is not None) + [f'at most {high}'] * (high is not None)
    return f'{self.score} {" and ".join(bounds)} ({", ".join((*self.kinds, *self.classes))})'


SEEN = ('video', 'image')
HEARD = ('video', 'audio')
# "The report" is that of SkyReels-V4, section 3.4; it gives few numbers.  The others are what the
# field uses, and a place to start: the histograms of a run show where a collection differs.
DEFAULT = (
  # The shortest clips that the report trains on.
  Rule('duration', least=2, kinds=('video',), reason='too short'),
  # Its smallest training size: less would have to be enlarged.
  Rule('width', least=256, kinds=SEEN, reason='too small'),
  Rule('height', least=256, kinds=SEEN, reason='too small'),
  # Its training rate: below, pictures would come twice.
  Rule('fps', least=16, kinds=('video',), reason='too few pictures a second'),
  # Animation on twos repeats half of its pictures; more is a stutter, or a still with sound.
  Rule('repeated', most=0.6, kinds=('video',), reason='frozen, or with dropped pictures'),
  # The customary 100 of the Laplacian's variance, for luma to 255.
  Rule('sharpness', least=0.0015, kinds=SEEN, reason='blurred'),
  # Fog has more; a title card or a fade has less.
  Rule('contrast', least=0.1, kinds=SEEN, reason='flat'),
  # Night scenes and snow lie within.
  Rule('exposure', least=0.04, most=0.96, kinds=SEEN, reason='too dark or too bright'),
  # Half a hundredth of the picture a second: under a pixel and a half of 256.
  Rule('motion', least=0.005, most=1.0, kinds=('video',), reason='still, or too fast to follow'),
  # A walking hand has a tenth.
  Rule('stability', most=0.5, kinds=('video',), reason='shaking'),
  # The report: mean volume.
  Rule('volume', least=-60, kinds=HEARD, reason='next to no sound'),
  # The report: the ratio of silence is under 0.2.
  Rule('silence', most=0.2, kinds=('audio',), reason='mostly silent'),
  # AAC hides it: of sines driven so far that half is clipped, a hundredth is left to see.
  Rule('clipping', most=0.005, kinds=HEARD, reason='clipped'),
  # Wideband speech; the telephone has 8000 and 3400.
  Rule('sample_rate', least=16_000, kinds=('audio',), reason='telephone quality'),
  Rule('bandwidth', least=4000, kinds=('audio',), reason='muffled, or enlarged from a lower rate'),
)
# Used once a scorer provides what they need.
WITH_SCORERS = (
  # The LAION predictor's scale of 1 to 10; open video models begin at 4 to 5.
  Rule('aesthetics', least=4.5, kinds=SEEN, reason='plain'),
  Rule('watermark', most=0.5, kinds=SEEN, reason='watermark'),  # A probability.
  # Of speech alone: its pauses show the noise, which a steady sound has none of.
  Rule('snr', least=15, kinds=('audio',), reason='noisy speech', classes=('speech',)),
  # DNSMOS, 1 to 5: speech corpora from the wild are cut at 3.
  Rule('mos', least=3, kinds=('audio',), reason='bad recording', classes=('speech', 'singing')),
  # The report: |offset| of SyncNet, frames of 25 fps, and confidence above 1.5.
  Rule('sync_offset', -3, 3, ('video',), 'lips out of sync', ('speech',)),
  Rule('sync_confidence', 1.5, None, ('video',), 'the speaker is not seen', ('speech',)),
)
PROVIDERS = {
  'aesthetics': 'an aesthetics predictor on CLIP embeddings',
  'watermark': 'a watermark classifier',
  'audio_class': 'an audio tagger, its tags mapped to effect, music, speech, singing',
  'mos': 'DNSMOS or another predictor of opinion scores',
  'sync_offset': 'SyncNet',
  'sync_confidence': 'SyncNet',
}


def chosen(provided: Iterable[str]) -> tuple[Rule, ...]:
  """DEFAULT, and those of WITH_SCORERS that can be judged with what scorers provide."""
  provided = set(provided)
  return DEFAULT + tuple(rule for rule in WITH_SCORERS if not _missing(rule, provided))


def _missing(rule: Rule, provided: set[str]) -> list[tuple[str, str]]:
  """(score, kind) that the rule needs and nobody measures."""
  needs = [rule.score] + ['audio_class'] * bool(rule.classes)
  return [
    (score, kind)
    for score in needs
    for kind in rule.kinds
    if score not in BUILT_IN[kind] and score not in provided
  ]


def check(rules: Iterable[Rule], provided: Iterable[str]):
  """Refuses rules whose score nobody measures, before any work.

  Raises:
    RuleError: names the rule, the score, the kind, and who could provide it.
  """
  provided = set(provided)
  for rule in rules:
    for score, kind in _missing(rule, provided):
      known = sorted({*BUILT_IN[kind], *provided, *PROVIDERS} - {score})
      near = difflib.get_close_matches(score, known, 1, 0.8)
      hint = f'Did you mean {near[0]!r}? ' if near else ''
      who = PROVIDERS.get(score, 'a model of yours')
      raise RuleError(
        f'rule {str(rule)!r}: nobody measures {score!r} of {kind}. {hint}Provide it with --scorer '
        f'package.module:NAME ({who}), or take the rule, or {kind!r} in its kinds, out of --rules.'
      )


def broken(rules: Iterable[Rule], kind: str, scores: Mapping) -> tuple[Rule, float] | None:
  """The first rule that a clip of this kind breaks, and the score that breaks it.

  Raises:
    RuleError: a rule that applies finds no score at all, not even None.
  """
  for rule in rules:
    if kind not in rule.kinds or (rule.classes and scores.get('audio_class') not in rule.classes):
      continue
    if rule.score not in scores:
      raise RuleError(f'rule {str(rule)!r}: the score {rule.score!r} was not measured.')
    value = scores[rule.score]
    if value is not None and not rule.keeps(value):
      return rule, value
  return None


def shortest(rules: Iterable[Rule], kind: str) -> float:
  """Seconds that a clip of this kind must last, by the rules for its duration."""
  lengths = [r.least for r in rules if r.score == 'duration' and kind in r.kinds and not r.classes]
  return max([x for x in lengths if x is not None], default=0.0)


def to_json(rules: Iterable[Rule]) -> str:
  """One rule a line; what is at its default is left out."""
  blank = dataclasses.asdict(Rule(''))
  rows = [{k: v for k, v in dataclasses.asdict(r).items() if v != blank[k]} for r in rules]
  lines = ',\n '.join(json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows)
  return f'[{lines}]\n'


def from_json(text: str, name: str = 'rules') -> tuple[Rule, ...]:
  """The rules in a text of to_json, or of a person.

  Raises:
    RuleError: names the rule and what is wrong with it.
  """
  try:
    rows = json.loads(text)
  except json.JSONDecodeError as e:
    raise RuleError(f'{name}: not JSON ({e}); give a list of rules.') from e
  if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
    raise RuleError(f'{name}: give a list of objects, each with "score" and "least" or "most".')
  return tuple(_rule(row, f'{name}, rule {number}') for number, row in enumerate(rows, 1))


def load(path) -> tuple[Rule, ...]:
  return from_json(pathlib.Path(path).read_text(encoding='utf-8-sig'), str(path))


def _rule(row: dict, where: str) -> Rule:
  fields = [f.name for f in dataclasses.fields(Rule)]
  for key in row:
    if key not in fields:
      near = difflib.get_close_matches(key, fields, 1)
      hint = f' Did you mean {near[0]!r}?' if near else ''
      raise RuleError(f'{where}: unknown key {key!r}; a rule has {", ".join(fields)}.{hint}')
  if not isinstance(row.get('score'), str) or not isinstance(row.get('reason', ''), str):
    raise RuleError(f'{where}: give "score", the name of a score; "reason", if there, is a text.')
  bounds = [row[key] for key in ('least', 'most') if row.get(key) is not None]
  if not bounds or not all(_finite(x) for x in bounds) or bounds != sorted(bounds):
    raise RuleError(
      f'{where} ({row["score"]}): least {row.get("least")!r}, most {row.get("most")!r}; give one '
      'or both as numbers, least not above most.'
    )
  kinds = row.get('kinds', list(KINDS))
  if not isinstance(kinds, list) or not kinds or not set(map(str, kinds)) <= set(KINDS):
    raise RuleError(f'{where} ({row["score"]}): kinds is {kinds!r}; give a list of {KINDS}.')
  classes = row.get('classes', [])
  if not isinstance(classes, list) or not all(isinstance(x, str) for x in classes):
    raise RuleError(f'{where} ({row["score"]}): classes is {classes!r}; give a list of names.')
  return Rule(**{**row, 'kinds': tuple(kinds), 'classes': tuple(classes)})


def _finite(x) -> bool:
  return isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x)
