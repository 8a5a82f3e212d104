"""Records as a dataset of tensorflow-datasets (TFDS) and back; TensorFlow itself is not needed.

    python -m data_pipelines.tfds --records /data/clips --out /data/tfds --name my_clips \\
        --version 1.0.0 --split train

/data/tfds/my_clips/1.0.0 then holds ArrayRecord shards of examples {id: text, record: bytes}, which
`tfds.builder_from_directory(...).as_data_source('train')` reads, and the manifest of each split in
metadata.json.  Another split goes into the same version by another call.  A config names a split
in place of a folder of records: 'tfds:my_clips/1.0.0:train@/data/tfds' (records.open).
"""

import argparse
import bisect
import dataclasses
import itertools
import operator
import os
import pathlib
import re
import sys

from data_pipelines import records
from sr4.core import folders

SPEC = 'tfds:NAME/VERSION:SPLIT@DATA_DIR'
NAME, VERSION, SPLIT = r'[a-z][a-z0-9_]*', r'\d+\.\d+\.\d+', r'[a-z][a-z0-9_]*'
INFO = 'dataset_info.json'  # Written last: what it does not list is not there.


def _library():
  try:
    import tensorflow_datasets
  except ImportError as e:
    raise records.RecordError(
      f"tensorflow-datasets cannot be imported ({e}); pip install 'sr4[tfds]'."
    ) from e
  return tensorflow_datasets


class TfdsSource:
  """A split of a TFDS dataset that `write` made; used like records.Source.

  Args:
    spec: 'tfds:NAME/VERSION:SPLIT@DATA_DIR'.
    root: what DATA_DIR is relative to, and DATA_DIR itself where @DATA_DIR is left out.
  """

  def __init__(self, spec: str, root=''):
    match = re.fullmatch(rf'tfds:({NAME})/({VERSION}):({SPLIT})(?:@(.+))?', spec)
    if not match:
      raise records.RecordError(
        f'{spec!r} names no split of a dataset; give {SPEC}, e.g. '
        'tfds:my_clips/1.0.0:train@/data/tfds (the name in snake_case, the whole split).'
      )
    name, version, split, data_dir = match.groups()
    data_dir = pathlib.Path(root, data_dir or '')
    self.spec, self._arguments = spec, (spec, os.fspath(root))
    self.directory = os.fspath(data_dir / name / version)
    if not pathlib.Path(self.directory, INFO).exists():
      found = sorted(p.parent.relative_to(data_dir) for p in data_dir.glob(f'*/*/{INFO}'))
      has = f'has {", ".join(map(str, found))}' if found else 'has no datasets'
      raise records.RecordError(
        f'{spec}: no {name}/{version} in {data_dir}, which {has}; correct the name, or write it '
        'with python -m data_pipelines.tfds.'
      )
    builder = _library().builder_from_directory(self.directory)
    if split not in builder.info.splits:
      raise records.RecordError(
        f'{spec}: no split {split!r}; {self.directory} has {", ".join(builder.info.splits)}.'
      )
    manifest = (builder.info.metadata or {}).get(split)
    if manifest is None or 'record' not in builder.info.features:
      raise records.RecordError(
        f'{spec}: a dataset of {", ".join(builder.info.features)}, not of records; write records '
        'with python -m data_pipelines.tfds.'
      )
    where = f'{self.directory}/metadata.json, {split!r},'
    self.manifest = records.check_manifest(where, self.directory, manifest)
    self._ends = list(itertools.accumulate(s['count'] for s in self.manifest.shards))
    self._examples = builder.as_data_source(split)

  def __reduce__(self):
    return TfdsSource, self._arguments

  def __repr__(self):
    return f'TfdsSource({self.spec!r}, count={len(self)})'

  def __len__(self) -> int:
    return self.manifest.count

  def __getitem__(self, i) -> records.Record:
    i = operator.index(i)
    if not 0 <= i < len(self):
      raise IndexError(f'record {i} of {len(self)} in {self.spec}; give 0 to {len(self) - 1}.')
    try:
      return records.from_bytes(self._examples[i]['record'])
    except (RuntimeError, ValueError) as e:  # ArrayRecord's own checksums raise RuntimeError.
      shard = self.manifest.shards[bisect.bisect_right(self._ends, i)]
      raise records.RecordError(f'{self.directory}/{shard["name"]} (index {i}): {e}') from e


def write(source: records.Source, data_dir, name: str, version: str, split: str = 'train'):
  """Adds the records of a folder to DATA_DIR/NAME/VERSION as a split, shard by shard, unchanged.

  The split is there whole or not at all.  Returns the folder.
  """
  if source.manifest.latents is not None:
    raise records.RecordError(
      f'{source.directory} holds latents, and a dataset has records of media; give the folder that '
      'they were made of.'
    )
  for what, value, rule, example in (
    ('name', name, NAME, 'my_clips'),
    ('version', version, VERSION, '1.0.0'),
    ('split', split, SPLIT, 'train'),
  ):
    if not re.fullmatch(rule, value):
      raise records.RecordError(f'{what} is {value!r}; TFDS takes such as {example!r}.')
  folder = pathlib.Path(data_dir, name, version)
  _earlier(folder, split)  # Refused before hours of copying.
  with folders.partial(folder) as partial:
    shards = _write_shards(source, partial, f'{name}-{split}.array_record')
    manifest = dataclasses.replace(
      source.manifest, shards=shards, bytes=sum(s['bytes'] for s in shards)
    )
    _write_info(folder, partial, name, version, split, manifest)
    folder.mkdir(parents=True, exist_ok=True)
    others = [p for p in partial.iterdir() if p.name != INFO]
    for path in (*others, partial / INFO):
      folders.sync(path)
      os.replace(path, folder / path.name)
    folders.sync(folder)
  return folder


def _earlier(folder, split: str):
  """The DatasetInfo of the splits that are there already; None without any."""
  if not (folder / INFO).exists():
    return None
  info = _library().builder_from_directory(folder).info
  if split in info.splits:
    raise records.RecordError(
      f'{folder} has a split {split!r} already; take another --version or --split.'
    )
  if {*info.features} != {'id', 'record'}:
    raise records.RecordError(
      f'{folder} is a dataset of {", ".join(info.features)}, not of records; take another --name.'
    )
  return info


def _features():
  import numpy as np

  library = _library()
  return library.features.FeaturesDict(
    {
      'id': library.features.Text(doc='Which clip it is.'),
      'record': library.features.Tensor(
        shape=(), dtype=np.object_, doc='What data_pipelines.record.from_bytes reads.'
      ),
    }
  )


def _write_shards(source, partial, stem: str) -> tuple[dict, ...]:
  """One shard for each of the source's; every checksum is verified on the way."""
  features, index, shards = _features(), itertools.count(), []
  for k, old in enumerate(source.manifest.shards):
    path = partial / f'{stem}-{k:05d}-of-{len(source.manifest.shards):05d}'
    with records.Shard(path) as shard:
      for _ in range(old['count']):
        meta, data = source.read(next(index))
        example = features.encode_example({'id': meta['id'], 'record': data})
        shard.write(features.serialize_example(example))
    shards.append(shard.facts())
  return tuple(shards)


def _write_info(folder, partial, name, version, split, manifest: records.Manifest):
  """dataset_info.json, features.json and metadata.json of this split and the earlier ones."""
  core = _library().core
  from tensorflow_datasets.core import dataset_info

  earlier = _earlier(folder, split)
  template = core.ShardedFileTemplate(
    data_dir=folder, dataset_name=name, split=split, filetype_suffix='array_record'
  )
  added = core.SplitInfo(
    name=split,
    shard_lengths=[shard['count'] for shard in manifest.shards],
    num_bytes=manifest.bytes,
    filename_template=template,
  )
  identity = dataset_info.DatasetIdentity(
    name=name, version=core.Version(version), data_dir=os.fspath(folder), module_name=__name__
  )
  info = core.DatasetInfo(
    builder=identity,
    description='Records of clips with their captions; data_pipelines.record reads them.',
    features=_features(),
    disable_shuffling=True,
    metadata=core.MetadataDict(
      {**(earlier.metadata if earlier else {}), split: dataclasses.asdict(manifest)}
    ),
  )
  info.set_file_format('array_record')
  info.set_splits(core.splits.SplitDict([*(earlier.splits.values() if earlier else ()), added]))
  info.write_to_directory(partial)


def main(argv=None):
  parser = argparse.ArgumentParser(
    'python -m data_pipelines.tfds',
    description='Writes a folder of records as a split of a tensorflow-datasets dataset.',
  )
  add = parser.add_argument
  add('--records', required=True, help='a folder that data_pipelines wrote')
  add('--out', required=True, metavar='DATA_DIR', help='where TFDS keeps datasets')
  add('--name', required=True, help='of the dataset, in snake_case')
  add('--version', default='1.0.0', help='MAJOR.MINOR.PATCH (1.0.0)')
  add('--split', default='train')
  args = parser.parse_args(argv)
  try:
    source = records.Source(args.records)
    folder = write(source, args.out, args.name, args.version, args.split)
  except (ValueError, OSError) as e:
    sys.exit(f'error: {e}')
  spec = f'tfds:{args.name}/{args.version}:{args.split}@{args.out}'
  print(f'{len(source)} records in {folder}; a config names them {spec!r}.')


if __name__ == '__main__':
  main()
