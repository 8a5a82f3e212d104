"""data_pipelines/units.py: records in pieces, joined where a folder knows less than a disk."""

import errno
import os

from data_pipelines import records
from data_pipelines import units


def test_a_mounted_bucket_has_no_hard_links(tmp_path, monkeypatch):
  def link(*_):
    raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

  monkeypatch.setattr(os, 'link', link)
  work = units.Units(tmp_path / 'made', {'unit': 2}, 2)
  blobs = [b'first', b'second'], [b'third']
  for unit in work.todo():
    work.write(unit, blobs[unit], records.Counts)
  joined = lambda shards, facts: facts[0].manifest('latents', shards, {})
  manifest = work.finish(joined, lambda facts: {'beside.json': b'{}'})
  assert [shard['count'] for shard in manifest.shards] == [2, 1]
  assert records.load_manifest(tmp_path / 'made').count == 3  # Each shard has its length.
  assert (tmp_path / 'made' / 'beside.json').read_bytes() == b'{}' and not work.folder.exists()
