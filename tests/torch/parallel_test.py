"""sr4/torch/parallel.py: two processes give the velocities of one."""

import dataclasses
import os
import socket
import subprocess
import sys
import types

import diffusers
import pytest
import torch

from sr4.nn import vsa
from sr4.torch import parallel
from tests.models import sparse_test
from tests.torch import mmdit_test

SIZE = 2
PROGRAM = """
import sys
import diffusers
import torch
from sr4.torch import layers
from sr4.torch import MMDiT

folder, address, rank, size = *sys.argv[1:3], *map(int, sys.argv[3:])
torch.distributed.init_process_group('gloo', f'tcp://{address}', rank=rank, world_size=size)
torch.accelerator.device_count = lambda: 1  # diffusers counts accelerators, and there are none.
found, heads, attend_to = [], set(), layers.attend_to
layers.attend_to = lambda at, q, k, v: heads.add(q.shape[2]) or attend_to(at, q, k, v)
for name in ('dense', 'sparse'):
  model = MMDiT.from_pretrained(f'{folder}/{name}').eval()
  model.enable_parallelism(config=diffusers.ContextParallelConfig(ulysses_degree=size))
  with torch.no_grad():
    for args in torch.load(f'{folder}/{name}.pt', weights_only=False):
      found.append(model(*args))
torch.save((found, heads), f'{folder}/{rank}.pt')
"""


def test_two_processes_are_one(tmp_path, randomized, relative):
  """Odd lengths, padded prompts, absent references, tiles: what each process finds is the whole."""
  tiles = dataclasses.replace(
    sparse_test.SPARSE, sparse=vsa.Config(tile=(4, 4, 4), sparsity=0.5, dense_layers=(1,))
  )
  wanted = []
  for name, config, asked in (
    ('dense', mmdit_test.CONFIG, [args for _, args in mmdit_test.cases()]),
    ('sparse', tiles, [sparse_test.call()]),
  ):
    _, model = mmdit_test.pair(randomized, config)
    model.save_pretrained(tmp_path / name)
    asked = list(map(mmdit_test.to_torch, asked))
    torch.save(asked, tmp_path / f'{name}.pt')
    with torch.no_grad():
      wanted += [model(*args) for args in asked]
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{s.getsockname()[1]}'
  command = sys.executable, '-c', PROGRAM, tmp_path, address
  processes = [
    subprocess.Popen([*map(str, (*command, rank, SIZE))], env=os.environ) for rank in range(SIZE)
  ]
  assert [process.wait(timeout=300) for process in processes] == [0] * SIZE
  for rank in range(SIZE):
    found, heads = torch.load(tmp_path / f'{rank}.pt', weights_only=False)
    assert heads == {mmdit_test.CONFIG.heads // SIZE, tiles.heads // SIZE}
    for one, whole in zip(found, wanted, strict=True):
      for a, b in zip(one, whole):
        assert (a is None) == (b is None)
        for x, y in zip(a or (), b or (), strict=True):
          assert y.std() > 1e-2 and relative(x, y) < 1e-5


@pytest.mark.parametrize(
  'asked, told',
  [
    (dict(ring_degree=2), 'ring_degree=2 must be 1'),
    (dict(ulysses_degree=3), 'ulysses_degree=3 must divide the 4 heads'),
  ],
)
def test_what_cannot_be_spread(asked, told):
  config = types.SimpleNamespace(context_parallel_config=diffusers.ContextParallelConfig(**asked))
  model = types.SimpleNamespace(_parallel_config=config, config=types.SimpleNamespace(heads=4))
  with pytest.raises(ValueError, match=told):
    parallel.Spread.of(model)
