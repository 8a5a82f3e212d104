"""Checkpoints: names and arrays, a digest for each, a page of JSON.  No framework types on disk.

  DIR/1000/arrays             Orbax: {'model.dual.video.tokens.qkv.kernel': array, 'ema...': ...}
  DIR/1000/page               JSON: config, data position, {name: digest}
  DIR/1000/files-0-of-1.json  manifest.py: the size and a digest of each file

Orbax writes asynchronously and makes a step visible only when it is whole.  It restores a flipped
byte silently, so arrays and files carry digests.  docs/checkpoints.md says what is found when.
"""

import contextlib
import logging
import os
import re
import shutil
import threading

from etils import epath
import jax
import orbax.checkpoint as ocp

from sr4.core import errors
from sr4.core import pod
from sr4.core import tree
from sr4.training import digest
from sr4.training import local as local_lib
from sr4.training import manifest

# Of an error that Orbax raises its threads log pages of tracebacks, too; we tell it once.
for noisy in ('absl', 'asyncio', 'concurrent.futures'):
  logging.getLogger(noisy).setLevel(logging.CRITICAL)
CHUNK = 64 << 20  # bytes; aligned to layers, so that one layer can be read alone
VERIFY = ('full', 'fast', 'off')


class CheckpointError(errors.UserError):
  """A checkpoint that is missing, broken, or of something else."""


class Checkpoints:
  """The checkpoints of one run.  Use as a context: leaving waits for the last write.

  Args:
    keep: the latest so many; keep_every: and for ever those of steps that it divides (0: none).
    verify: at restore, one of VERIFY; see `restore`.
    local_dir: folder on each host's own disk for emergency checkpoints (local.py); '': none.
  Raises:
    PodError: the hosts do not share the directory.
  """

  def __init__(
    self,
    directory: str,
    keep: int = 3,
    keep_every: int = 0,
    verify: str = 'full',
    local_dir: str = '',
  ):
    self.directory, self.verify = os.path.abspath(directory), verify
    pod.check_shared(self.directory)
    options = ocp.CheckpointManagerOptions(
      max_to_keep=keep, keep_period=keep_every or None, cleanup_tmp_directories=True
    )
    self.manager = ocp.CheckpointManager(self.directory, options=options)
    self.local = local_lib.Local(local_dir, self.directory) if local_dir else None
    self.sealing = None

  def __enter__(self):
    return self

  def __exit__(self, *_):
    with writing(self.directory):
      self.manager.wait_until_finished()
      self._sealed()
      self.manager.close()
    if self.local:
      self.local.wait()

  def latest(self, like) -> int | None:
    """The newest step that all hosts can restore.  like: tree of shapes, dtypes and shardings."""
    latest = self.manager.latest_step()
    return self.local.latest(tree.to_flat(like), latest) if self.local else latest

  def page(self, step: int) -> dict:
    if self.local and self.local.chosen == step:
      return self.local.page(step)
    return page(self.directory, step)[1]

  def restore(self, step: int, like):
    """A tree like `like`; see `restore`, the function."""
    if self.local and self.local.chosen == step:
      return tree.from_flat(like, self.local.restore(step, tree.to_flat(like)))
    return restore(self.directory, step, like, verify=self.verify)

  def save(self, step: int, state, page: dict):
    """Starts to write; returns when the state may be changed.  page: JSON, without digests."""
    flat = tree.to_flat(state)
    check_room(self.directory, flat)
    page = page | {'digests': digest.of(flat)}
    layout = lambda name: (0,) if '.dual.' in name or '.single.' in name else ()
    save_args = {
      name: ocp.SaveArgs(chunk_byte_size=CHUNK, shard_axes=layout(name)) for name in flat
    }
    self._sealed()
    with writing(self.directory):  # Raises what the step before met, too.
      begun = self.manager.save(
        step,
        args=ocp.args.Composite(
          arrays=ocp.args.PyTreeSave(flat, save_args=save_args), page=ocp.args.JsonSave(page)
        ),
      )
    if not begun:
      raise CheckpointError(f'{self.directory} has later steps than {step}; give a new folder')
    self.sealing = threading.Thread(target=self._seal, args=(step,), daemon=True)
    self.sealing.start()

  def save_local(self, step: int, state, page: dict):
    """The same to this host's own disk: cheaper, and lost with it."""
    self.local.save(step, tree.to_flat(state), page)

  def _seal(self, step: int):
    # What a write met is told where it was asked for; a step that is not there has no manifest.
    with contextlib.suppress(Exception):
      self.manager.wait_until_finished()
      path = os.path.join(self.directory, str(step))
      manifest.seal(path, jax.process_index(), jax.process_count())

  def _sealed(self):
    if self.sealing:
      self.sealing.join()


def check_room(directory: str, flat: dict):
  """CheckpointError if the arrays cannot fit, each host's about as much: better than a half."""
  shards = [shard for x in flat.values() for shard in x.addressable_shards]
  need = jax.process_count() * sum(s.data.nbytes for s in shards if s.replica_id == 0)
  free = shutil.disk_usage(directory).free
  if free < need:
    raise CheckpointError(
      f'{directory}: no space left on device for a checkpoint: {need / 1e6:.1f} MB are needed, '
      f'{free / 1e6:.1f} MB are free. The steps that are there are whole; make room, or keep fewer '
      '(config.train.keep), and run the same command again'
    )


@contextlib.contextmanager
def writing(directory: str):
  """Turns what tensorstore says of a full or failing disk into one line."""
  try:
    yield
  except (OSError, ValueError) as error:
    reason = re.search(r'(\w[\w ]*) \[os_error_code', str(error))
    raise CheckpointError(
      f'{directory}: a checkpoint could not be written: {reason[1].strip() if reason else error}. '
      'The steps that are there are whole; make room, or see that no other run writes there, and '
      'run the same command again'
    ) from error


def steps(directory: str, step: int | None = None) -> list[int]:
  """The steps that are there, the latest last.

  Args:
    step: one that must be among them.
  Raises:
    CheckpointError: there is none, or not that one.
  """
  root = epath.Path(os.path.abspath(directory))
  found = sorted(int(p.name) for p in root.iterdir() if p.name.isdigit()) if root.is_dir() else []
  if not found or (step is not None and step not in found):
    there = (
      f'no checkpoint of step {step}; it has steps {found}' if found else 'it has no checkpoints'
    )
    raise CheckpointError(
      f'{directory}: {there}. Give the folder that training wrote, WORKDIR/checkpoints'
    )
  return found


def page(directory: str, step: int | None = None) -> tuple[int, dict]:
  """(step, page) of the latest checkpoint, or of that step.

  Raises:
    CheckpointError: there is none, or it cannot be read.
  """
  latest = steps(directory, step)[-1]
  step = latest if step is None else step
  path = epath.Path(os.path.abspath(directory)) / str(step)
  with reading(path):
    return step, ocp.JsonCheckpointHandler().restore(path / 'page')


def restore(directory: str, step: int, like, prefix: str = '', verify: str = 'full'):
  """A tree like `like`, from the arrays whose names start with prefix.

  Args:
    like: tree of shapes, dtypes and shardings (core/tree.py `abstract`).
    prefix: 'ema.' reads the averaged weights into a bare model.
    verify: 'fast' looks at the files' sizes and the digests of small ones (config, position,
      index); 'full' also at the digest of each array that was read; 'off' at nothing.
  Raises:
    CheckpointError: other names or shapes than the checkpoint's; a digest that differs.
  """
  return tree.from_flat(
    like, restore_named(directory, step, tree.to_flat(like), prefix, '', verify)
  )


def restore_named(
  directory: str, step: int, like: dict, prefix: str = '', names: str = '', verify: str = 'full'
) -> dict:
  """{name: array} for a part of a checkpoint.

  Args:
    like: {name without prefix: shape, dtype and sharding}.
    names: regular expression; of the checkpoint's names behind the prefix those it finds must be
      the names of `like`, all of them and no more.
  """
  path = epath.Path(os.path.abspath(directory)) / str(step)
  wanted = {prefix + name: x for name, x in like.items()}
  if verify != 'off' and not check_files(str(path), manifest.SMALL) and verify == 'fast':
    verify = 'full'  # The files have no digests, so the arrays must show theirs.
  saved = check_named(directory, step, like, prefix, names)
  handler = ocp.PyTreeCheckpointHandler()
  args = {  # In the dtype of the file, of which the digests are; cast when these have been checked.
    name: ocp.ArrayRestoreArgs(sharding=x.sharding, dtype=saved[name].dtype)
    for name, x in wanted.items()
  }
  asked = ocp.args.PyTreeRestore(item=wanted, restore_args=args, partial_restore=True)
  with reading(path):
    flat = handler.restore(path / 'arrays', args=asked)
  if verify == 'full':
    _, told = page(directory, step)
    broken = [name for name, found in digest.of(flat).items() if told['digests'].get(name) != found]
    if broken:
      raise damaged(
        path, f'{len(broken)} arrays are not as they were written, the first is {broken[0]!r}'
      )
  return {name: flat.pop(prefix + name).astype(x.dtype) for name, x in like.items()}


def check_named(directory: str, step: int, like: dict, prefix: str = '', names: str = '') -> dict:
  """{name: shape and dtype there}; CheckpointError unless `restore_named`, asked the same, finds
  what it is to read."""
  path = epath.Path(os.path.abspath(directory)) / str(step)
  with reading(path):
    there = ocp.PyTreeCheckpointHandler().metadata(path / 'arrays').tree
  of = lambda name: name.startswith(prefix) and re.search(names, name.removeprefix(prefix))
  saved = {name: found for name, found in there.items() if of(name)}
  _check_same(path, {prefix + name: x for name, x in like.items()}, saved)
  return saved


def check_files(step: str, largest: float = float('inf')) -> bool:
  """Are there digests of a step's files?  In a pod each host looks at some of them.

  Args:
    largest: bytes above which the size alone is looked at.
  Raises:
    CheckpointError: a file is not as it was written.
  """
  try:
    told = manifest.read(step)
  except (manifest.Damaged, OSError) as error:
    raise damaged(step, f'{error} is not as it was written') from error
  names = sorted(told or ())[jax.process_index() :: jax.process_count()]
  if wrong := manifest.damaged(step, {name: told[name] for name in names}, largest):
    raise damaged(step, more(wrong))
  return told is not None


def damaged(step, what: str) -> CheckpointError:
  return CheckpointError(
    f'{step}: {what}; the files are damaged: take an earlier step, by moving this folder away'
  )


def more(told: list[str]) -> str:
  """The first, and how many there are besides."""
  return told[0] + (f', and {len(told) - 1} more like it' if len(told) > 1 else '')


@contextlib.contextmanager
def reading(step):
  """CheckpointError for what Orbax raises of a broken index or file, which is any error."""
  try:
    yield
  except CheckpointError:
    raise
  except Exception as error:
    reason = str(error).partition('\n')[0][:300]
    raise damaged(step, f'cannot be read: {reason or type(error).__name__}') from error


def _check_same(path, wanted: dict, saved: dict):
  missing, extra = sorted(wanted.keys() - saved.keys()), sorted(saved.keys() - wanted.keys())
  differ = [
    name
    for name in sorted(wanted.keys() & saved.keys())
    if tuple(wanted[name].shape) != tuple(saved[name].shape)
  ]
  told = []
  if differ:
    name = differ[0]
    told.append(
      f'{len(differ)} of other shapes, such as {name!r}: {tuple(saved[name].shape)} there, '
      f'{tuple(wanted[name].shape)} here'
    )
  for names, what in ((missing, 'missing there'), (extra, 'unknown here')):
    if names:
      told.append(f'{len(names)} {what}, such as {names[0]!r}')
  if told:
    raise CheckpointError(
      f'{path} is a checkpoint of another config: '
      + '; '.join(told)
      + '. Use the config it was trained with, or another workdir'
    )
