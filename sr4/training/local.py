"""Emergency checkpoints: each host's shards on its own disk, often and cheap.

  LOCAL_DIR/RUN-2-of-4/1250/{page.json, shards.safetensors, files-0-of-1.json}

They save the steps since the last checkpoint in the workdir when processes die, not when a disk
does, and serve the same hosts with the same mesh alone; for all else there is the workdir.  RUN is
the workdir's own number, so that another run's steps are never taken up.
"""

import hashlib
import json
import os
import shutil
import threading
import uuid

import jax
import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from sr4.core import files
from sr4.core import pod
from sr4.training import manifest

KEEP = 2  # and the one being written: a host is ahead of another by one at most


class Local:
  """The emergency checkpoints of this host.

  Args:
    folder: on this host's disk.
    directory: the run's main checkpoints, which all hosts see.
  """

  def __init__(self, folder: str, directory: str):
    place = f'{run_of(directory)}-{jax.process_index()}-of-{jax.process_count()}'
    self.folder = os.path.join(os.path.abspath(folder), place)
    os.makedirs(self.folder, exist_ok=True)
    self.chosen, self.thread, self.error = None, None, None
    self.newest = -1  # of the run that this one goes on with; what is above it is of no use

  def steps(self) -> list[int]:
    return sorted(int(name) for name in os.listdir(self.folder) if name.isdigit())

  def save(self, step: int, flat: dict, page: dict):
    """Copies the shards; then writes them behind the run's back.  OSError of the one before."""
    self.wait()
    ours = [s for s in self.steps() if s <= self.newest]
    for old in set(self.steps()) - set(ours[-KEEP:]):
      shutil.rmtree(os.path.join(self.folder, str(old)))
    self.newest = step
    page = page | {'layout': layout(flat)}
    shards = {
      f'{name}#{i}': np.array(block).reshape(-1).view(np.uint8)
      for name, x in flat.items()
      for i, block in enumerate(blocks(x).values())
    }
    self.thread = threading.Thread(target=self._write, args=(step, shards, page), daemon=True)
    self.thread.start()

  def _write(self, step: int, shards: dict, page: dict):
    final = os.path.join(self.folder, str(step))
    try:
      shutil.rmtree(f'{final}.part', ignore_errors=True)
      os.makedirs(f'{final}.part')
      files.save(os.path.join(f'{final}.part', 'page.json'), json.dumps(page).encode())
      safetensors_numpy.save_file(shards, os.path.join(f'{final}.part', 'shards.safetensors'))
      manifest.seal(f'{final}.part')
      os.rename(f'{final}.part', final)
    except Exception as error:  # Told by the next `wait`, in the main thread.
      self.error = error

  def wait(self):
    if self.thread:
      self.thread.join()
    error, self.error = self.error, None
    if error:
      raise OSError(f'{self.folder}: an emergency checkpoint could not be written: {error}')

  def latest(self, like: dict, main: int | None) -> int | None:
    """The newest step that all hosts have, here if `chosen` is it, or else the main one.

    Hosts agree on it: they all call this.  What is newer goes with the next save: until then this
    may be the wrong config, and the right one wants it.
    """
    mine, ours = [s for s in self.steps() if main is None or s > main], layout(like)
    told = pod.gather(json.dumps([s for s in mine if self.page(s)['layout'] == ours]))
    common = set.intersection(*(set(json.loads(steps)) for steps in told))
    self.chosen = None
    for step in sorted(common, reverse=True):
      if all(told == 'whole' for told in pod.gather(self._whole(step))):
        self.chosen = step
        break
    latest = main if self.chosen is None else self.chosen
    self.newest = -1 if latest is None else latest
    if self.chosen is None and mine and not jax.process_index():
      print(
        f'emergency checkpoints of the steps {mine} are damaged, not on all hosts, or of another '
        'mesh or model: they are not taken up, and the next one replaces them',
        flush=True,
      )
    return latest

  def _whole(self, step: int) -> str:
    path = os.path.join(self.folder, str(step))
    try:
      told = manifest.read(path)
      return 'damaged' if told is None or manifest.damaged(path, told) else 'whole'
    except (manifest.Damaged, OSError):
      return 'damaged'

  def page(self, step: int) -> dict:
    """{'layout': ''} where it cannot be read."""
    try:
      with open(os.path.join(self.folder, str(step), 'page.json')) as f:
        return json.load(f)
    except (ValueError, OSError):
      return {'layout': ''}

  def restore(self, step: int, like: dict) -> dict:
    """{name: array}, laid out as `like`."""
    path = os.path.join(self.folder, str(step), 'shards.safetensors')
    with safetensors.safe_open(path, 'numpy') as stored:

      def array(name, x):
        number = {index: i for i, index in enumerate(blocks(x))}
        read = lambda index: (
          stored.get_tensor(f'{name}#{number[_plain(index, x.shape)]}')
          .view(x.dtype)
          .reshape(x.sharding.shard_shape(x.shape))
        )
        return jax.make_array_from_callback(x.shape, x.sharding, read)

      return {name: array(name, x) for name, x in like.items()}


def blocks(x) -> dict:
  """{((start, stop), ...): this host's part there, or None of a shape}, in one order for all."""
  if isinstance(x, jax.Array):
    found = {_plain(shard.index, x.shape): shard.data for shard in x.addressable_shards}
  else:
    indices = x.sharding.addressable_devices_indices_map(x.shape).values()
    found = {_plain(index, x.shape): None for index in indices}
  return dict(sorted(found.items()))


def _plain(index, shape) -> tuple:
  return tuple(s.indices(n)[:2] for s, n in zip(index, shape))


def layout(flat: dict) -> str:
  """What this host holds: names, shapes, dtypes and parts."""
  told = [(name, x.shape, str(x.dtype), tuple(blocks(x))) for name, x in sorted(flat.items())]
  return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


def run_of(directory: str) -> str:
  """The number that a folder of checkpoints got when it was first used; a copy gets its own."""
  path, here = os.path.join(directory, '.run'), os.path.realpath(directory)

  def told() -> list[str]:
    with open(path) as f:
      return f.read().split(' ', 1)

  if not jax.process_index():
    found = told() if os.path.exists(path) else []
    if found[1:] != [here]:
      number = found[0] if len(found) == 1 else uuid.uuid4().hex[:12]  # Once it had no path.
      files.save(path, f'{number} {here}'.encode())
  pod.gather('')  # It is there for all.
  return told()[0]
