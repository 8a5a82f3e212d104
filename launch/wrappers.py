"""A Job as the commands that launch it: on GKE by kubectl, gcluster or xpk, on TPU VMs, here.

Flags are those that the tools document; docs/launch.md says which, and what never met a cluster.
"""

import dataclasses
import itertools
import json
import pathlib
import shlex
import string

from launch import job as job_lib

HERE = pathlib.Path(__file__).parent
ENTRYPOINT = '/app/launch/entrypoint.sh'  # In the image.
ALL = ('name', 'topology', 'image', 'command', 'grace', 'restarts')  # Every way reads these.
# What a restart may mend: a save after SIGTERM (entrypoint.sh), and deaths by a signal or by the
# container's runtime.  Everything else is a person's to mend.
RESTART_CODES = (42, *range(127, 256))


@dataclasses.dataclass(frozen=True)
class Step:
  """A command, and what it reads."""

  command: tuple[str, ...]
  stdin: str = ''

  def __str__(self):
    """As one would type it."""
    line = ' \\\n  '.join(paired(self.command))
    return f"{line} <<'EOF'\n{self.stdin.rstrip()}\nEOF" if self.stdin else line


def paired(command: tuple[str, ...]) -> list[str]:
  """Words in lines: an option and its value together."""
  lines = [shlex.quote(command[0])]
  for before, word in itertools.pairwise(command):
    option = before.startswith('--') and '=' not in before and before != '--'
    if word.startswith('--') or not (option or len(lines) == 1):
      lines.append(shlex.quote(word))
    else:
      lines[-1] += f' {shlex.quote(word)}'
  return lines


def jobset(job: job_lib.Job) -> list[Step]:
  takes(job, needs=('claim',), may=('namespace', 'queue', 'spot', 'uid', 'account', 'fuse'))
  # One of that name that has ended is in the way, and is said to be: `apply` would do nothing.
  return [Step(('kubectl', 'create', '-f', '-'), manifest(job))]


def manifest(job: job_lib.Job) -> str:
  """The template, filled in.  Values are JSON, which is YAML."""
  nodes = {
    'cloud.google.com/gke-tpu-accelerator': job.machine.accelerator,
    'cloud.google.com/gke-tpu-topology': job.shape,
  }
  mounts = [{'name': 'shm', 'mountPath': '/dev/shm'}]
  volumes = [{'name': 'shm', 'emptyDir': {'medium': 'Memory'}}]
  environment = {'SR4_TPU': job.topology.generation}
  if job.spot:
    nodes['cloud.google.com/gke-spot'] = 'true'
  if job.claim:
    name, path = job.claim.split(':')
    mounts.append({'name': 'claim', 'mountPath': path})
    volumes.append({'name': 'claim', 'persistentVolumeClaim': {'claimName': name}})
    environment['SR4_CACHE'] = cache(path)
  values = dict(
    NAME=job.name,
    NAMESPACE=job.namespace,
    LABELS={'kueue.x-k8s.io/queue-name': job.queue} if job.queue else {},
    RESTARTS=job.restarts,
    SLICES=job.topology.slices,
    HOSTS=job.slice_hosts,
    RESTART_CODES=RESTART_CODES,
    GRACE=job.grace,
    NODES=nodes,
    ANNOTATIONS={'gke-gcsfuse/volumes': 'true'} if job.fuse else {},  # Brings what mounts it.
    ACCOUNT=job.account,
    USER_ID=job.uid,
    IMAGE=job.image,
    # Kubernetes expands $(NAME) in arguments, and $$( is how it is told not to.
    ARGS=[word.replace('$(', '$$(') for word in ('sr4', *job.command)],
    ENVIRONMENT=[{'name': name, 'value': value} for name, value in environment.items()],
    CHIPS=job_lib.HOST_CHIPS,
    MOUNTS=mounts,
    VOLUMES=volumes,
  )
  template = string.Template((HERE / 'jobset.yaml').read_text())
  return template.substitute({name: json.dumps(value) for name, value in values.items()})


def gcluster(job: job_lib.Job) -> list[Step]:
  takes(job, needs=('cluster', 'project', 'zone', 'claim'), may=('queue',))
  return [Step(submission(job))]


def pathways(job: job_lib.Job) -> list[Step]:
  """One process drives all slices; XLA's flags go to the proxy, which compiles."""
  takes(job, needs=('cluster', 'project', 'zone', 'scratch', 'claim'), may=('queue',))
  if len(job.name) > 22:
    raise job_lib.LaunchError(
      f'--name {job.name!r} has {len(job.name)} characters: with Pathways at most 22'
    )
  if not job.scratch.startswith('gs://'):
    raise job_lib.LaunchError(f'--scratch {job.scratch!r}: Pathways wants gs://BUCKET/FOLDER')
  flags = ' '.join(flags_of(job.topology.generation))
  run = ('python', '/app/launch/pathways.py')
  return [
    Step(
      (
        *submission(job, run),
        '--pathways',
        *('--pathways-gcs-location', job.scratch),
        f'--pathways-proxy-args={flags}',
      )
    )
  ]


def submission(job: job_lib.Job, run=('sr4',)) -> tuple[str, ...]:
  """gcluster's words that Pathways and plain jobs share."""
  name, path = job.claim.split(':')
  return (
    *('gcluster', 'job', 'submit', '--name', job.name),
    *('--cluster', job.cluster, '--project', job.project, '--location', job.zone),
    *('--compute-type', job.machine.machine, '--topology', job.shape),
    *('--num-slices', str(job.topology.slices)),
    *('--image', job.image, '--env', f'SR4_TPU={job.topology.generation}'),
    *('--env', f'SR4_CACHE={cache(path)}', '--mount', f'{name};{path};rw'),
    *(('--queue', job.queue) if job.queue else ()),
    *('--restarts', str(job.restarts), '--grace-period', f'{job.grace}s'),
    *('--restart-on-exit-codes', ','.join(map(str, RESTART_CODES))),
    *('--command', shlex.join((ENTRYPOINT, *run, *job.command))),
  )


def queued(job: job_lib.Job) -> list[Step]:
  """TPU VMs: each runs queued.sh when it boots."""
  takes(job, needs=('project', 'zone', 'claim'), may=('spot', 'uid'))
  if not job.machine.runtime:
    raise job_lib.LaunchError(
      f'--topology {job.topology}: {job.topology.generation} is there in GKE alone; take --with '
      'jobset or gcluster'
    )
  settings = dict(
    NAME=job.name,
    IMAGE=job.image,
    GENERATION=job.topology.generation,
    MOUNT=job.claim.partition(':')[2],
    USER_ID=job.uid,
    GRACE=job.grace,
    RESTARTS=job.restarts,
  )
  lines = [f'{name}={shlex.quote(str(value))}' for name, value in settings.items()]
  command = f'COMMAND=({shlex.join((ENTRYPOINT, "sr4", *job.command))})'
  many = job.topology.slices > 1
  return [
    Step(
      (
        *('gcloud', 'compute', 'tpus', 'queued-resources', 'create', job.name),
        *('--project', job.project, '--zone', job.zone),
        *('--accelerator-type', job.slice_name, '--runtime-version', job.machine.runtime),
        *(('--node-count', str(job.topology.slices)) if many else ('--node-id', job.name)),
        *(('--spot',) if job.spot else ()),
        *('--metadata-from-file', 'startup-script=/dev/stdin'),
      ),
      '\n'.join(('#!/usr/bin/env bash', *lines, command, (HERE / 'queued.sh').read_text())),
    )
  ]


def xpk(job: job_lib.Job) -> list[Step]:
  """Legacy: Cluster Toolkit has taken xpk's place.  42 and 127-255 restart there by default."""
  if job.claim:
    raise job_lib.LaunchError('--claim: xpk mounts storages of its own; take --with gcluster')
  takes(job, needs=('cluster', 'project', 'zone'))
  return [
    Step(
      (
        *('xpk', 'workload', 'create', '--workload', job.name),
        *('--cluster', job.cluster, '--project', job.project, '--zone', job.zone),
        *('--tpu-type', job.slice_name, '--num-slices', str(job.topology.slices)),
        *('--docker-image', job.image, '--env', f'SR4_TPU={job.topology.generation}'),
        *('--max-restarts', str(job.restarts)),
        *('--termination-grace-period-seconds', str(job.grace)),
        *('--command', shlex.join((ENTRYPOINT, 'sr4', *job.command))),
      )
    )
  ]


def local(job: job_lib.Job) -> list[Step]:
  """The same hosts and devices as processes and simulated devices of this machine."""
  if job.hosts > 16:
    raise job_lib.LaunchError(
      f'--topology {job.topology}: {job.hosts} hosts are {job.hosts} processes here; rehearse on '
      'a slice of 16 hosts or fewer'
    )
  devices = job.topology.devices // job.hosts
  script = str(HERE / 'local.sh')
  return [Step((script, str(job.hosts), '--devices', str(devices), '--', *job.command))]


WITH = dict(
  jobset=jobset, gcluster=gcluster, queued=queued, pathways=pathways, xpk=xpk, local=local
)


def takes(job: job_lib.Job, needs: tuple[str, ...], may: tuple[str, ...] = ()):
  """LaunchError where an option is missing that this way needs, or given that it does not read."""
  for field in dataclasses.fields(job):
    name, value = field.name, getattr(job, field.name)
    if name in needs and not value:
      raise job_lib.LaunchError(f'--{name} is needed there; give --{name} NAME')
    if name not in (*ALL, *needs, *may) and value != field.default:
      raise job_lib.LaunchError(f'--{name} {value}: nothing reads it there; leave it out')


def cache(path: str) -> str:
  """Where compiled programs outlive their pods (entrypoint.sh)."""
  return f'{path}/.cache/sr4'


def flags_of(generation: str) -> list[str]:
  """The words of its flag file, as entrypoint.sh reads it."""
  lines = (HERE / 'flags' / f'{generation}.txt').read_text().splitlines()
  return [word for line in lines for word in line.partition('#')[0].split()]
