"""Launches a training on TPU slices, or says what it would do: nothing is touched without --go.

  python -m launch.launch --with jobset --name video5 --topology v5p:8x8x8 \\
      --image REGISTRY/sr4@sha256:... --claim training:/mnt/training -- \\
      train --config configs/skyreels_v4.py:video5,large,v5p --workdir /mnt/training/video5

What it prints is a shell script: the description as comments, then each command.
"""

import argparse
import dataclasses
import shlex
import shutil
import subprocess
import sys

from launch import job as job_lib
from launch import wrappers
from sr4.core import errors
from sr4.planning import topology as topology_lib

HELP = {
  'name': 'at most 28 characters',
  'topology': 'v5p:8x8x8, v5p-1024, or 2*v5p:8x8x8 for two slices',
  'image': 'by digest: REGISTRY/sr4@sha256:...',
  'claim': 'NAME:/PATH: a PersistentVolumeClaim and where it is mounted',
  'fuse': 'the claim is a bucket, mounted by Cloud Storage FUSE (jobset)',
  'account': 'the service account of its pods (jobset)',
  'uid': 'the user inside the container (jobset, queued)',
  'grace': 'seconds from SIGTERM to SIGKILL: longer than one save',
  'restarts': 'at most, after failures of the infrastructure',
  'namespace': 'of Kubernetes (jobset)',
  'queue': 'a LocalQueue of Kueue (jobset, gcluster, pathways)',
  'cluster': 'of GKE (gcluster, pathways, xpk)',
  'project': 'of Google Cloud (gcluster, pathways, queued, xpk)',
  'zone': 'of Google Cloud (gcluster, pathways, queued, xpk)',
  'spot': 'machines that may be taken away (jobset, queued)',
  'scratch': 'gs://BUCKET/FOLDER for what Pathways itself keeps (pathways)',
}


def parser() -> argparse.ArgumentParser:
  p = argparse.ArgumentParser(
    prog='python -m launch.launch',
    usage='%(prog)s --with HOW --name NAME --topology SLICE --image IMAGE ... [--go] -- VERB ...',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  p.add_argument('--with', dest='how', required=True, choices=wrappers.WITH, help='xpk is legacy')
  p.add_argument('--go', action='store_true', help='do it; without it, only say it')
  for field in dataclasses.fields(job_lib.Job):
    if field.name not in HELP:
      continue
    words = dict(help=HELP[field.name])
    if field.default is dataclasses.MISSING:
      words |= dict(required=True)
    elif field.type is bool:
      words |= dict(action='store_true')
    else:
      words |= dict(default=field.default, type=field.type)
    p.add_argument(f'--{field.name}', **words)
  return p


def main(argv: list[str]):
  at = argv.index('--') if '--' in argv else len(argv)
  own, command = argv[:at], argv[at + 1 :]
  args = vars(parser().parse_args(own))
  how, go = args.pop('how'), args.pop('go')
  try:
    topology = topology_lib.parse(args.pop('topology'))
    job = job_lib.Job(topology=topology, command=tuple(command), **args)
    steps = wrappers.WITH[how](job)
    print(f'# {job.summary()}')
    if job.command[0] == 'train' and how != 'local':
      print(f'# Does it fit?  {plan(job)}')
    if how == 'xpk':
      print('# xpk is legacy: gcluster has taken its place.')
    print('# A dry run: --go does it.' if not go else '# Doing it:')
    for step in steps:
      print(step, flush=True)
      if go:
        run(step)
  except (errors.UserError, OSError) as error:
    raise SystemExit(f'launch: {error}') from error


def plan(job: job_lib.Job) -> str:
  """The command that compiles this training for this slice."""
  overrides = [word for word in job.command if word.startswith('--config.')]
  config, topology = job_lib.option(job.command, '--config'), str(job.topology)
  return shlex.join(['sr4', 'plan', '--config', config, '--topology', topology, *overrides])


def run(step: wrappers.Step):
  """Does it; a failure ends everything with its code."""
  tool = step.command[0]
  if not shutil.which(tool):
    raise job_lib.LaunchError(f'{tool} is not installed here; what it would do is above')
  done = subprocess.run(step.command, input=step.stdin or None, text=True, check=False)
  if done.returncode:
    raise SystemExit(done.returncode)


if __name__ == '__main__':
  main(sys.argv[1:])
