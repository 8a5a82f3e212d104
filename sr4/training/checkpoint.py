"""Checkpoints: names and arrays, a digest for each, a page of JSON.  No framework types on disk.

  DIR/1000/arrays   Orbax: {'model.dual.video.tokens.qkv.kernel': array, 'ema...': ..., 'opt...'}
  DIR/1000/page     JSON: config, data position, {name: digest}

Orbax writes asynchronously and makes a step visible only when it is whole.  It restores a flipped
byte silently, so each array carries a digest that is checked at restore.
"""

import contextlib
import logging
import os
import re
import shutil

from etils import epath
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from sr4.core import errors
from sr4.core import tree
from sr4.core.sharding import P

# Of an error that Orbax raises its threads log pages of tracebacks, too; we tell it once.
for noisy in ('absl', 'asyncio', 'concurrent.futures'):
  logging.getLogger(noisy).setLevel(logging.CRITICAL)
CHUNK = 64 << 20  # bytes; aligned to layers, so that one layer can be read alone


class CheckpointError(errors.UserError):
  """A checkpoint that is missing, broken, or of something else."""


class Checkpoints:
  """The checkpoints of one run.  Use as a context: leaving waits for the last write."""

  def __init__(self, directory: str, keep: int = 3):
    self.directory = os.path.abspath(directory)
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
    self.manager = ocp.CheckpointManager(self.directory, options=options)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    with writing(self.directory):
      self.manager.wait_until_finished()
      self.manager.close()

  def latest(self) -> int | None:
    return self.manager.latest_step()

  def save(self, step: int, state, page: dict):
    """Starts to write; returns when the state may be changed.  page: JSON, without digests."""
    flat = tree.to_flat(state)
    check_room(self.directory, flat)
    page = page | {'digests': digests(flat)}
    layout = lambda name: (0,) if '.dual.' in name or '.single.' in name else ()
    save_args = {
      name: ocp.SaveArgs(chunk_byte_size=CHUNK, shard_axes=layout(name)) for name in flat
    }
    with writing(self.directory):  # Raises what the step before met, too.
      self.manager.save(
        step,
        args=ocp.args.Composite(
          arrays=ocp.args.PyTreeSave(flat, save_args=save_args), page=ocp.args.JsonSave(page)
        ),
      )


def check_room(directory: str, flat: dict):
  """CheckpointError if this host's part of the arrays cannot fit: better than half a checkpoint."""
  shards = [shard for x in flat.values() for shard in x.addressable_shards]
  need = sum(shard.data.nbytes for shard in shards if shard.replica_id == 0)
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
      'The steps that are there are whole; make room and run the same command again'
    ) from error


def page(directory: str, step: int | None = None) -> tuple[int, dict]:
  """(step, page) of the latest checkpoint, or of that step.

  Raises:
    CheckpointError: there is none.
  """
  root = epath.Path(os.path.abspath(directory))
  steps = sorted(int(p.name) for p in root.iterdir() if p.name.isdigit()) if root.is_dir() else []
  if not steps or (step is not None and step not in steps):
    there = (
      f'no checkpoint of step {step}; it has steps {steps}' if steps else 'it has no checkpoints'
    )
    raise CheckpointError(
      f'{directory}: {there}. Give the folder that training wrote, WORKDIR/checkpoints'
    )
  step = steps[-1] if step is None else step
  return step, ocp.JsonCheckpointHandler().restore(root / str(step) / 'page')


def restore(directory: str, step: int, like, prefix: str = ''):
  """A tree like `like`, from the arrays whose names start with prefix; digests checked.

  Args:
    like: tree of shapes, dtypes and shardings (core/tree.py `abstract`).
    prefix: 'ema.' reads the averaged weights into a bare model.
  Raises:
    CheckpointError: other names, shapes or dtypes than the checkpoint's; a digest that differs.
  """
  return tree.from_flat(like, restore_named(directory, step, tree.to_flat(like), prefix))


def restore_named(directory: str, step: int, like: dict, prefix: str = '', names: str = '') -> dict:
  """{name: array} for a part of a checkpoint.

  Args:
    like: {name without prefix: shape, dtype and sharding}.
    names: regular expression; of the checkpoint's names behind the prefix those it finds must be
      the names of `like`, all of them and no more.
  """
  path = epath.Path(os.path.abspath(directory)) / str(step)
  wanted = {prefix + name: x for name, x in like.items()}
  handler = ocp.PyTreeCheckpointHandler()
  saved = {
    name: found
    for name, found in handler.metadata(path / 'arrays').tree.items()
    if name.startswith(prefix) and re.search(names, name.removeprefix(prefix))
  }
  _check_same(path, wanted, saved)
  args = {
    name: ocp.ArrayRestoreArgs(sharding=x.sharding, dtype=x.dtype) for name, x in wanted.items()
  }
  asked = ocp.args.PyTreeRestore(item=wanted, restore_args=args, partial_restore=True)
  try:
    flat = handler.restore(path / 'arrays', args=asked)
  except (OSError, ValueError) as error:
    reason = str(error).partition('\n')[0][:300]
    raise CheckpointError(f'{path} cannot be read: {reason}; take an earlier step') from error
  _, told = page(directory, step)
  broken = [name for name, digest in digests(flat).items() if told['digests'][name] != digest]
  if broken:
    raise CheckpointError(
      f'{path}: {len(broken)} arrays are not as they were written, the first is '
      f'{broken[0]!r}; the files are damaged: take an earlier step'
    )
  return {name.removeprefix(prefix): x for name, x in flat.items()}


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


def digests(flat: dict) -> dict[str, str]:
  """{name: hex digest}; computed where the arrays lie, equal for any layout."""
  hexadecimal = lambda pair: f'{int(pair[0]):08x}{int(pair[1]):08x}'
  return {name: hexadecimal(jax.device_get(_digest(x))) for name, x in flat.items()}


@jax.jit  # Of each array, not of all: the same shapes come four times in a State.
def _digest(x: jax.Array) -> jax.Array:
  """Two sums mod 2^32 of the bits, each weighted by odd numbers of its place: uint32 [2].

  An odd weight is invertible mod 2^32, so no change within one element goes unseen.
  """

  def sums(x):
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    bits = x if x.dtype == bool else jax.lax.bitcast_convert_type(x, unsigned)
    bits = bits.astype(jnp.uint32)
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
      place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    mixed = (place ^ (place >> 15)) * jnp.uint32(0x2C1B3C6D)
    weights = (2 * place + 1, 2 * (mixed ^ (mixed >> 12)) + 1)
    return jnp.stack([jnp.sum(bits * w, dtype=jnp.uint32) for w in weights])

  return jax.sharding.auto_axes(sums, out_sharding=P())(x)
