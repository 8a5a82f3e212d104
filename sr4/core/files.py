"""Files that appear whole or not at all."""

import contextlib
import errno
import os
import uuid


def save(path, data: bytes):
  """Writes a file whole or not at all: under another name first, then renamed."""
  folder, name = os.path.split(os.fspath(path))
  temporary = os.path.join(folder, f'.{name}.{uuid.uuid4().hex[:8]}.tmp')
  try:
    with open(temporary, 'wb') as f:
      f.write(data)
      f.flush()
      os.fsync(f.fileno())  # A full disk may be told only now.
    os.replace(temporary, path)
  except BaseException as e:
    with contextlib.suppress(OSError):
      os.unlink(temporary)
    if isinstance(e, OSError):
      raise OSError(e.errno or errno.EIO, e.strerror or str(e), os.fspath(path)) from e
    raise
