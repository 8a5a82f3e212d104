"""Rules and scorers: data in and out, and a refusal before any work where a score is missing."""

import pytest

from data_pipelines.curate import rules
from data_pipelines.curate import scorer

MET = {
  'duration': 5.0,
  'width': 640,
  'height': 360,
  'fps': 25,
  'repeated': 0.0,
  'sharpness': 0.01,
  'contrast': 0.5,
  'exposure': 0.5,
  'motion': 0.1,
  'stability': 0.01,
  'sample_rate': 48_000,
  'volume': -20,
  'silence': 0.0,
  'clipping': 0.0,
  'bandwidth': 15_000,
  'snr': 20.0,
  'loudness': -20.0,
}


def test_the_thresholds_of_the_report():
  of = {rule.score: rule for rule in rules.DEFAULT + rules.WITH_SCORERS}
  assert of['silence'].most == 0.2 and of['silence'].kinds == ('audio',)
  assert of['volume'].least == -60 and 'video' in of['volume'].kinds
  assert (of['sync_offset'].least, of['sync_offset'].most) == (-3, 3)
  assert of['sync_confidence'].least == 1.5
  assert all(of[name].classes == ('speech',) for name in ('sync_offset', 'sync_confidence'))


def test_default_rules_run_without_scorers_and_keep_a_good_clip():
  rules.check(rules.DEFAULT, ())
  assert rules.chosen(()) == rules.DEFAULT
  for kind in rules.KINDS:
    assert rules.broken(rules.DEFAULT, kind, MET) is None


@pytest.mark.parametrize('rule', rules.DEFAULT, ids=str)
def test_each_default_rule_drops_what_is_just_outside(rule):
  for bound, side in ((rule.least, -1), (rule.most, 1)):
    if bound is None:
      continue
    assert rule.keeps(bound) and not rule.keeps(bound + side * 1e-6)
    for kind in rule.kinds:
      outside = bound + side * (abs(bound) * 0.01 + 1e-4)
      assert rules.broken(rules.DEFAULT, kind, MET | {rule.score: outside}) == (rule, outside)


@pytest.mark.parametrize('rule', rules.WITH_SCORERS, ids=str)
def test_a_rule_without_its_score_refuses_to_run(rule):
  needs = {rule.score} - {'snr'} | ({'audio_class'} if rule.classes else set())
  for missing in needs:
    with pytest.raises(rules.RuleError, match=f'nobody measures {missing!r}.*--scorer'):
      rules.check((rule,), needs - {missing})
    assert rule not in rules.chosen(needs - {missing})
  rules.check((rule,), needs)
  assert rule in rules.chosen(needs)


def test_a_rule_applies_to_its_kinds_and_its_classes_alone():
  only = (rules.Rule('aesthetics', least=5, kinds=('image',)),)
  assert rules.broken(only, 'video', {}) is None
  assert rules.broken(only, 'image', {'aesthetics': 4}) == (only[0], 4)
  with pytest.raises(rules.RuleError, match="'aesthetics' was not measured"):
    rules.broken(only, 'image', {})
  speech = (rules.Rule('sync_offset', -3, 3, ('video',), classes=('speech',)),)
  assert rules.broken(speech, 'video', {'audio_class': 'music', 'sync_offset': 9}) is None
  assert rules.broken(speech, 'video', {'audio_class': 'speech', 'sync_offset': -4})
  assert rules.broken(speech, 'video', {'audio_class': 'speech', 'sync_offset': None}) is None


def test_a_picture_has_no_motion():
  with pytest.raises(rules.RuleError, match="'motion' of image"):
    rules.check((rules.Rule('motion', least=0.1),), ())


def test_misspelt_scores_are_guessed():
  with pytest.raises(rules.RuleError, match="Did you mean 'sharpness'"):
    rules.check((rules.Rule('sharpnes', least=1),), ())


def test_json_in_and_out():
  every = rules.DEFAULT + rules.WITH_SCORERS
  assert rules.from_json(rules.to_json(every)) == every
  assert rules.from_json('[{"score": "snr", "most": 3}]') == (rules.Rule('snr', most=3),)
  assert rules.to_json(()) == '[]\n' and rules.from_json('[]') == ()


@pytest.mark.parametrize(
  'text, what',
  [
    ('{', 'not JSON'),
    ('{}', 'a list of objects'),
    ('[{"score": "snr", "lest": 3}]', "rule 1: unknown key 'lest'.*Did you mean 'least'"),
    ('[{"least": 3}]', 'give "score"'),
    ('[{"score": "snr"}]', 'give one or both'),
    ('[{"score": "snr", "least": 3, "most": 2}]', 'least not above most'),
    ('[{"score": "snr", "least": "3"}]', 'as numbers'),
    ('[{"score": "snr", "least": NaN}]', 'as numbers'),
    ('[{"score": "snr", "least": true}]', 'as numbers'),
    ('[{"score": "snr", "least": 3, "kinds": ["sound"]}]', 'kinds is'),
    ('[{"score": "snr", "least": 3, "kinds": "audio"}]', 'kinds is'),
    ('[{"score": "snr", "least": 3, "classes": "speech"}]', 'classes is'),
  ],
)
def test_bad_rules_say_so(text, what):
  with pytest.raises(rules.RuleError, match=what):
    rules.from_json(text, 'mine.json')


def test_the_shortest_length_comes_from_the_rules():
  assert rules.shortest(rules.DEFAULT, 'video') == 2 and rules.shortest(rules.DEFAULT, 'audio') == 0


class Tagger:
  provides = ('audio_class', 'mos', 'embedding')

  def __call__(self, excerpt):
    return excerpt


def test_a_scorer_keeps_its_promise():
  good = {'audio_class': 'speech', 'mos': 3, 'embedding': (1, 2.5)}
  assert scorer.scores(Tagger(), good) == good | {'embedding': [1.0, 2.5]}
  assert scorer.scores(Tagger(), dict.fromkeys(good)) == dict.fromkeys(good)
  for bad, what in (
    ({'mos': 3}, 'Tagger gave .* and promised'),
    (good | {'more': 1}, 'promised'),
    (None, 'promised'),
    (good | {'mos': float('nan')}, 'mos is nan'),
    (good | {'audio_class': 'noise'}, "audio_class is 'noise'.*effect"),
    (good | {'embedding': []}, 'vector'),
  ):
    with pytest.raises(scorer.ScorerError, match=what):
      scorer.scores(Tagger(), bad)


@pytest.mark.parametrize(
  'spec, what',
  [
    ('json', 'package.module:NAME'),
    ('no_such_module:X', 'No module named.*PYTHONPATH'),
    ('data_pipelines.curate.scorer:Scorers', "Did you mean 'Scorer'"),
    ('json:loads', '`provides`'),
  ],
)
def test_scorers_that_cannot_be_found_say_so(spec, what):
  with pytest.raises(scorer.ScorerError, match=what):
    scorer.load(spec)
