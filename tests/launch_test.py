"""launch/: one Job, every way of launching it, and the scripts that run on its hosts."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from launch import job as job_lib
from launch import launch
from launch import wrappers
from sr4.core import errors
from sr4.planning import topology as topology_lib

HERE = pathlib.Path(wrappers.__file__).parent
DIGEST = 'us-docker.pkg.dev/project/images/sr4@sha256:' + '0123456789abcdef' * 4
CONFIG = 'configs/skyreels_v4.py:video5,large'
SAMPLE = ('sample', '--checkpoint', 'c', '--prompt', 'a')
IMPORT = ('import', '--export', 'there', '--out', '/mnt/t/x')
MESH = '--config.mesh.seq=4', '--config.mesh.data=4'
TRAIN = ('train', '--config', CONFIG, '--workdir', '/mnt/t/video5', *MESH)


def job(topology='2*v5p:4x4x8', command=TRAIN, **fields) -> job_lib.Job:
  given = dict(name='video5', image=DIGEST, claim='training:/mnt/t') | fields
  return job_lib.Job(topology=topology_lib.parse(topology), command=tuple(command), **given)


ZONE = dict(project='project', zone='us-central1-a')
CLUSTER = ZONE | dict(cluster='tpus')
NEEDS = dict(
  jobset={},
  gcluster=CLUSTER,
  pathways=CLUSTER | dict(scratch='gs://bucket/scratch'),
  queued=ZONE,
  xpk=CLUSTER | dict(claim=''),
  local={},
)


@pytest.mark.parametrize(
  'topology, accelerator, shape, hosts, machine, slice_name',
  [
    ('v5e:16x16', 'tpu-v5-lite-podslice', '16x16', 64, 'ct5lp-hightpu-4t', 'v5litepod-256'),
    ('v5p-1024', 'tpu-v5p-slice', '8x8x8', 128, 'ct5p-hightpu-4t', 'v5p-1024'),
    ('v5p-8', 'tpu-v5p-slice', '2x2x1', 1, 'ct5p-hightpu-4t', 'v5p-8'),
    ('v6e-16', 'tpu-v6e-slice', '4x4', 4, 'ct6e-standard-4t', 'v6e-16'),
    ('tpu7x:4x4x4', 'tpu7x', '4x4x4', 16, 'tpu7x-standard-4t', 'tpu7x-128'),
    ('2*v5p:8x4x4', 'tpu-v5p-slice', '4x4x8', 64, 'ct5p-hightpu-4t', 'v5p-256'),
  ],
)
def test_slices_by_the_names_of_the_cloud(topology, accelerator, shape, hosts, machine, slice_name):
  found = job(topology, IMPORT)
  assert (found.machine.accelerator, found.shape, found.hosts) == (accelerator, shape, hosts)
  assert (found.machine.machine, found.slice_name) == (machine, slice_name)
  assert found.hosts * job_lib.HOST_CHIPS == found.topology.chips


def pod_of(manifest: str) -> tuple[dict, dict, dict]:
  """(spec, job's spec, pod's spec) of a JobSet."""
  yaml = pytest.importorskip('yaml')
  spec = yaml.safe_load(manifest)['spec']
  work = spec['replicatedJobs'][0]['template']['spec']
  return spec, work, work['template']['spec']


def test_the_jobset():
  made = job(queue='tpu-queue', spot=True, grace=900)
  text = wrappers.manifest(made)
  spec, work, pod = pod_of(text)
  (container,) = pod['containers']
  assert spec['replicatedJobs'][0]['replicas'] == 2
  assert work['parallelism'] == work['completions'] == 128 // 4
  assert work['backoffLimit'] == 0 and pod['restartPolicy'] == 'Never'
  assert pod['hostNetwork'] and pod['dnsPolicy'] == 'ClusterFirstWithHostNet'
  assert pod['terminationGracePeriodSeconds'] == 900
  assert pod['nodeSelector'] == {
    'cloud.google.com/gke-tpu-accelerator': 'tpu-v5p-slice',
    'cloud.google.com/gke-tpu-topology': '4x4x8',
    'cloud.google.com/gke-spot': 'true',
  }
  assert container['resources']['limits'] == {'google.com/tpu': 4}
  assert [port['containerPort'] for port in container['ports']] == [8471, 8080]
  assert container['image'] == DIGEST and container['args'] == ['sr4', *TRAIN]
  assert {'name': 'SR4_TPU', 'value': 'v5p'} in container['env']
  mounts = {mount['name']: mount['mountPath'] for mount in container['volumeMounts']}
  assert mounts == {'shm': '/dev/shm', 'claim': '/mnt/t'}
  assert {volume['name'] for volume in pod['volumes']} == set(mounts)
  assert '"kueue.x-k8s.io/queue-name": "tpu-queue"' in text


def test_only_the_infrastructure_restarts():
  spec, work, pod = pod_of(wrappers.manifest(job()))
  (rule,) = work['podFailurePolicy']['rules']
  codes = rule['onExitCodes']
  assert (rule['action'], codes['operator']) == ('FailJob', 'NotIn')
  assert codes['containerName'] == pod['containers'][0]['name']
  assert codes['values'] == [42, *range(127, 256)]
  (failure,) = spec['failurePolicy']['rules']
  assert failure == {'action': 'FailJobSet', 'onJobFailureReasons': ['PodFailurePolicy']}
  assert spec['failurePolicy']['maxRestarts'] == 50


def test_a_bucket_is_mounted_by_what_its_annotation_brings():
  def template(**fields):
    return pod_of(wrappers.manifest(job(**fields)))[1]['template']

  plain, bucket = template(), template(fuse=True, account='trainer')
  assert plain['metadata']['annotations'] == {}
  assert plain['spec']['serviceAccountName'] == 'default'
  assert bucket['metadata']['annotations'] == {'gke-gcsfuse/volumes': 'true'}
  assert bucket['spec']['serviceAccountName'] == 'trainer'


def test_awkward_words_reach_sr4_as_they_are():
  words = ('sample', '--checkpoint', 'c', '--out', '/mnt/t/x')
  words += ('--prompt', 'it\'s "50 $NAME" $(HOME): {a}\n# b')
  _, _, pod = pod_of(wrappers.manifest(job('v5p:2x2x1', words)))
  # Kubernetes reads $$( as $(.
  assert [word.replace('$$(', '$(') for word in pod['containers'][0]['args'][1:]] == [*words]
  assert '$$(HOME)' in pod['containers'][0]['args'][-1]


def test_the_template_is_one_for_envsubst_too(monkeypatch):
  if not shutil.which('envsubst'):
    pytest.skip('envsubst (gettext) is not installed')
  values = {}
  substitute = wrappers.string.Template.substitute
  monkeypatch.setattr(
    wrappers.string.Template,
    'substitute',
    lambda self, given: values.update(given) or substitute(self, given),
  )
  text = wrappers.manifest(job())
  template = (HERE / 'jobset.yaml').read_text()
  done = subprocess.run(
    ['envsubst'], input=template, env=os.environ | values, capture_output=True, text=True
  )
  assert done.stdout == text


TOOLS = ('kubectl', 'gcloud', 'gcluster', 'xpk')
RECORD = (
  f'#!{sys.executable}\nimport json, os, sys\n'
  "stdin = sys.stdin.read() if 'kubectl' in sys.argv[0] or 'gcloud' in sys.argv[0] else ''\n"
  'page = [os.path.basename(sys.argv[0]), *sys.argv[1:]], stdin\n'
  "open(os.environ['RECORD'], 'a').write(json.dumps(page) + '\\n')\n"
)


@pytest.fixture
def tools(tmp_path, monkeypatch):
  """Stand-ins for the cloud's tools; gives what they were called with, so far."""
  folder, record = tmp_path / 'bin', tmp_path / 'record'
  folder.mkdir()
  for name in TOOLS:
    (folder / name).write_text(RECORD)
    (folder / name).chmod(0o755)
  monkeypatch.setenv('PATH', f'{folder}:{os.environ["PATH"]}')
  monkeypatch.setenv('RECORD', str(record))
  return lambda: (
    [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
  )


def words(how, topology='v5p:4x4x8', *more, command=TRAIN):
  given = dict(claim='training:/mnt/t') | NEEDS[how]
  return [
    *('--with', how, '--name', 'video5', '--topology', topology, '--image', DIGEST, *more),
    *(word for name, value in given.items() if value for word in (f'--{name}', value)),
    *('--', *command),
  ]


@pytest.mark.parametrize('how', sorted(set(wrappers.WITH) - {'local'}))
def test_a_dry_run_prints_what_go_does_and_touches_nothing(how, tools, capsys, tmp_path):
  arguments = words(how, 'v5p:4x4x8')
  launch.main(arguments)
  script = capsys.readouterr().out
  assert not tools() and 'v5p:4x4x8, 128 chips, 128 devices, 32 hosts' in script
  assert f'sr4 plan --config {CONFIG} --topology v5p:4x4x8 {" ".join(MESH)}' in script
  subprocess.run(['bash', '-euc', script], check=True)  # What it printed, typed in.
  launch.main(['--go', *arguments])
  typed, done = tools()
  assert typed[0] == done[0] and typed[1].strip() == done[1].strip()
  made = wrappers.WITH[how](job('v5p:4x4x8', **NEEDS[how]))
  assert [typed[0]] == [list(step.command) for step in made]


def option(step: wrappers.Step, name: str) -> str:
  return job_lib.option(step.command, name)


def test_wrappers_say_the_same_of_one_job():
  made = {how: job(**NEEDS[how]) for how in wrappers.WITH}
  by = {how: make(made[how])[0] for how, make in wrappers.WITH.items() if how != 'local'}
  for how in ('gcluster', 'pathways'):
    assert option(by[how], '--compute-type') == 'ct5p-hightpu-4t'
    assert (option(by[how], '--topology'), option(by[how], '--num-slices')) == ('4x4x8', '2')
    assert (option(by[how], '--image'), option(by[how], '--restarts')) == (DIGEST, '50')
    codes = option(by[how], '--restart-on-exit-codes').split(',')
    assert codes == [str(code) for code in wrappers.RESTART_CODES]
  assert (option(by['xpk'], '--tpu-type'), option(by['xpk'], '--num-slices')) == ('v5p-256', '2')
  queued = by['queued']
  assert (option(queued, '--accelerator-type'), option(queued, '--node-count')) == ('v5p-256', '2')
  assert f'IMAGE={DIGEST}\n' in queued.stdin
  for how, step in by.items():
    assert ' '.join(TRAIN) in (option(step, '--command') or step.stdin.replace('", "', ' ')), how
  flags = option(by['pathways'], '--pathways-proxy-args').split()
  assert flags == wrappers.flags_of('v5p') and len(flags) > 2
  for how in ('gcluster', 'pathways'):
    assert option(by[how], '--mount') == 'training;/mnt/t;rw'
    assert 'SR4_CACHE=/mnt/t/.cache/sr4' in by[how].command
  assert '"SR4_CACHE", "value": "/mnt/t/.cache/sr4"' in by['jobset'].stdin


def test_a_missing_tool_and_a_failing_one(tools, monkeypatch, tmp_path):
  (tmp_path / 'bin' / 'kubectl').write_text('#!/bin/sh\nexit 7\n')
  with pytest.raises(SystemExit) as failed:
    launch.main(['--go', *words('jobset')])
  assert failed.value.code == 7
  monkeypatch.setenv('PATH', str(tmp_path))
  with pytest.raises(SystemExit, match='launch: kubectl is not installed here'):
    launch.main(['--go', *words('jobset')])


@pytest.mark.parametrize(
  'fields, told',
  [
    (dict(name='Video5'), 'lower-case letters'),
    (dict(name='5video'), 'lower-case letters'),
    (dict(name='a' * 29), '29 characters: at most 28'),
    (dict(image='repository/sr4:latest'), 'by digest'),
    (dict(image='repository/sr4@sha256:abc'), 'by digest'),
    (dict(claim='/mnt/t'), 'NAME:/PATH'),
    (dict(grace=5), 'at least 30'),
    (dict(cluster='My Cluster'), '--cluster'),
    (dict(topology='v4:4x4x4'), 'v5e, v5p, v6e, tpu7x'),
    (dict(topology='v5p:2x2x3'), 'no such slice'),
    (dict(topology='v5p:4x4x6'), 'multiples of 4'),
    (dict(topology='v5e:32x32'), 'up to 16x16'),
    (dict(topology='v6e:2x16'), 'twice the other'),
    (dict(topology='v6e:1x2'), 'a host has 4 chips'),
    (dict(topology='2*v6e:2x2'), 'several hosts'),
    (dict(topology='v5p:4x4'), '3 dimensions'),
    (dict(command=('tarin',)), "'tarin': after -- comes"),
    (dict(command=()), 'after -- comes'),
    (dict(command=('train', '--config', 'no.py', '--workdir', '/mnt/t')), 'no such file'),
    (dict(command=('train', '--config', CONFIG)), 'arguments are required: --workdir'),
    (dict(command=(*TRAIN, '--workdir=gs://bucket/x')), 'mount the bucket'),
    (dict(command=(*TRAIN, '--workdir=out/x')), 'would be lost with its pod'),
    (dict(command=(*TRAIN, '--workdir=/mnt/t/../x')), 'would be lost with its pod'),
    (
      dict(topology='v5p:2x2x1', command=(*SAMPLE, '--out', '/tmp/x')),
      '--out /tmp/x would be lost with its pod',
    ),
    (dict(command=(*SAMPLE, '--out', '/mnt/t/x')), 'sample is of one host, and --topology 2*v5p'),
    (dict(command=(*TRAIN, '--nope', '3')), 'unrecognized arguments: --nope 3'),
    (dict(command=(*TRAIN, '--verify=wrong')), "--verify: invalid choice: 'wrong'"),
    (dict(command=('train', '--config', __file__, '--workdir', '/mnt/t/x')), 'no such file in the'),
    (dict(command=(*TRAIN, '--config.train.stepz=3')), "did you mean 'steps'"),
    (dict(command=(*TRAIN, '--config.train.keep=0')), 'train.keep=0'),
    (dict(command=(*TRAIN, '--config.model.heads=3')), 'heads 3 must be'),
    (dict(command=(*TRAIN, '--config.mesh.seq=1')), 'must be a multiple of data x fsdp'),
    (dict(command=(*TRAIN, '--config.mesh.seq=3')), 'does not divide the 256'),
    (dict(command=(*TRAIN, '--config.mesh.seq=0')), '1 device or more'),
    (dict(command=(*TRAIN, '--config.mesh.data=1')), 'a multiple of the 2 slices'),
    (dict(command=TRAIN[:-1]), 'a multiple of the 2 slices'),
    (dict(command=(*TRAIN, '--config.mesh.fsdp=4')), 'takes 64 of the 256 devices'),
    (dict(command=(*TRAIN, '--config.trian.steps=3')), "did you mean 'train.steps'"),
  ],
)
def test_wrong_jobs(fields, told):
  with pytest.raises(errors.UserError) as error:
    job(**fields)
  assert told in str(error.value) and '\n' not in str(error.value)


def test_presets_of_meshes_need_no_words():
  command = 'train', '--config', 'configs/skyreels_v4.py:joint,large,v5p', '--workdir', '/mnt/t/j'
  assert job('2*v5p:8x8x8', command).command == command
  assert job('2*v5p:8x8x8', (*command, '--config.mesh.data=-1', '--config.mesh.fsdp=32'))


@pytest.mark.parametrize(
  'how, fields, told',
  [
    ('queued', dict(topology='tpu7x:4x4x4'), 'GKE alone'),
    ('queued', dict(topology='v5p:4x4x12', command=IMPORT), 'named by their cores'),
    ('xpk', dict(claim='training:/mnt/t'), 'storages of its own'),
    ('xpk', dict(zone=''), '--zone is needed'),
    ('xpk', dict(uid=0), '--uid 0: nothing reads it there; leave it out'),
    ('gcluster', dict(cluster=''), '--cluster is needed'),
    ('gcluster', dict(spot=True), '--spot True: nothing reads it there'),
    ('queued', dict(queue='q'), '--queue q: nothing reads it there'),
    ('jobset', dict(cluster='prod'), '--cluster prod: nothing reads it there'),
    ('pathways', dict(scratch='/tmp'), 'gs://BUCKET'),
    ('jobset', dict(claim=''), '--claim is needed'),
    ('pathways', dict(name='a' * 23), 'at most 22'),
    ('local', dict(), '64 hosts'),
  ],
)
def test_wrong_for_that_way(how, fields, told):
  with pytest.raises(errors.UserError) as error:
    wrappers.WITH[how](job(**(NEEDS[how] | fields)))
  assert told in str(error.value) and '\n' not in str(error.value)


def test_what_is_wrong_is_one_line_of_the_program():
  done = subprocess.run(
    [sys.executable, '-m', 'launch.launch', *words('jobset', 'v5p:4x4x6')],
    capture_output=True,
    text=True,
    cwd=HERE.parent,
  )
  assert (done.returncode, done.stdout, done.stderr.count('\n')) == (1, '', 1)
  assert done.stderr.startswith('launch: --topology v5p:4x4x6')


# Gathers, scatters and an exchange, small: what the flags are about.
COMPILE = """
import sys, jax, numpy as np
from sr4.planning import topology
devices = topology.devices(topology.parse(sys.argv[1]))
mesh = jax.sharding.Mesh(np.array(devices), ('x',))
rows = jax.NamedSharding(mesh, jax.P('x'))
exchange = lambda h: jax.lax.all_to_all(h, 'x', 1, 0, tiled=True)
def loss(w, x):
  h = jax.shard_map(exchange, mesh=mesh, in_specs=jax.P('x'), out_specs=jax.P('x'))(x @ w)
  return (h.astype('float32') ** 2).mean()
shape = jax.ShapeDtypeStruct((512, 512), 'bfloat16', sharding=rows)
jax.jit(jax.grad(loss), out_shardings=rows).lower(shape, shape).compile()
print('compiled for', len(devices))
"""


def compile_with(slice_name: str, **more):
  pytest.importorskip('libtpu')
  env = {name: value for name, value in os.environ.items() if name != 'LIBTPU_INIT_ARGS'}
  env |= {'JAX_PLATFORMS': 'cpu', **more}
  return subprocess.run(
    [HERE / 'entrypoint.sh', sys.executable, '-c', COMPILE, slice_name],
    capture_output=True,
    text=True,
    env=env,
  )


@pytest.mark.parametrize('slice_name', ['v5e:2x4', 'v5p:2x2x2', 'v6e:2x4', 'tpu7x:2x2x1'])
def test_the_compiler_takes_the_flags(slice_name, tmp_path):
  generation = slice_name.partition(':')[0]
  done = compile_with(slice_name, SR4_TPU=generation, SR4_CACHE=str(tmp_path))
  assert done.returncode == 0 and 'compiled for 8' in done.stdout, done.stderr[-2000:]


def test_the_compiler_refuses_what_it_does_not_know(tmp_path):
  unknown = '--xla_tpu_no_such_flag=1'
  done = compile_with('v5e:2x4', LIBTPU_INIT_ARGS=unknown, SR4_TPU='v5e', SR4_CACHE=str(tmp_path))
  assert done.returncode and 'xla_tpu_no_such_flag' in done.stderr
