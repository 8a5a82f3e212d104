"""Records written in pieces that outlive a kill, by any number of processes.

    work = Units(out, plan, count)
    for unit in work.todo(process, processes):
      work.write(unit, blobs, facts)
    work.finish(manifest)        by whoever ends last

OUT.units/ holds plan.json and, for each unit that is done, its shard and its facts.  A unit is a
function of the plan, so that it is made once, whoever makes it; what is there is not made again.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
import fcntl
import json
import os
import pathlib
import pickle
import shutil
import uuid

from data_pipelines import records
from sr4.core import files
from sr4.core import folders

PLAN = 'plan.json'


class Units:
  """Units 0..count of a plan (JSON) on their way to the folder of records `out`."""

  def __init__(self, out, plan: dict, count: int):
    self.out, self.count = pathlib.Path(out), count
    self.folder = self.out.parent / f'{self.out.name}.units'
    self.plan = json.loads(json.dumps(plan))  # As it comes back.
    if self.out.exists():
      raise records.RecordError(f'{self.out} exists; it is done, or remove it, or write elsewhere')
    self.folder.mkdir(parents=True, exist_ok=True)
    path = self.folder / PLAN
    if not path.exists():
      files.save(path, json.dumps(self.plan).encode())
    begun = json.loads(path.read_text())
    other = sorted(k for k in begun.keys() | self.plan.keys() if begun.get(k) != self.plan.get(k))
    if other:
      raise records.RecordError(
        f'{self.folder} was begun with another {", ".join(other)}; go on with the config that it '
        'was begun with, or remove it'
      )

  def todo(self, process: int = 0, processes: int = 1) -> Iterator[int]:
    """Units of this process's share that are not done."""
    for unit in range(process, self.count, processes):
      if not self.facts_of(unit).exists():
        yield unit

  def write(self, unit: int, blobs: Iterable[bytes], facts: Callable[[], object]):
    """A unit's records and, after the last of them, its facts (any that can be pickled)."""
    partial = self.folder / f'.{self.name(unit)}.{uuid.uuid4().hex[:8]}'
    try:
      with records.Shard(partial) as shard:
        for blob in blobs:
          shard.write(blob)
      told = shard.facts()
      folders.sync(partial)
      os.rename(partial, self.folder / self.name(unit))
    finally:
      partial.unlink(missing_ok=True)
    # It is done once these are there.
    files.save(self.facts_of(unit), pickle.dumps((told, facts())))

  def finish(self, manifest: Callable[[list[dict], list], records.Manifest], beside: Callable):
    """Makes the folder of records, where all units are done and no one else does it.

    Args:
      manifest: (shards, facts of each unit) -> Manifest.
      beside: facts of each unit -> {name: bytes} of more files.
    Returns:
      The Manifest; None: units are missing, or another process is at it.
    """
    if any(True for _ in self.todo()) or self.out.exists():
      return None
    with open(self.folder / PLAN, 'rb') as lock:
      try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except OSError:
        return None
      done = [pickle.loads(self.facts_of(unit).read_bytes()) for unit in range(self.count)]
      full = [(unit, shard) for unit, (shard, _) in enumerate(done) if shard['count']]
      if not full:
        raise records.RecordError(f'no record could be made; look at what {self.out} was made of')
      whole = self.folder / 'records'
      shutil.rmtree(whole, ignore_errors=True)
      whole.mkdir()
      shards = []
      for i, (unit, shard) in enumerate(full):
        shards.append(shard | {'name': f'part-{i:05d}-of-{len(full):05d}'})
        link_or_copy(self.folder / self.name(unit), whole / shards[-1]['name'])
      facts = [fact for _, fact in done]
      found = manifest(shards, facts)
      for name, data in beside(facts).items():
        files.save(whole / name, data)
      files.save(whole / records.MANIFEST, found.to_json())
      folders.sync(whole)
      os.rename(whole, self.out)
      folders.sync(self.out.parent)
      shutil.rmtree(self.folder)
    return found

  def name(self, unit: int) -> str:
    return f'unit-{unit:06d}'

  def facts_of(self, unit: int) -> pathlib.Path:
    return self.folder / f'{self.name(unit)}.facts'


def link_or_copy(path: pathlib.Path, other: pathlib.Path):
  """The same file by another name; a copy where there are no hard links, as in a mounted bucket."""
  try:
    os.link(path, other)
  except OSError:
    shutil.copyfile(path, other)
