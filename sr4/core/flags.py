"""Flags of the TPU compiler, in launch/flags/GENERATION.txt: what is planned is what is trained."""

import os
import pathlib

from sr4.core import errors

HERE = pathlib.Path(__file__).parents[2] / 'launch' / 'flags'


def of(generation: str | None, environ=os.environ) -> dict[str, str]:
  """{name: value} of a generation's own flags, without those that LIBTPU_INIT_ARGS sets already.

  Empty where there are none, or where sr4 is installed without its launch/; launch/entrypoint.sh
  sets LIBTPU_INIT_ARGS there.
  """
  path = HERE / f'{generation}.txt'
  if not path.exists():
    return {}
  given = {
    word.lstrip('-').partition('=')[0] for word in environ.get('LIBTPU_INIT_ARGS', '').split()
  }
  return {name: value for name, value in read(path).items() if name not in given}


def read(path) -> dict[str, str]:
  """{name: value} of a file with one --NAME=VALUE a line, and comments."""
  found = {}
  for line in map(str.strip, pathlib.Path(path).read_text().splitlines()):
    if line and not line.startswith('#'):
      name, equal, value = line.removeprefix('--').partition('=')
      if not line.startswith('--') or not equal:
        raise errors.UserError(f'{path}: {line!r} must read --NAME=VALUE')
      found[name] = value
  return found
