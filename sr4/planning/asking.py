"""Asks the TPU compiler from names alone, in a process of its own.

The compiler aborts on some programs, and takes with it whoever called it; and of what it is asked
it has told the most long before it is done.
"""

import dataclasses
import multiprocessing
import os
import tempfile
import threading

from sr4.core import config as config_lib
from sr4.core import sharding
from sr4.models import system as system_lib
from sr4.planning import compiling
from sr4.planning import topology as topology_lib
from sr4.training import data
from sr4.training import loop


class CompilerAborted(compiling.DoesNotCompile):
  """The TPU compiler ended its process, or somebody did."""


def plan(path: str, overrides, topology: str, name: str, options: dict, whole: bool) -> dict:
  """compiling.row of bucket `name` of a config, as `sr4 plan` and training read it.

  Args:
    whole: as of compiling.compiled.
  """
  step = load(path, overrides, topology, name)
  found = elsewhere(compile_bucket, path, overrides, topology, name, options, whole)
  return compiling.row(found, *step)


def load(path: str, overrides, topology: str, name: str) -> tuple:
  """(System, Sections, Size, Clips of shapes, Topology) of a bucket."""
  config = config_lib.load(path, list(overrides))
  system, c = system_lib.build(config), loop.Sections.of(config)
  size, clips = data.shapes(config, system)[name]
  parsed = topology_lib.parse(topology)
  mesh = sharding.make_mesh(topology_lib.devices(parsed), **dataclasses.asdict(c.mesh))
  data.check_rows({name: len(clips.text_valid)}, mesh.shape, c.step.accumulate)
  return system, c, size, clips, parsed


def compile_bucket(path, overrides, topology, name, options, whole, folder) -> compiling.Compiled:
  return compiling.bucket(*load(path, overrides, topology, name), options, folder, whole)


def elsewhere(f, *args):
  """f(*args, folder) in a process of its own, which ends with its answer, as does the folder.

  Raises:
    CompilerAborted: there was none; and what f raised.
  """
  context = multiprocessing.get_context('spawn')
  with tempfile.TemporaryDirectory(prefix='sr4-plan-') as folder:
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=answer, args=(theirs, f, *args, folder), daemon=True)
    process.start()
    theirs.close()
    try:
      told = ours.recv()
    except EOFError as error:
      raise CompilerAborted(
        f'{f.__name__}{args[:4]}: the TPU compiler ended its process (its reason is above), or it '
        'was killed; try other flags (--flags), another mesh or another topology'
      ) from error
    finally:
      process.kill()
      process.join()
  if isinstance(told, Exception):
    raise told
  return told


def answer(pipe, f, *args):
  threading.Thread(target=follow, daemon=True).start()
  try:
    told = f(*args)
  except Exception as error:
    told = error
  pipe.send(told)


def follow():
  """Ends this process with the one that asked, which may be killed."""
  multiprocessing.parent_process().join()
  os._exit(1)
