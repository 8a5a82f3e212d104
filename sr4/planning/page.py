"""A plan as one page that stands alone: pictures, tables, and which is fact and which a model."""

import html
import json

from sr4.planning import pictures

# Every figure of a bucket is one of these.
FACTS = {
  'fits, hbm_gib': "the compiler's buffers; weights, optimizer and batch by their layouts",
  'flops.compiled, recompute, rematerialised': 'matrix products of the compiled program and its '
  'kernels, loops as often as they run, on all devices; rematerialised: without the products that '
  'attention kernels make again in themselves',
  'collectives': 'bytes that a device sends in a step, as a ring would, from the compiled program',
}
MODEL = {
  'flops.model': "three times the forward pass, by the model's geometry",
  'step_seconds, step_range, seconds, exposed': 'a roofline of the facts and the assumptions; no '
  'chip has run it',
  'mfu, chip_seconds_per_sample, days, usd': 'what follows from that time, and from list prices',
}
MEMORY = {
  'parameters': 'c1',
  'optimizer': 'c2',
  'batch': 'c3',
  'activations': 'c4',
  'temporaries': 'c5',
}
TIME = {'matmul': 'c1', 'attention': 'c2', 'memory': 'c3', 'exposed': 'c4', 'host': 'c5'}
COLORS = ('c1', 'c2', 'c3', 'c4', 'c5', 'c6')

STYLE = """
:root { color-scheme: light dark; --page: #fbfaf8; --card: #fff; --ink: #23211e; --soft: #75706a;
  --line: #e6e2dc; --c1: #2f6f8f; --c2: #6aa7b8; --c3: #d9b48f; --c4: #b4552d; --c5: #8a7f9e;
  --c6: #3c7a4b; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --page: #161514; --card: #1f1e1c; --ink: #ece8e1;
  --soft: #9c958b; --line: #34312d; --c1: #6fb2d2; --c2: #a5d3df; --c3: #8a6a4a; --c4: #e48a5c;
  --c5: #b7accb; --c6: #7fbf8d; --bad: #f2918a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 3.5rem 1.25rem 5rem; max-width: 70rem; background: var(--page);
  color: var(--ink); font: 16px/1.55 system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif; }
h1 { margin: 0 0 .4rem; font-size: 2rem; font-weight: 650; letter-spacing: -.02em; }
h2 { margin: 3rem 0 .3rem; font-size: 1.25rem; font-weight: 620; }
p { margin: 0 0 1rem; max-width: 46rem; }
.soft, th, .keys { color: var(--soft); }
.small, .keys { font-size: .875rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 1.1rem 1.25rem; margin-top: 1rem; overflow-x: auto; }
.keys span { margin-right: 1.1rem; white-space: nowrap; } .keys { margin: .6rem 0 0; }
.keys i { display: inline-block; width: .7rem; height: .7rem; margin-right: .35rem;
  border-radius: 2px; }
svg { display: block; width: 100%; min-width: 40rem; height: auto; }
svg text { font: 12px system-ui, sans-serif; fill: var(--ink); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .875rem; }
th { font-weight: 400; } th, td { text-align: right; padding: .35rem 0 .35rem 1rem;
  border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
.tag { font-size: .75rem; border: 1px solid var(--line); border-radius: 4px; padding: 0 .3rem;
  color: var(--soft); }
.no { color: var(--bad); }
pre { overflow-x: auto; font: .8125rem/1.5 ui-monospace, Menlo, Consolas, monospace; }
"""


def legend() -> str:
  """What is fact and what is model, for the terminal."""
  lines = ['Compiler fact: weights to fits, x, PFLOP times x.  All right of it is a model:']
  lines += [f'  {name}: {what}' for name, what in MODEL.items()]
  return '\n'.join(lines)


def advice(found: dict) -> str:
  """The nearest change, for the terminal."""
  if found['fits']:
    return f'  it fits with {found["change"]}'
  size = lambda t: 'refused' if t['total'] is None else f'{t["total"]:.2f} GiB'
  tried = '; '.join(f'{t["change"]}: {size(t)}' for t in found['tried'])
  return f'  none of the {len(found["tried"])} changes that were compiled fits: {tried}'


def page(plan: dict) -> str:
  """HTML of the JSON that `sr4 plan` writes."""
  rows, escape = plan['buckets'], html.escape
  fit = sum(row['fits'] for row in rows)
  taken = {'assumptions': plan['assumptions'], 'flags': plan['options']}
  mesh = ', '.join(f'{axis} {n}' for axis, n in plan['mesh'].items())
  return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(plan['config'])} on {escape(plan['topology'])}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{escape(plan['topology'])}: {fit} of {len(rows)} buckets fit</h1>
<p class="soft">{escape(plan['config'])} on {plan['chips']} chips, mesh {escape(mesh)}. The training
step of each bucket was compiled by the TPU compiler without a chip. What carries
<span class="tag">fact</span> is read from the compiled program; what carries
<span class="tag">model</span> is computed from these facts and the assumptions below, and has not
been measured.</p>
{memory(rows)}
{time(rows)}
{collectives(rows)}
{table(rows)}
{changes(rows)}
<h2>Fact and model</h2>
{said(FACTS, 'fact')}{said(MODEL, 'model')}
<h2>Assumptions and flags</h2>
<pre>{escape(json.dumps(taken, indent=2))}</pre>
</body>
</html>
"""


def memory(rows) -> str:
  capacity = rows[0]['hbm_gib']['capacity']
  drawn = [
    (
      row['name'],
      {part: row['hbm_gib'][part] for part in MEMORY},
      f'{row["hbm_gib"]["total"]:.1f} GiB{"" if row["fits"] else ", does not fit"}',
    )
    for row in rows
  ]
  label = 'Memory of a device by bucket, GiB'
  return section(
    'Memory of a device',
    'fact',
    f'The line is what the compiler may use: {capacity} GiB.',
    pictures.bars(drawn, MEMORY, label, capacity, ' GiB'),
  )


def time(rows) -> str:
  timed = [row for row in rows if row['step_seconds'] is not None]
  if not timed:
    return ''
  drawn = [
    (
      row['name'],
      row['seconds'] | {'exposed': row['exposed'] * row['step_seconds']},
      f'{row["step_seconds"]:.2f} s, MFU {row["mfu"]:.1%}',
    )
    for row in timed
  ]
  told = (
    'Matrix products and attention kernels at their speeds; memory is all other work: elementwise, '
    'changes of layout, waiting for HBM; exposed is communication that nothing runs beside.'
  )
  return section('Where a step goes', 'model', told, pictures.bars(drawn, TIME, told, unit=' s'))


def collectives(rows) -> str:
  large = [(row, c) for row in rows for c in row['collectives'] if c['gib'] > 1e-3]
  axes = list(dict.fromkeys(c['axes'] for _, c in large))
  parts = {name: COLORS[i % 6] for i, name in enumerate(axes)}
  drawn = []
  for row in rows:
    sent = dict.fromkeys(axes, 0.0)
    for c in row['collectives']:
      if c['axes'] in sent:
        sent[c['axes']] += c['gib']
    drawn.append((row['name'], sent, f'{sum(sent.values()):.1f} GiB'))
  body = ''.join(
    f'<tr><td>{html.escape(row["name"])}</td><td>{c["kind"]}</td><td>{c["axes"]}</td>'
    f'<td>{c["gib"]:.3f}</td><td>{c["count"]}</td><td>{"yes" if c["async"] else "no"}</td></tr>'
    for row, c in large
  )
  head = ''.join(f'<th>{name}</th>' for name in ('', 'kind', 'axes', 'GiB', 'count', 'async'))
  told = 'GiB that a device sends in a step, by the axes of the mesh over which it does.'
  shown = pictures.bars(drawn, parts, told, unit=' GiB')
  each = f'<table><tr>{head}</tr>{body}</table>'
  more = f'<details><summary class="soft">Each</summary>{each}</details>'
  return section('Communication', 'fact', told, shown + more)


def table(rows) -> str:
  columns = {
    'bucket': lambda r: html.escape(r['name']),
    'rows': lambda r: f'{r["rows"]:,}',
    'tokens': lambda r: f'{sum(r["tokens"].values()):,}',
    'GiB': lambda r: f'{r["hbm_gib"]["total"]:.2f}',
    'fits': lambda r: 'yes' if r['fits'] else '<span class="no">no</span>',
    'PFLOP': lambda r: f'{r["flops"]["compiled"] / 1e15:,.1f}',
    'of the model': lambda r: f'{r["flops"]["model"] / 1e15:,.1f}',
    'recompute': lambda r: f'{r["recompute"]:.2f}',
    'step, s': lambda r: number(r['step_seconds'], '.2f'),
    'MFU': lambda r: number(r['mfu'], '.1%'),
    'exposed': lambda r: number(r['exposed'], '.1%'),
    'chip-s a sample': lambda r: number(r['chip_seconds_per_sample'], '.1f'),
    'days': lambda r: number(r['days'], '.2f'),
    'USD': lambda r: number(r['usd'], ',.0f'),
  }
  kind = lambda i: 'fact' if 2 < i < 8 and i != 6 else 'model' if i > 2 else ''
  head = ''.join(
    f'<th>{name}{f" {tag(kind(i))}" if kind(i) else ""}</th>' for i, name in enumerate(columns)
  )
  body = ''.join(
    f'<tr>{"".join(f"<td>{show(row)}</td>" for show in columns.values())}</tr>' for row in rows
  )
  days, usd = (sum(row[key] or 0.0 for row in rows) for key in ('days', 'usd'))
  told = f"All buckets that fit: {days:,.1f} days, {usd:,.0f} dollars for the stage's volume."
  return section('Figures', '', told, f'<table><tr>{head}</tr>{body}</table>')


def changes(rows) -> str:
  found = [row for row in rows if row.get('nearest')]
  if not found:
    return ''
  lines = ''.join(
    f'<p><b>{html.escape(row["name"])}</b>: {html.escape(advice(row["nearest"]).strip())}</p>'
    for row in found
  )
  return section('What would make it fit', 'fact', '', lines)


def section(title: str, kind: str, told: str, inside: str) -> str:
  words = f'<p class="small soft">{told}</p>' if told else ''
  mark = f' {tag(kind)}' if kind else ''
  return f'<h2>{title}{mark}</h2>{words}<div class="card">{inside}</div>'


def said(words: dict[str, str], kind: str) -> str:
  return ''.join(
    f'<p class="small">{tag(kind)} <b>{html.escape(name)}</b>: {html.escape(what)}.</p>'
    for name, what in words.items()
  )


def tag(kind: str) -> str:
  return f'<span class="tag">{kind}</span>'


def number(value, form: str) -> str:
  return '–' if value is None else format(value, form)
