"""A training on a TPU slice, described once: every way of launching it derives from a Job.

What is wrong in one is told here, before anything is asked of a cluster.
"""

import argparse
import contextlib
import dataclasses
import io
import math
import os
import pathlib
import re

from sr4 import cli
from sr4.core import config
from sr4.core import errors
from sr4.core import sharding
from sr4.models import system
from sr4.planning import topology as topology_lib
from sr4.training import data
from sr4.training import loop

ROOT = pathlib.Path(__file__).parents[1]
HOST_CHIPS = 4
PODS = ('train', 'import')  # verbs that know of other hosts


class LaunchError(errors.UserError):
  """A Job that cannot be."""


@dataclasses.dataclass(frozen=True)
class Machine:
  """What the cloud calls a generation.  Sources: GKE "Plan TPUs", Cloud TPU "Software versions"."""

  accelerator: str  # label cloud.google.com/gke-tpu-accelerator
  machine: str  # of HOST_CHIPS chips
  most: tuple[int, ...]  # the largest slice
  slice_name: str  # of gcloud and xpk, before -CORES
  runtime: str = ''  # of TPU VMs; empty: there are none


GENERATIONS = {
  'v5e': Machine(
    'tpu-v5-lite-podslice', 'ct5lp-hightpu-4t', (16, 16), 'v5litepod', 'v2-alpha-tpuv5-lite'
  ),
  'v5p': Machine('tpu-v5p-slice', 'ct5p-hightpu-4t', (16, 16, 24), 'v5p', 'v2-alpha-tpuv5'),
  'v6e': Machine('tpu-v6e-slice', 'ct6e-standard-4t', (16, 16), 'v6e', 'v2-alpha-tpuv6e'),
  'tpu7x': Machine('tpu7x', 'tpu7x-standard-4t', (16, 24, 24), 'tpu7x'),
}


@dataclasses.dataclass(frozen=True)
class Job:
  """What runs, and where.

  Raises:
    LaunchError, TopologyError: one thing that is wrong, in one line.
  """

  name: str
  topology: topology_lib.Topology
  image: str  # by digest
  command: tuple[str, ...]  # of sr4: ('train', '--config', ...)
  claim: str = ''  # NAME:/PATH, a PersistentVolumeClaim and where its files appear
  uid: int = 1000  # the user that the image makes
  grace: int = 600  # seconds from SIGTERM to SIGKILL: longer than one save
  restarts: int = 50
  namespace: str = 'default'
  queue: str = ''  # a LocalQueue of Kueue
  cluster: str = ''
  project: str = ''
  zone: str = ''
  spot: bool = False
  account: str = 'default'  # the Kubernetes service account
  fuse: bool = False  # the claim is a bucket
  scratch: str = ''  # gs://..., where Pathways keeps its own files

  def __post_init__(self):
    for field in ('name', 'namespace', 'queue', 'cluster', 'project', 'zone', 'account'):
      value = getattr(self, field)
      if (value or field == 'name') and not re.fullmatch(r'[a-z]([-a-z0-9]*[a-z0-9])?', value):
        raise LaunchError(
          f'--{field} {value!r}: lower-case letters, digits and hyphens, from a letter to a letter '
          'or digit'
        )
    if len(self.name) > 28:
      raise LaunchError(
        f'--name {self.name!r} has {len(self.name)} characters: at most 28, for the names of its '
        'pods to stay under 63'
      )
    if not re.fullmatch(r'[\w.:/-]+@sha256:[0-9a-f]{64}', self.image):
      raise LaunchError(
        f'--image {self.image!r}: give it by digest, REGISTRY/NAME@sha256:..., as docker push '
        'prints it, so that every restart runs the same code'
      )
    for field, least in (('grace', 30), ('restarts', 0), ('uid', 0)):
      if getattr(self, field) < least:
        raise LaunchError(f'--{field} {getattr(self, field)}: at least {least}')
    if self.claim and not re.fullmatch(r'[a-z0-9]([-a-z0-9.]*[a-z0-9])?:(/[\w.-]+)+', self.claim):
      raise LaunchError(f'--claim {self.claim!r}: write NAME:/PATH, as in training:/mnt/training')
    check_slice(self.topology)
    check_command(self)

  @property
  def machine(self) -> Machine:
    return GENERATIONS[self.topology.generation]

  @property
  def slice_hosts(self) -> int:
    return math.prod(self.topology.shape) // HOST_CHIPS

  @property
  def hosts(self) -> int:
    return self.slice_hosts * self.topology.slices

  @property
  def shape(self) -> str:
    """The slice as the cloud writes it: sides ascend, but one host of a cube is 2x2x1."""
    sides = sorted(self.topology.shape)
    return '2x2x1' if sides == [1, 2, 2] else 'x'.join(map(str, sides))

  @property
  def slice_name(self) -> str:
    """v5p-1024.  LaunchError where a name by cores would be another slice."""
    spec = self.topology.spec
    cores = math.prod(self.topology.shape) * spec.cores
    name = f'{self.machine.slice_name}-{cores}'
    try:
      standard = topology_lib.standard(cores, spec, name)
    except topology_lib.TopologyError:
      standard = ()
    if sorted(standard) != sorted(self.topology.shape):
      raise LaunchError(
        f'--topology {self.topology}: slices are named by their cores there, and no such name '
        'means this shape; take the shape of a power of 2, or another --with'
      )
    return name

  def summary(self) -> str:
    t = self.topology
    return (
      f'{self.name}: {t}, {t.chips} chips, {t.devices} devices, {self.hosts} hosts of '
      f'{self.machine.machine}'
    )


def check_slice(t: topology_lib.Topology):
  """LaunchError where the cloud has no such slice."""
  if t.generation not in GENERATIONS:
    raise LaunchError(f'--topology {t}: there are flags and machines for {", ".join(GENERATIONS)}')
  machine, sides = GENERATIONS[t.generation], sorted(t.shape)
  chips = math.prod(sides)
  # Up to a cube of 64 sides are powers of 2; beyond, whole cubes.  In 2-D: all powers of 2, no
  # side more than twice the other.
  if len(sides) == 2:
    exists = all(n & (n - 1) == 0 for n in sides) and sides[1] <= 2 * sides[0]
  elif chips < 64:
    exists = sides in ([1, 2, 2], [2, 2, 2], [2, 2, 4], [2, 4, 4])
  else:
    exists = all(n % 4 == 0 for n in sides)
  if not exists or any(n > most for n, most in zip(sides, machine.most)):
    raise LaunchError(
      f'--topology {t}: the cloud has no such slice; '
      + (
        'sides are powers of 2, one at most twice the other, up to 16x16'
        if len(sides) == 2
        else '2x2x1, 2x2x2, 2x2x4, 2x4x4, or sides that are multiples of 4, up to '
        + 'x'.join(map(str, machine.most))
      )
    )
  if chips % HOST_CHIPS:
    raise LaunchError(f'--topology {t}: a host has {HOST_CHIPS} chips; take 2x2 or more')
  if t.slices > 1 and chips == HOST_CHIPS:
    raise LaunchError(f'--topology {t}: several slices must have several hosts each')


def option(command: tuple[str, ...], name: str) -> str:
  """The value of the last `--name VALUE` or `--name=VALUE`; '' where there is none."""
  found = ''
  for one, following in zip(command, (*command[1:], '')):
    if one == name:
      found = following
    elif one.startswith(f'{name}='):
      found = one.partition('=')[2]
  return found


def check_command(job: Job):
  """A UserError where sr4 would refuse its command at once, or lose what it makes."""
  verb = job.command[0] if job.command else ''
  if verb not in cli.VERBS:
    raise LaunchError(
      f'{verb!r}: after -- comes what sr4 is to do: {", ".join(cli.VERBS)}, and its options'
    )
  if verb not in PODS and job.hosts > 1:
    raise LaunchError(
      f'{verb} is of one host, and --topology {job.topology} has {job.hosts}: each would do all of '
      f'it; take a slice of {HOST_CHIPS} chips'
    )
  args = parsed(job.command)
  for name in ('workdir', 'out'):
    if folder := getattr(args, name, ''):
      check_folder(name, folder, job.claim)
  if named := getattr(args, 'config', ''):
    check_config(named, args.overrides, job.topology, trains=verb == 'train')


def parsed(command: tuple[str, ...]) -> argparse.Namespace:
  """As the verb itself reads it."""
  said = io.StringIO()
  try:
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
      return cli.parsed(cli.module(command[0]), command[1:])
  except SystemExit as end:
    raise LaunchError(said.getvalue().strip().splitlines()[-1]) from end


def check_folder(name: str, folder: str, claim: str):
  """LaunchError where what is written there would not be found again."""
  if folder.startswith('gs://'):
    raise LaunchError(
      f'--{name} {folder}: sr4 writes files; mount the bucket (Cloud Storage FUSE) through '
      '--claim NAME:/PATH --fuse and give a folder under /PATH'
    )
  storage = claim.partition(':')[2]
  if storage and not pathlib.PurePath(os.path.normpath(folder)).is_relative_to(storage):
    raise LaunchError(
      f'--{name} {folder} would be lost with its pod; give a folder under {storage}, where '
      f'--claim {claim} is mounted'
    )


def check_config(named: str, overrides, topology: topology_lib.Topology, trains: bool):
  """LaunchError or ConfigError of a config that is not there, or that a training would refuse."""
  file = named.partition(':')[0]
  place = (ROOT / file).resolve()
  if not place.is_file() or not place.is_relative_to(ROOT / 'configs'):
    raise LaunchError(
      f'--config {file!r}: no such file in the image; give the path of a config that it has, '
      'such as configs/skyreels_v4.py:video1,base'
    )
  loaded = config.load(str(ROOT / named), overrides)
  if not trains:
    return
  system.build(loaded)
  asked = loop.Sections.of(loaded)
  mesh = dataclasses.asdict(asked.mesh)
  shape = sharding.mesh_shape(topology.devices, topology.slices, **mesh)
  rows = {name: bucket['rows'] for name, bucket in loaded.data.buckets.items()}
  data.check_rows(rows, shape, asked.step.accumulate)
