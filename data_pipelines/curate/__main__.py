"""Media to what of it is worth training on, with a page that says why.

python -m data_pipelines.curate --media my_clips --out curated
python -m data_pipelines.ingest --media curated/metadata.jsonl --out /data/clips --caption ''
"""

import argparse
import collections
import os
import pathlib
import sys

from data_pipelines.curate import engine
from data_pipelines.curate import report
from data_pipelines.curate import rules
from data_pipelines.curate import scorer
from data_pipelines.curate import tables
from sr4.core import errors
from sr4.core import files


def _parse(argv):
  parser = argparse.ArgumentParser(
    'python -m data_pipelines.curate',
    description='Chooses clips by measured scores and rules, and writes tables and a page of why.',
  )
  add = parser.add_argument
  add('--media', required=True, help='a folder, or metadata.csv, .json, .jsonl as for ingest')
  add('--out', required=True, help='a new folder for metadata.jsonl, dropped.jsonl, index.html')
  add('--rules', help='a JSON file of rules; each run writes its own to rules.json, to start from')
  add('--seconds', type=float, default=15.0, help='the longest clip (15); longer ones are cut')
  add(
    '--scorer',
    action='append',
    default=[],
    metavar='package.module:NAME',
    help='what measures more than needs no weights; several may be given',
  )
  add('--per_concept', type=int, help='the most clips of one concept that stay; all by default')
  add('--per_motion', type=int, help='the most videos in one octave of motion; all by default')
  add(
    '--beam',
    nargs=argparse.REMAINDER,
    default=[],
    help='all that follows is for Apache Beam, e.g. --beam --runner=DataflowRunner --region=...',
  )
  args = parser.parse_args(argv)
  for name in ('seconds', 'per_concept', 'per_motion'):
    value = getattr(args, name)
    if value is not None and not value > 0:
      parser.error(f'--{name} is {value}; it must be above 0.')
  return args


def curate(args) -> tuple[int, list[dict], list[dict]]:
  """Files found, lines kept, lines dropped; all is written when this returns."""
  out = pathlib.Path(args.out)
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise engine.CurationError(f'{out} exists and is not empty; remove it, or write elsewhere.')
  provided = [name for spec in args.scorer for name in scorer.find(spec).provides]
  settings = engine.Settings(
    os.path.abspath(out),
    rules.load(args.rules) if args.rules else rules.chosen(provided),
    tuple(args.scorer),
    args.seconds,
    args.per_concept,
    args.per_motion,
  )
  settings.check()
  items = engine.found(args.media)
  out.mkdir(parents=True, exist_ok=True)
  engine.run(items, settings, args.beam)
  files.save(out / 'rules.json', rules.to_json(settings.rules).encode())
  kept, dropped = (tables.read(out, name) for name in (tables.KEPT, tables.DROPPED))
  tables.account(items, kept, dropped)
  page = report.page(out, len(items), kept, dropped, settings.rules)
  files.save(out / 'index.html', page.encode())
  return len(items), kept, dropped


def _table(found, kept, dropped, out) -> str:
  reasons = collections.Counter(line['rule'] for line in dropped)
  listed = ', '.join(f'{n} {rule}' for rule, n in sorted(reasons.items()))
  rows = [
    ('files', found, ''),
    ('clips kept', len(kept), f'{report.seconds(kept):.1f} seconds'),
    ('dropped', len(dropped), listed),
    ('page', '', f'{out}/index.html'),
  ]
  return '\n'.join(f'{name:12}{value!s:>10}  {note}'.rstrip() for name, value, note in rows)


def main(argv=None):
  args = _parse(argv)
  try:
    found, kept, dropped = curate(args)
  except (errors.UserError, OSError) as e:
    sys.exit(f'error: {e}')
  except (KeyboardInterrupt, RuntimeError) as e:
    if 'KeyboardInterrupt' not in f'{e!r}':  # Beam says it of its workers so.
      raise
    sys.exit('interrupted: the tables are not written.')
  print(_table(found, kept, dropped, args.out))
  if not kept:
    sys.exit(f'error: nothing is kept; {args.out}/index.html says why.')


if __name__ == '__main__':
  main()
