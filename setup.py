"""Packaging: `pip install .` is the small core; extras add what one verb or one team needs."""

import setuptools

CORE = [
  'jax>=0.10.2,<0.11',  # flax 0.12.8 breaks on jax >= 0.11.1; Explicit sharding needs >= 0.10.
  'flax==0.12.8',
  'optax>=0.2.8',
  'orbax-checkpoint==0.12.8',  # The layout on disk of a release is tested, so it is pinned.
  'grain==0.2.18',  # Its iterators' seeking is what resume stands on.
  'array-record>=0.8.3',
  'ml-collections>=1.1',
  'einops>=0.8',
  'numpy>=2.0',
  'absl-py>=2.1',
  'safetensors>=0.5',
  'flatbuffers>=25.1',  # jax.export serialises with it and does not depend on it.
  'jaxtyping>=0.3',
  'av>=15.0',
  'soxr>=0.5',
  'scipy>=1.13',
  'tensorboardX>=2.6',  # TensorBoard's files without TensorFlow.
  'tqdm>=4.66',
]
CURATE = [
  'apache-beam>=2.70',
  'opencv-python-headless>=5.0',
  'pyloudnorm>=0.2',
  'scenedetect-headless>=0.7.2',  # Plain scenedetect brings the OpenCV with windows.
]
TEXT = ['tokenizers>=0.22', 'pillow>=11']  # What Qwen-VL reads with.
TFDS = ['tensorflow-datasets>=4.9.10']  # Without TensorFlow: it reads and describes, no more.
TPU = ['libtpu>=0.0.51']  # On a machine without a TPU it compiles for one.
C2PA = ['c2pa-python>=0.38']  # Signatures of what is made.
TORCH = ['torch>=2.11', 'diffusers>=0.42.1', 'accelerate>=1.10', 'transformers>=5']
TEST = [
  'pytest>=9',
  'pytest-xdist>=3.8',
  'ruff==0.17.5',  # Formats change between releases.
  'torch==2.13.0',  # The references of the parity tests.
  'librosa>=0.11',  # The oracle of mel filters.
]

setuptools.setup(
  name='sr4',
  version='0.1.0',
  description='Joint video and audio generation in JAX: an open SkyReels-V4.',
  license='Apache-2.0',
  python_requires='>=3.11',
  install_requires=CORE,
  extras_require={
    'curate': CURATE,
    'text': TEXT,
    'tfds': TFDS,
    'tpu': TPU,
    'torch': TORCH,
    'c2pa': C2PA,
    'test': TEST + TEXT + CURATE + TFDS + TPU + TORCH + C2PA,
  },
  packages=setuptools.find_packages(
    include=['sr4', 'sr4.*', 'data_pipelines', 'data_pipelines.*', 'configs']
  ),
  entry_points={'console_scripts': ['sr4 = sr4.cli:main']},
)
