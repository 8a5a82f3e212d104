"""configs/skyreels_v4.py: its layouts take every bucket of every stage, at each large size."""

import dataclasses
import types

import pytest

from configs import skyreels_v4
from data_pipelines import loader
from sr4.core import config as config_lib
from sr4.models import mmdit
from sr4.models import system as system_lib
from sr4.planning import topology as topology_lib
from sr4.training import data
from sr4.training import loop

SLICES = dict(v5e='v5e:16x16', v6e='v6e:16x16', v5p='v5p:8x8x8', tpu7x='tpu7x:4x4x4')


@pytest.mark.parametrize('chips', skyreels_v4.PODS)
@pytest.mark.parametrize('stage', skyreels_v4.STAGES)
def test_a_layout_takes_all_buckets(stage, chips):
  config = skyreels_v4.get_config(f'{stage},large,{chips}')
  c = loop.Sections.of(config)
  devices = [types.SimpleNamespace(id=i) for i in range(topology_lib.parse(SLICES[chips]).devices)]
  assert len(devices) % (c.mesh.fsdp * c.mesh.seq) == 0 and c.mesh.data == -1
  shape = dataclasses.asdict(c.mesh) | {'data': len(devices) // (c.mesh.fsdp * c.mesh.seq)}
  rows = {name: bucket['rows'] for name, bucket in config.data.buckets.items()}
  data.check_rows(rows, shape, c.step.accumulate)
  for size in ('small', 'base', 'large'):  # A weight's width is split without padding.
    assert mmdit.SIZES[size]['width'] % (c.mesh.fsdp * c.mesh.seq) == 0


@pytest.mark.parametrize(
  'arg',
  ['video9', 'video1,base,large', 'video1,v5p,v5e', 'video1,base,v9', 'video1,world,published'],
)
def test_wrong_words(arg):
  with pytest.raises(
    ValueError, match=r'STAGE\[,SIZE\]\[,CHIPS\]\[,published\|,world\].*video1, video2.*v5e, v6e'
  ):
    skyreels_v4.get_config(arg)


def test_published_codecs_have_the_same_geometry():
  """To a latent of sound."""
  plain, real = (
    system_lib.build(skyreels_v4.get_config(f'joint,debug{words}')) for words in ('', ',published')
  )
  for bucket in skyreels_v4.get_config('joint').data.buckets.values():
    fields = config_lib.build(loader.BucketConfig, bucket).size()
    ours, theirs = (system.tokens(system.size(**fields)) for system in (plain, real))
    assert ours.video == theirs.video
    assert 0 <= ours.audio - theirs.audio <= 1  # MMAudio drops what does not fill a latent.
  assert real.config.text_width == 4096 and real.text.config.depth == 36
