"""A sweep is run and told.  Each candidate is `sr4 plan` in a process of its own."""

from collections.abc import Callable
from concurrent import futures
import dataclasses
import html
import json
import os
import shlex
import subprocess
import sys
import threading
import time

from sr4.core import errors
from sr4.core import files
from sr4.planning import page as page_lib
from sr4.planning import pictures
from sr4.planning import sweep


def run(
  arguments: list[str],
  candidates: list[sweep.Candidate],
  folder: str,
  processes: int,
  until: float,
  tell: Callable[[str], None] = print,
) -> list[dict]:
  """What is known of the candidates, in their order: each as `sr4 plan` tells it, or its error.

  Those that what was found leaves in doubt are compiled last.

  Args:
    arguments: of `sr4 plan`: config, topology, bucket.
    folder: keeps what was found; what is there already is not compiled again.
    until: of time.monotonic(): after it no compile begins, and those that run are ended.
  """
  paths = {c: os.path.join(folder, f'{c.name}.json') for c in candidates}
  found = {c: read(c, path) for c, path in paths.items() if os.path.exists(path)}
  left, choosing = [c for c in candidates if c not in found], threading.Lock()

  def work():
    while time.monotonic() < until:
      with choosing:
        if not left:
          return
        candidate = min(left, key=lambda c: sweep.doubtful(c, list(found.values())))
        left.remove(candidate)
      row = compiled(arguments, candidate, paths[candidate], processes, until)
      if row:
        with choosing:
          found[candidate] = row
      tell(line(candidate, row))

  with futures.ThreadPoolExecutor(processes) as pool:
    try:
      for worker in [pool.submit(work) for _ in range(processes)]:
        worker.result()
    finally:
      left.clear()
  return [found[c] for c in candidates if c in found]


def claim(folder: str, about: dict):
  """Makes the folder of a sweep.  UserError where it is another's: results would mix.

  Args:
    about: config, topology and bucket, as JSON.
  """
  os.makedirs(folder, exist_ok=True)
  path, said = os.path.join(folder, 'about.json'), json.dumps(about, indent=1, sort_keys=True)
  if not os.path.exists(path):
    files.save(path, said.encode())
  with open(path) as file:
    before = json.load(file)
  if other := [name for name in about if before[name] != json.loads(said)[name]]:
    raise errors.UserError(
      f'{folder} has a sweep of another {" and ".join(other)} (about.json); give another --out'
    )


def compiled(
  arguments, candidate: sweep.Candidate, path: str, processes: int, until: float
) -> dict | None:
  """The row of a candidate, whose plan is kept; None where the time is up.

  Where there is no plan (no compiler, no memory, no disk) that is told, and the next sweep tries
  again.
  """
  overrides = [f'--config.{override}' for override in candidate.overrides]
  command = [sys.executable, '-m', 'sr4', 'plan', *arguments, *overrides]
  command += ['--nearest', '0', '--json', path]
  environment = os.environ | {'SR4_COMPILATIONS': str(processes)}
  left = max(1.0, until - time.monotonic())
  try:
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=left)
  except subprocess.TimeoutExpired:
    return None
  if os.path.exists(path):
    return read(candidate, path)
  why = (done.stderr.strip().splitlines() or [f'exit code {done.returncode}'])[-1]
  return named(candidate, {'error': why})


def read(candidate: sweep.Candidate, path: str) -> dict:
  """The row of a candidate's plan: figures, or the compiler's refusal."""
  with open(path) as file:
    told = json.load(file)
  refused = [{'error': why} for why in told['refused'].values()]
  return named(candidate, (told['buckets'] + refused)[0])


def named(candidate: sweep.Candidate, row: dict) -> dict:
  return dataclasses.asdict(candidate) | {'candidate': candidate.name} | row


def line(candidate: sweep.Candidate, row: dict | None) -> str:
  if row is None:
    return f'{candidate.name}: the time is up'
  return f'{candidate.name}: {row["error"] if "error" in row else figures(row)}'


def figures(row: dict) -> str:
  if not row['fits']:
    return f'{row["hbm_gib"]["total"]:.1f} GiB, does not fit'
  return (
    f'{row["hbm_gib"]["total"]:.1f} GiB, {row["step_seconds"]:.2f} s, MFU {row["mfu"]:.1%}, '
    f'recompute {row["recompute"]:.2f}, exposed {row["exposed"]:.1%}'
  )


def summary(config: list[str], job: sweep.Job, rows: list[dict], dropped: dict[str, int]) -> dict:
  """The sweep as JSON: its rows, the best first, its front, and how to launch the best.

  Args:
    config: the arguments that name it, as `sr4 train` takes them.
    dropped: {rule: candidates that it dropped}.
  """
  whole = [row for row in rows if 'error' not in row]
  fitting = sorted((row for row in whole if row['fits']), key=lambda row: row['step_seconds'])
  large = sorted((row for row in whole if not row['fits']), key=lambda r: r['hbm_gib']['total'])
  front = sweep.front(fitting)
  return {
    'config': shlex.join(config),
    'topology': str(job.topology),
    'capacity': job.topology.spec.hbm_gib,
    'dropped': dropped,
    'rows': fitting + large,
    'failed': [row for row in rows if 'error' in row],
    'front': [row['candidate'] for row in front],
    'launch': launch(config, job.topology, fitting[0]) if fitting else 'none of them fits',
  }


def launch(config: list[str], topology, row: dict) -> str:
  """The command that trains with a row's layout, but for what only its user knows."""
  candidate = sweep.Candidate(**{f.name: row[f.name] for f in dataclasses.fields(sweep.Candidate)})
  overrides = [f'--config.{override}' for override in candidate.overrides]
  train = shlex.join(['train', *config, '--workdir', '/mnt/training/NAME', *overrides])
  return (
    f'python -m launch.launch --with jobset --name NAME --topology {topology} \\\n'
    f'  --image REGISTRY/sr4@sha256:DIGEST --claim training:/mnt/training -- \\\n  {train}'
  )


def table(told: dict) -> str:
  head = f'{"layout":<64} {"GiB":>6} {"step s":>7} {"MFU":>6} {"x":>5} {"exposed":>7}'
  lines = [head]
  for row in told['rows']:
    mark = '*' if row['candidate'] in told['front'] else ' '
    lines.append(f'{mark}{row["candidate"]:<63} {row["hbm_gib"]["total"]:>6.1f} {times(row)}')
  lines += [f' {row["candidate"]:<63} {row["error"]}' for row in told['failed']]
  return '\n'.join([*lines, '* on the front: none is both smaller and faster'])


def times(row: dict) -> str:
  if not row['fits']:
    return 'does not fit'
  parts = row['step_seconds'], row['mfu'], row['recompute'], row['exposed']
  return '{:>7.2f} {:>6.1%} {:>5.2f} {:>7.1%}'.format(*parts)


def page(told: dict) -> str:
  """HTML of a sweep."""
  escape = html.escape
  points = [
    (
      row['hbm_gib']['total'],
      row['step_seconds'],
      row['candidate'],
      row['candidate'] in told['front'],
    )
    for row in told['rows']
    if row['fits']
  ]
  plot = pictures.points(points, 'GiB of a device', 'seconds a step', told['capacity'])
  return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Sweep over {escape(told['topology'])}</title>
<style>{page_lib.STYLE}</style>
</head>
<body>
<h1>{escape(told['topology'])}: {len(points)} layouts fit</h1>
<p class="soft">{escape(told['config'])}. Memory is the compiler's; the time of a step is a model of
the compiled program and has not been measured. Filled points are on the front: none is both smaller
and faster.</p>
<div class="card">{plot}</div>
<h2>The best</h2>
<pre>{escape(told['launch'])}</pre>
<h2>All that were compiled</h2>
<div class="card"><pre>{escape(table(told))}</pre></div>
<h2>Dropped without compiling</h2>
<div class="card"><pre>{escape(json.dumps(told['dropped'], indent=2))}</pre></div>
</body>
</html>
"""
