"""Writes a page about a run: figures, losses, and clips beside the truth, in one file to pass on.

  sr4 report --workdir out/demo

Reads metrics.json, clips.json, config.json and clips/ of `sr4 evaluate` and, where there is one,
metrics.jsonl and goodput.jsonl of `sr4 train`.  The page loads nothing from anywhere.
"""

import sys

LARGEST = 7_500_000  # Characters; clips that do not fit are left out.

STYLE = """
:root { color-scheme: light dark; --page: #fbfaf8; --card: #fff; --ink: #23211e; --soft: #75706a;
  --line: #e6e2dc; --video: #b4552d; --audio: #2f6f8f; --good: #3c7a4b; }
@media (prefers-color-scheme: dark) { :root { --page: #161514; --card: #1f1e1c; --ink: #ece8e1;
  --soft: #9c958b; --line: #34312d; --video: #e48a5c; --audio: #6fb2d2; --good: #7fbf8d; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 3.5rem 1.25rem 5rem; max-width: 70rem; background: var(--page);
  color: var(--ink); font: 16px/1.55 system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif; }
h1 { margin: 0 0 .4rem; font-size: 2rem; font-weight: 650; letter-spacing: -.02em;
  line-height: 1.2; }
h2 { margin: 3.5rem 0 .3rem; font-size: 1.25rem; font-weight: 620; letter-spacing: -.01em; }
h3 { margin: 0; font-size: 1rem; font-weight: 600; }
p { margin: 0 0 1rem; max-width: 44rem; }
.soft, th, figcaption { color: var(--soft); }
.small { font-size: .875rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); gap: 1rem;
  margin-top: 2rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 1.1rem 1.25rem; }
.value { font-size: 2.1rem; font-weight: 620; letter-spacing: -.02em; line-height: 1.25;
  font-variant-numeric: tabular-nums; }
.value span { font-size: 1rem; font-weight: 400; color: var(--soft); letter-spacing: 0; }
.clip { margin-top: 1rem; }
.clip header { display: flex; flex-wrap: wrap; gap: .1rem 1rem; justify-content: space-between;
  align-items: baseline; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1.5rem; margin-top: .7rem; }
figure { margin: 0; }
figcaption { font-size: .8125rem; margin-bottom: .35rem; }
.view { display: grid; grid-template-columns: 9.5rem 1fr; gap: .8rem; align-items: start; }
video { width: 100%; aspect-ratio: var(--aspect, 1); border-radius: 6px; background: #101014;
  display: block; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font: 11px system-ui, sans-serif; fill: var(--soft);
  font-variant-numeric: tabular-nums; }
.pixels { image-rendering: pixelated; }
table { border-collapse: collapse; margin-top: .8rem; font-variant-numeric: tabular-nums; }
th { font-weight: 400; text-align: right; }
td { text-align: right; }
th, td { padding: .4rem 0 .4rem 2rem; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
.wide { overflow-x: auto; }
.yes { color: var(--good); } .no { color: var(--video); }
pre { margin: .8rem 0 0; font: .8125rem/1.5 ui-monospace, 'SF Mono', Menlo, Consolas, monospace;
  overflow-x: auto; }
summary { cursor: pointer; }
@media (max-width: 56rem) { .pair { grid-template-columns: 1fr; } }
@media (max-width: 30rem) { body { padding-top: 2rem; } .view { grid-template-columns: 1fr; }
  video { max-width: 14rem; } th, td { padding-left: 1rem; } }
"""


def arguments(parser):
  parser.add_argument('--workdir', required=True, metavar='DIR', help='of the training')
  parser.add_argument(
    '--evaluation', metavar='DIR', help="evaluate's --out; the workdir by default"
  )
  parser.add_argument('--out', metavar='FILE', help='WORKDIR/index.html by default')


def main(args):
  import os

  from sr4.core import files
  from sr4.training import goodput

  folder = args.evaluation or args.workdir
  figures, clips, config = (read(folder, name) for name in ('metrics', 'clips', 'config'))
  losses = read_losses(os.path.join(args.workdir, 'metrics.jsonl'))
  spent = goodput.of(args.workdir)
  out = args.out or os.path.join(args.workdir, 'index.html')
  clip_folder = os.path.join(folder, 'clips')
  files.save(out, page(figures, clips, config, losses, spent, clip_folder).encode())
  print(f'{out}  {os.path.getsize(out) / 1e6:.1f} MB')


def read(folder: str, name: str):
  import json
  import os

  from sr4.core import errors

  path = os.path.join(folder, f'{name}.json')
  if not os.path.exists(path):
    raise errors.UserError(
      f'{path} is missing: run sr4 evaluate --checkpoint {folder}/checkpoints --out {folder} first'
    )
  try:
    with open(path) as f:
      found = json.load(f)
  except ValueError as error:
    found = error
  if not found or not isinstance(found, dict | list):
    raise errors.UserError(f'{path} is damaged ({found}); run sr4 evaluate again')
  return found


def read_losses(path: str) -> list[dict]:
  """The rows of training; none where somebody else trained."""
  import os

  from sr4.training import metrics

  return metrics.read(path) if os.path.exists(path) else []


def page(figures, clips, config, losses, spent, folder) -> str:
  import json

  steps = f'{figures["steps"]:,}'
  took = (
    f' It took {duration(figures["seconds"])} from the first command to these figures.'
    if figures.get('seconds_since') == 'began'
    else ''
  )
  head = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>sr4 after {steps} steps</title>
<style>{STYLE}</style>
</head>
<body>
<h1>sr4 after {steps} steps</h1>
<p>sr4 makes a clip and its sound together from a line of text. This model has learnt from
SR4-World, a small world of coloured shapes that bounce off the walls and ring when they do. Below
is what it makes of the captions of {figures['count']} clips that it has never seen.{took}</p>
{cards(figures)}
"""
  tail = f"""<h2>All figures</h2>
<p class="small soft">The same measurements on three sets of clips with the same captions: made by
the model, the world's own after a round trip through the codecs (the most a model can reach), and
the world's own. Without skill: guessing, or the sounds of other clips.</p>
{table(figures)}
<h2>Configuration</h2>
<details><summary class="soft">As trained, and as sampled</summary>
<pre>{escape(json.dumps({'sampling': figures.get('sampling'), **config}, indent=2))}</pre></details>
</body>
</html>
"""
  middle = loss_section(losses) + time_section(spent)
  room = LARGEST - len(head) - len(middle) - len(tail)
  return head + middle + clip_section(clips, folder, room) + tail


def cards(figures) -> str:
  """The three answers, each on a line from no skill to the most that can be reached."""

  from sr4.metrics import drawing

  rows = []
  for title, name, meaning in (
    ('Colour', 'color_accuracy', 'of clips show the colour that the caption names'),
    ('Shape', 'shape_accuracy', 'of clips show the shape that the caption names'),
  ):
    share, least, most = (figures.get(prefix + name) for prefix in ('', 'chance_', 'codec_'))
    rows.append(
      card(
        title,
        percent(share),
        meaning,
        scale(share, least, most),
        f'guessing {percent(least)} · through the codecs {percent(most)}',
      )
    )
  error, least, most = (
    figures.get(name)
    for name in ('onset_error_ms', 'onset_error_shuffled_ms', 'codec_onset_error_ms')
  )
  along = lambda ms: None if ms is None else 1 - drawing.position(ms, 1, 1000)
  value = 'nothing to time' if error is None else f'{milliseconds(error)}'
  rows.append(
    card(
      'Sync',
      value,
      'between a bounce seen and a ring heard, the median of '
      f'{figures.get("onset_clips", 0)} clips with either; the truth has '
      f'{figures.get("truth_onset_clips", 0)}',
      scale(along(error), along(least), along(most)),
      f'shuffled sounds {milliseconds(least)} · through the codecs {milliseconds(most)}',
    )
  )
  return f'<div class="cards">{"".join(rows)}</div>'


def card(title, value, meaning, line, beside) -> str:
  return (
    f'<section class="card"><h3 class="soft">{title}</h3><div class="value">{value}</div>'
    f'<p class="small" style="margin:0 0 .9rem">{meaning}</p>{line}'
    f'<p class="small soft" style="margin:.7rem 0 0">{beside}</p></section>'
  )


def scale(value, least, most) -> str:
  """A line from 0 to 1: what no skill and the codecs reach as ticks, the model as a dot."""
  marks = ''.join(
    f'<line x1="{200 * x:.1f}" x2="{200 * x:.1f}" y1="3" y2="13" stroke="var(--soft)" '
    'stroke-width="1.5"/>'
    for x in (least, most)
    if x is not None
  )
  dot = (
    ''
    if value is None
    else (
      f'<line x1="0" x2="{200 * value:.1f}" y1="8" y2="8" stroke="var(--video)" stroke-width="3" '
      f'stroke-linecap="round"/><circle cx="{200 * value:.1f}" cy="8" r="5" fill="var(--video)"/>'
    )
  )
  return (
    '<svg viewBox="0 0 200 16" role="img" aria-label="from no skill to the ceiling" '
    'style="padding:0 5px"><line x1="0" x2="200" y1="8" y2="8" stroke="var(--line)" '
    f'stroke-width="3" stroke-linecap="round"/>{marks}{dot}</svg>'
  )


def table(figures) -> str:
  rows = (
    ('Colour right', 'color_accuracy', '{:.3g}%', 'chance_color_accuracy'),
    ('Shape right', 'shape_accuracy', '{:.3g}%', 'chance_shape_accuracy'),
    ('Bounce to ring, ms', 'onset_error_ms', '{:.1f}', 'onset_error_shuffled_ms'),
    ('Clips with a bounce or a ring', 'onset_clips', '{:d}', None),
    ('Difference between seeds, of 255', 'diversity', '{:.1f}', None),
    ('Picture kept, PSNR in dB', 'psnr_db', '{:.1f}', None),
    ('Sound kept, SI-SDR in dB', 'si_sdr_db', '{:.1f}', None),
  )

  def cell(name, form):
    value = figures.get(name)
    value = 100 * value if value is not None and '%' in form else value
    return f'<td>{"" if value is None else form.format(value)}</td>'

  body = ''.join(
    f'<tr><td>{words}</td>'
    + ''.join(cell(prefix + name, form) for prefix in ('', 'codec_', 'truth_'))
    + cell(least, form)
    + '</tr>'
    for words, name, form, least in rows
  )
  return (
    '<div class="wide"><table><thead><tr><th></th><th scope="col">model</th><th scope="col">codecs'
    '</th><th scope="col">world</th><th scope="col">no skill</th></tr></thead><tbody>'
    f'{body}</tbody></table></div>'
  )


def loss_section(rows) -> str:
  """Of the rows in which each modality that was trained has a loss to draw."""
  import math

  from sr4.metrics import drawing

  drawn = lambda row, name: 0 < row.get(name, 0) < math.inf
  names = [name for name in ('video', 'audio') if any(drawn(row, name) for row in rows)]
  rows = [row for row in rows if names and all(drawn(row, name) for name in names)]
  if len(rows) < 2:
    return ''
  steps = [row['step'] for row in rows]
  curves = {name: [row[name] for row in rows] for name in names}
  return (
    '<h2>Training</h2><p class="small soft">Loss of each modality by step; thin as it was, thick '
    f'its running mean.</p><div class="card">{drawing.chart(steps, curves)}</div>'
  )


def time_section(spent) -> str:
  """Where the time of training went; spent: a goodput.Summary, or None."""
  if spent is None:
    return ''
  rows = [('Steps that were kept', spent.goodput), *spent.badput.items()]
  body = ''.join(f'<tr><td>{escape(name)}</td><td>{share:.1%}</td></tr>' for name, share in rows)
  return (
    f'<h2>Time</h2><p class="small soft">What {duration(spent.seconds)} of training went into, '
    f'over {spent.runs} start{"" if spent.runs == 1 else "s"} of the program.</p>'
    f'<div class="wide"><table><tbody>{body}</tbody></table></div>'
  )


def clip_section(clips, folder, room: int) -> str:
  import os

  parts = [
    """<h2>Clips</h2>
<p class="small soft">Left, what the model made of the caption; right, one clip of the world with
that caption: it starts elsewhere, so it need not bounce at the same time. The line is the sound,
the band below it its frequencies up to 2.4 kHz. <span style="color:var(--video)">Orange</span>
marks a bounce that is seen, <span style="color:var(--audio)">blue</span> a ring that is heard, as
measured.</p>"""
  ]
  for i, row in enumerate(clips):
    path = os.path.join(folder, f'{i:03d}')
    if not os.path.exists(f'{path}.npz'):
      break
    part = clip_card(row, path)
    room -= len(part)
    if room < 0:
      break
    parts.append(part)
  return '\n'.join(parts)


def clip_card(row, path) -> str:
  import numpy as np

  with np.load(f'{path}.npz') as data:
    views = [
      view(
        title,
        f'{path}{suffix}.mp4',
        row['prompt'],
        row[name],
        data[prefix + 'frames'],
        np.float32(data[prefix + 'samples']),
        float(data['fps']),
        int(data['sample_rate']),
      )
      for title, suffix, name, prefix in (
        ('Model', '', 'made', ''),
        ('World', '.truth', 'truth', 'truth_'),
      )
    ]
  made = row['made']
  seen = 'nothing' if made['color'] is None else f'{made["color"]} {made["shape"]}'
  kind, sign = ('yes', '✓') if seen == row['wanted'] else ('no', '✗')
  return (
    f'<article class="card clip"><header><h3>{escape(row["prompt"])}</h3>'
    f'<span class="small {kind}">{sign} measured as {escape(seen)}</span></header>'
    f'<div class="pair">{"".join(views)}</div></article>'
  )


def view(title, video, prompt, row, frames, samples, fps, sample_rate) -> str:
  """One clip: it plays, and lies open along time."""

  from sr4.metrics import drawing

  with open(video, 'rb') as f:
    source = drawing.data_uri('video/mp4', f.read())
  label = f'{title}: {escape(prompt)}'
  height, width = frames.shape[1:3]
  return (
    f'<figure><figcaption>{title}</figcaption><div class="view">'
    f'<video controls loop playsinline preload="metadata" src="{source}" aria-label="{label}" '
    f'style="--aspect:{width}/{height}"></video>'
    f'{drawing.timeline(label, row, frames, samples, fps, sample_rate)}</div></figure>'
  )


def escape(text: str) -> str:
  import html

  return html.escape(text)


def percent(share) -> str:
  return f'{100 * share:.3g}%'


def milliseconds(value) -> str:
  return 'none' if value is None else f'{value:.1f} ms' if value < 10 else f'{value:.0f} ms'


def duration(seconds) -> str:
  return f'{seconds:.0f} seconds' if seconds < 120 else f'{seconds / 60:.0f} minutes'


if __name__ == '__main__':
  from sr4 import cli

  cli.run(sys.modules[__name__])
