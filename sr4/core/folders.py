"""Folders that appear whole or not at all."""

import contextlib
import fcntl
import glob
import os
import pathlib
import shutil
import uuid


@contextlib.contextmanager
def partial(directory: pathlib.Path):
  """A folder beside `directory`, which the caller fills and renames to it.

  One that was not renamed is removed: at the end of this context, or, where its process was killed,
  by the next call.  A lock tells these from what a living process fills, since the lock goes with
  the process, however it ends.
  """
  for left in directory.parent.glob(f'.{glob.escape(directory.name)}.partial-*'):
    with _locked(left) as ours:
      if ours:
        shutil.rmtree(left, ignore_errors=True)
  while True:
    folder = directory.parent / f'.{directory.name}.partial-{uuid.uuid4().hex[:8]}'
    folder.mkdir(parents=True)
    with _locked(folder, wait=True):
      if not folder.exists():  # Another writer took it for a left one before it was locked.
        continue
      try:
        yield folder
      finally:
        shutil.rmtree(folder, ignore_errors=True)
      return


@contextlib.contextmanager
def _locked(folder, wait: bool = False):
  """Locks a folder; False if another process has it, or it is gone, or the disk has no locks."""
  try:
    fd = os.open(folder, os.O_RDONLY)
  except OSError:
    yield False
    return
  try:
    try:
      fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
      yield False
    else:
      yield True
  finally:
    os.close(fd)


def sync(path):
  """Waits until a file or folder is on the disk."""
  fd = os.open(path, os.O_RDONLY)
  try:
    os.fsync(fd)
  finally:
    os.close(fd)
