"""Where the wall time of a run went, over all its restarts.

WORKDIR/goodput.jsonl has a line for each event, with the keys that ml-goodput-measurement logs (and
MaxText through it), so that its calculator can read them too:

  {"job_start_time": 1750000000.0}
  {"tpu_init_start_time": ...}  {"tpu_init_end_time": ...}  and so training_prep, data_loading
  {"step_count": 7, "step_start_time": ...}                 the step after which it is step 7
  {"custom_badput_event_type": "compile", "custom_badput_event_start_time": ...}  and _end_time
  {"job_end_time": ...}

Spans may lie in others; a moment belongs to the innermost.  Shares have the names of that library's
BadputType, and sum with the goodput to 1.
"""

import collections
import contextlib
import dataclasses
import io
import json
import os
import time

NAME = 'goodput.jsonl'  # in the workdir
STANDARD = ('tpu_init', 'training_prep', 'data_loading')  # Those with keys of their own.
BADPUT = {
  'tpu_init': 'TPU_INITIALIZATION',
  'training_prep': 'TRAINING_PREP',
  'compile': 'PROGRAM_STARTUP',
  'data_loading': 'DATA_LOADING_SYNC',
  'checkpoint_save': 'UNPRODUCTIVE_CHECKPOINT_SAVE_TIME',
  'checkpoint_restore': 'UNPRODUCTIVE_CHECKPOINT_RESTORE_TIME',
}
WASTED = 'WASTED_PROGRESS_FROM_DISRUPTION'  # Steps that a later run did again.
BETWEEN = 'INFRASTRUCTURE_RECOVERY_FROM_DISRUPTION'  # From a run's last line to the next run.
OTHER = 'OTHER'
# What it means, where the name does not tell.
MEANINGS = {
  'PROGRAM_STARTUP': 'compiling',
  'DATA_LOADING_SYNC': 'waiting for data',
  WASTED: 'steps done again',
  BETWEEN: 'between runs',
}


class Recorder:
  """Writes the events of one run.  A context: leaving it ends the job.

  Args:
    path: file that the lines are appended to, each at once; None: nowhere (one host writes).
    began: when the process did, in seconds since 1970.
    past: names of the spans since then, one after the other, and when each ended.
    tell: called with a line for each span until the first step begins.
  """

  def __init__(
    self, path: str | None, began: float, past: dict, tell=lambda text: None, clock=time.time
  ):
    self.file = open_log(path) if path else None
    self.began, self.tell, self.clock, self.stepped = began, tell, clock, False
    self._write(job_start_time=began)
    for name, ended in past.items():
      self._edge(name, 'start', began)
      began = self._end(name, began, ended)

  @contextlib.contextmanager
  def span(self, name: str):
    """Time that is not of a step; gives a Span, which knows its seconds when it is over."""
    span, begun = Span(), self.clock()
    self._edge(name, 'start', begun)
    try:
      yield span
    finally:
      span.seconds = self._end(name, begun, self.clock()) - begun

  @contextlib.contextmanager
  def leaving(self, name: str, context):
    """Another context, and what leaving it takes is a span."""
    with contextlib.ExitStack() as last_is_first:
      last_is_first.callback(lambda: self._edge(name, 'end', self.clock()))
      inside = last_is_first.enter_context(context)
      last_is_first.callback(lambda: self._edge(name, 'start', self.clock()))
      yield inside

  def step(self, count: int):
    """A step begins, and the one before it is over."""
    now = self.clock()
    self._write(step_count=count, step_start_time=now)
    if not self.stepped:
      self.stepped = True
      self.tell(f'{now - self.began:6.1f} s  step {count} begins')

  def _end(self, name: str, begun: float, ended: float) -> float:
    self._edge(name, 'end', ended)
    if not self.stepped:
      self.tell(f'{ended - self.began:6.1f} s  {name} took {ended - begun:.1f} s')
    return ended

  def _edge(self, name: str, edge: str, now: float):
    if name in STANDARD:
      self._write(**{f'{name}_{edge}_time': now})
    else:
      self._write(custom_badput_event_type=name, **{f'custom_badput_event_{edge}_time': now})

  def _write(self, **event):
    if self.file:
      self.file.write(json.dumps(event) + '\n')
      self.file.flush()  # A kill loses no line that is written; a cut one is left out by `read`.

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._write(job_end_time=self.clock())
    if self.file:
      self.file.close()


@dataclasses.dataclass
class Span:
  seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Summary:
  """goodput + sum(badput.values()) = 1."""

  seconds: float  # from the first start to the last event, between runs too
  runs: int
  steps: int  # that were kept
  goodput: float  # share of the seconds in those
  badput: dict[str, float]  # {name: share}, the largest first

  def table(self) -> str:
    lines = [
      f'goodput {self.goodput:.1%}: {self.steps} steps kept, in {self.seconds:.0f} s of wall time '
      f'over {self.runs} {"run" if self.runs == 1 else "runs"}'
    ]
    for name, share in self.badput.items():
      told = f'  ({MEANINGS[name]})' if name in MEANINGS else ''
      if share >= 0.0005:
        lines.append(f'{share:>7.1%}  {name}{told}')
    return '\n'.join(lines)


def open_log(path: str):
  """For appending; what a kill cut off gets a line of its own."""
  file = open(path, 'a+b')
  if file.tell() and file.seek(-1, os.SEEK_END) is not None and file.read(1) != b'\n':
    file.write(b'\n')
  return io.TextIOWrapper(file)


def read(path: str) -> list[dict]:
  """The events of a log; a line cut off by a kill is left out, wherever it is."""
  events = []
  with open(path, errors='replace') as f:
    for line in f:
      with contextlib.suppress(json.JSONDecodeError):
        event = json.loads(line)
        if isinstance(event, dict) and any(key.endswith('_time') for key in event):
          events.append(event)
  return events


def summary(events: list[dict]) -> Summary:
  """What the time between each two events went into."""
  redone, runs = _redone(events), 0
  seconds, steps = collections.Counter(), set()
  open_spans, step, name = [], None, BETWEEN
  begun = at = _time(events[0]) if events else 0.0
  for event, again in zip(events, redone):
    now = max(at, _time(event))  # A clock may be set back; time does not.
    kind, edge = _kind(event)
    # A killed run's last line is the last that is known of it.
    seconds[BETWEEN if (kind, edge) == ('job', 'start') else name] += now - at
    at = now
    if kind == 'job':
      runs += edge == 'start'
      open_spans, step, name = [], None, OTHER if edge == 'start' else BETWEEN
      continue
    if kind == 'step':
      step = WASTED if event['step_count'] >= again else 'step'
      steps |= {event['step_count']} if step == 'step' else set()
    elif edge == 'start':
      open_spans.append(kind)
    elif kind in open_spans:
      open_spans.remove(kind)
    inside = open_spans[-1] if open_spans else None
    name = BADPUT.get(inside, f'CUSTOM_BADPUT_EVENTS/{inside}') if inside else step or OTHER
  total = at - begun
  shares = {name: x / total for name, x in seconds.most_common() if x} if total else {}
  good = shares.pop('step', 0.0)
  return Summary(total, runs, len(steps), good, shares)


def _redone(events: list[dict]) -> list[float]:
  """For each event the first step that a later run began with: from there on it is done again."""
  found, first, earliest = [], None, float('inf')
  for event in reversed(events):
    found.append(earliest)
    kind, edge = _kind(event)
    if kind == 'step':
      first = event['step_count']
    elif (kind, edge) == ('job', 'start') and first is not None:
      earliest, first = min(earliest, first), None
  return found[::-1]


def _kind(event: dict) -> tuple[str, str]:
  """('tpu_init', 'start'), ('compile', 'end'), ('step', 'start')"""
  key = next(key for key in event if key.endswith('_time'))
  name, edge, _ = key.rsplit('_', 2)
  return event.get('custom_badput_event_type', name), edge


def _time(event: dict) -> float:
  return next(value for key, value in event.items() if key.endswith('_time'))


def of(workdir: str) -> Summary | None:
  """Of a run's log; None where there is none."""
  path = os.path.join(workdir, NAME)
  events = read(path) if os.path.exists(path) else []
  return summary(events) if events else None
