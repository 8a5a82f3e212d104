"""One page about a curation: what was kept, what was dropped and why, with pictures.

The page loads nothing from anywhere.  Pictures are made from the media when it is written.
"""

import collections
from collections.abc import Iterable
from collections.abc import Sequence
import hashlib
import html
import math
import os

from data_pipelines.curate import rules
from data_pipelines.curate import thumbnail

SHOWN, SHOWN_BY_RULE = 48, 12  # Pictures of what is kept, and of what each rule dropped.
BINS = 32
# Stages of engine.py, and what is left after each.
FILES = (
  ('find', 'media by their names'),
  ('open', 'readable'),
  ('exact', 'unlike byte for byte'),
)
SEGMENTS = (
  ('segment', 'long enough'),
  ('score', 'measured'),
  ('rules', 'within the rules'),
  ('near', 'unlike to the eye'),
  ('concept', 'balanced by concept'),
  ('motion', 'balanced by motion'),
  ('join', 'kept'),
)
STYLE = """
:root { color-scheme: light dark; --page: #fbfaf8; --card: #fff; --ink: #23211e; --soft: #75706a;
  --line: #e6e2dc; --bad: #b4552d; --good: #3c7a4b; }
@media (prefers-color-scheme: dark) { :root { --page: #161514; --card: #1f1e1c; --ink: #ece8e1;
  --soft: #9c958b; --line: #34312d; --bad: #e48a5c; --good: #7fbf8d; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 3.5rem 1.25rem 5rem; max-width: 70rem; background: var(--page);
  color: var(--ink); font: 16px/1.55 system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif; }
h1 { margin: 0 0 .4rem; font-size: 2rem; letter-spacing: -.02em; line-height: 1.2; }
h2 { margin: 3rem 0 .6rem; font-size: 1.25rem; }
h3 { margin: 1.6rem 0 .5rem; font-size: 1rem; font-weight: 600; }
p { margin: 0 0 1rem; max-width: 44rem; }
.soft, th, figcaption { color: var(--soft); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 1.1rem 1.25rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); gap: 1rem; }
.sheet { display: flex; flex-wrap: wrap; gap: .8rem; }
figure { margin: 0; max-width: 15rem; }
figure img, figure > svg { height: 96px; border-radius: 6px; display: block;
  background: #101014; }
figcaption { font-size: .75rem; line-height: 1.35; margin-top: .3rem; max-width: 13rem;
  overflow-wrap: anywhere; }
svg text { font: 11px system-ui, sans-serif; fill: var(--soft);
  font-variant-numeric: tabular-nums; }
.card svg { display: block; width: 100%; height: auto; overflow: visible; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th { font-weight: 400; } th, td { text-align: left; padding: .35rem 1.5rem .35rem 0;
  border-bottom: 1px solid var(--line); vertical-align: top; }
td.number, th.number { text-align: right; }
.wide { overflow-x: auto; }
"""


def page(
  folder,
  found: int,
  kept: Sequence[dict],
  dropped: Sequence[dict],
  judged: Iterable[rules.Rule],
) -> str:
  """HTML of the lines of both tables in `folder`; `found` counts files or lines of metadata."""
  parts = [part for line in kept for part in line.get('parts') or [line]]
  title = f'{len(kept):,} clips of {found:,} files'
  return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Curation: {title}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{title}</h1>
<p>{_summary(kept, parts, dropped)}</p>
<h2>What is left after each step</h2>
<div class="card">{funnel(found, parts, dropped)}</div>
<h2>Why the others are dropped</h2>
{_reasons(dropped)}
<h2>Scores</h2>
<p class="soft"><span style="color:var(--good)">Kept</span> below, <span style="color:var(--bad)">
dropped</span> above; a line is a bound of a rule. The first and the last bar also hold what lies
outside.</p>
{_histograms(parts, dropped, tuple(judged))}
<h2>Kept</h2>
{_sheet(folder, kept, SHOWN)}
<h2>Dropped</h2>
{_dropped_sheets(folder, dropped)}
</body>
</html>
"""


def seconds(lines: Iterable[dict]) -> float:
  return sum(line['end'] - line['start'] for line in lines if 'end' in line)


def _summary(kept, parts, dropped) -> str:
  joined = len(parts) - len(kept) + sum(1 for line in kept if line.get('parts'))
  text = (
    f'{_time(seconds(parts))} of video and sound are kept, {_time(seconds(dropped))} are dropped '
    'after they were read; files that were dropped whole have no length here.'
  )
  return text + (f' {joined:,} short sounds were joined into longer ones.' if joined else '')


def _time(value: float) -> str:
  if value < 120:
    return f'{value:.1f} seconds'
  return f'{value / 60:.0f} minutes' if value < 7200 else f'{value / 3600:,.0f} hours'


def steps(found: int, parts: Sequence[dict], dropped: Sequence[dict]) -> list[tuple[str, int, int]]:
  """(what is left, how many, how many this step dropped): files first, then segments of them."""
  lost = collections.Counter(line['stage'] for line in dropped)
  rows, left = [('files found', found, 0)], found
  for stage, words in FILES:
    left -= lost[stage]
    rows.append((words, left, lost[stage]))
  left = len(parts) + sum(lost[stage] for stage, _ in SEGMENTS)
  rows.append(('segments they were cut into', left, 0))
  for stage, words in SEGMENTS:
    left -= lost[stage]
    rows.append((words, left, lost[stage]))
  return rows


def funnel(found: int, parts: Sequence[dict], dropped: Sequence[dict]) -> str:
  """A bar for each step."""
  rows, marks = steps(found, parts, dropped), []
  most = max([count for _, count, _ in rows] + [1])
  for k, (words, count, lost) in enumerate(rows):
    y, width = 26 * k, 560 * count / most
    minus = f'<tspan fill="var(--bad)" dx="8">−{lost:,}</tspan>' if lost else ''
    marks.append(
      f'<text x="210" y="{y + 15}" text-anchor="end">{words}</text><rect x="222" y="{y + 2}" '
      f'width="{width:.1f}" height="18" rx="3" fill="var(--good)" opacity=".75"/>'
      f'<text x="{230 + width:.1f}" y="{y + 15}">{count:,}{minus}</text>'
    )
  label = ', '.join(f'{words}: {count}' for words, count, _ in rows)
  return (
    f'<svg viewBox="0 0 900 {26 * len(rows)}" role="img" aria-label="{html.escape(label)}">'
    f'{"".join(marks)}</svg>'
  )


def _bounds(line) -> str:
  words = ('least', 'most')
  return ', '.join(f'at {x} {_number(line[x])}' for x in words if line.get(x) is not None)


def _number(value: float) -> str:
  return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.3g}'


def _reasons(dropped) -> str:
  if not dropped:
    return '<p>None is dropped.</p>'
  groups = collections.defaultdict(list)
  for line in dropped:
    # The reasons of scores are few; those of errors and duplicates name each file.
    reason = line['reason'] if 'value' in line else ''
    groups[line['stage'], line['rule'], _bounds(line), reason].append(line)
  body = ''.join(
    f'<tr><td>{html.escape(rule)}</td><td>{bounds}</td><td class="number">{len(lines):,}</td>'
    f'<td>{html.escape(reason or "e.g. " + lines[0]["id"] + ": " + lines[0]["reason"])}</td></tr>'
    for (_, rule, bounds, reason), lines in sorted(groups.items(), key=lambda x: -len(x[1]))
  )
  return (
    '<div class="wide"><table><thead><tr><th>rule</th><th>bound</th><th class="number">dropped</th>'
    f'<th>reason</th></tr></thead><tbody>{body}</tbody></table></div>'
  )


def _kind(line) -> str:
  return next(kind for kind in rules.KINDS if kind in line)


def _histograms(parts, dropped, judged) -> str:
  sections = []
  for kind in rules.KINDS:
    values = collections.defaultdict(lambda: ([], []))
    for side, lines in enumerate((parts, dropped)):
      for line in lines:
        for name, value in line['scores'].items() if _kind(line) == kind else ():
          if isinstance(value, (int, float)):
            values[name][side].append(value)
    charts = [
      f'<div class="card">{histogram(name, *sides, _thresholds(judged, name, kind))}</div>'
      for name, sides in sorted(values.items())
    ]
    if charts:
      sections.append(f'<h3>{kind}</h3><div class="grid">{"".join(charts)}</div>')
  return ''.join(sections) or '<p>Nothing was measured.</p>'


def _thresholds(judged, name, kind) -> list[float]:
  here = [rule for rule in judged if rule.score == name and kind in rule.kinds]
  return sorted({x for rule in here for x in (rule.least, rule.most) if x is not None})


def histogram(
  name: str, kept: Sequence[float], dropped: Sequence[float], bounds: Sequence[float] = ()
) -> str:
  """Bars of what is kept, with what is dropped on top, and a line for each bound."""
  every = sorted([*kept, *dropped])
  edge = lambda share: every[round(share * (len(every) - 1))]  # Outliers would flatten the rest.
  low, high = min([edge(0.01), *bounds]), max([edge(0.99), *bounds])
  if low == high:
    low, high = low - 0.5, high + 0.5
  counts = [[0, 0] for _ in range(BINS)]
  for side, values in enumerate((kept, dropped)):
    for value in values:
      k = math.floor((value - low) / (high - low) * BINS)
      counts[max(0, min(BINS - 1, k))][side] += 1
  top, width, height = max(map(sum, counts)), 256, 90
  marks = []
  for k, (good, bad) in enumerate(counts):
    y = height
    for count, colour in ((good, 'good'), (bad, 'bad')):
      if count:
        tall = 72 * count / top
        y -= tall
        marks.append(
          f'<rect x="{k * width / BINS:.1f}" y="{y:.1f}" width="{width / BINS - 1:.1f}" '
          f'height="{tall:.1f}" fill="var(--{colour})" opacity=".8"/>'
        )
  for bound in bounds:
    x = (bound - low) / (high - low) * width
    marks.append(
      f'<line x1="{x:.1f}" x2="{x:.1f}" y1="14" y2="{height}" stroke="var(--ink)" '
      f'stroke-dasharray="3 2"/><text x="{min(max(x, 12), width - 12):.1f}" y="11" '
      f'text-anchor="middle">{_number(bound)}</text>'
    )
  label = html.escape(f'{name}: {len(kept)} kept, {len(dropped)} dropped, {low:g} to {high:g}')
  return (
    f'<b>{html.escape(name)}</b><svg viewBox="0 0 {width} {height + 16}" role="img" '
    f'aria-label="{label}">{"".join(marks)}<line x1="0" x2="{width}" y1="{height}" y2="{height}" '
    f'stroke="var(--line)"/><text y="{height + 13}">{_number(low)}</text><text x="{width}" '
    f'y="{height + 13}" text-anchor="end">{_number(high)}</text></svg>'
  )


def _dropped_sheets(folder, dropped) -> str:
  groups = collections.defaultdict(list)
  for line in dropped:
    groups[line['rule']].append(line)
  return (
    ''.join(
      f'<h3>{html.escape(rule)} <span class="soft">{len(lines):,}</span></h3>'
      f'{_sheet(folder, lines, SHOWN_BY_RULE)}'
      for rule, lines in sorted(groups.items())
    )
    or '<p>None.</p>'
  )


def _sheet(folder, lines, most: int) -> str:
  """Pictures of some lines, the same ones each time."""
  rank = lambda line: hashlib.sha256(line['id'].encode()).digest()
  some = sorted(sorted(lines, key=rank)[:most], key=lambda line: line['id'])
  rest = len(lines) - len(some)
  more = f'<p class="soft">and {rest:,} more</p>' if rest else ''
  figures = ''.join(_figure(folder, line) for line in some)
  return f'<div class="sheet">{figures}</div>{more}' if some else '<p>None.</p>'


def _figure(folder, line) -> str:
  kind, start = _kind(line), line.get('start', 0.0)
  path = os.path.join(folder, line[kind])
  picture = thumbnail.draw(path, kind, start, line.get('end', start) - start)
  where = f' {line["start"]:.2f}–{line["end"]:.2f} s' if 'end' in line else ''
  why = ''
  if 'rule' in line:
    value = f'{_number(line["value"])}, {_bounds(line)}: ' if 'value' in line else ''
    why = f'<br>{html.escape(value + line["reason"])}'
  elif line.get('class'):
    why = f'<br>{html.escape(line["class"])}'
  return (
    f'<figure>{picture}<figcaption>{html.escape(line["entry"])}{where}{why}</figcaption></figure>'
  )
