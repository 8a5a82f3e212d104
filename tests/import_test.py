"""sr4 import: public weights as a checkpoint of ours, which stands for the files."""

import os

import jax
import ml_collections
import numpy as np
import pytest

from sr4 import cli
from sr4.convert import rules
from sr4.convert import weights
from sr4.core import config as config_lib
from sr4.core import sharding
from sr4.core import tree
from sr4.models import system as system_lib
from tests import small_codecs
from tests import small_run
from tests import small_text

SECTIONS = 'video_codec', 'audio_codec', 'text'


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  path = tmp_path_factory.mktemp('import')
  small_text.write(path / 'qwen')
  config = small_run.config(path)
  text = small_text.FIELDS | dict(name='qwen3-vl-8b', weights=str(path / 'qwen'))
  for name, fields in (small_codecs.write(path) | dict(text=text)).items():
    config[name] = ml_collections.ConfigDict(fields)
  small_run.write_config(path / 'config.py', config)
  out = small_run.run('import', '--config', path / 'config.py', '--out', path / 'ours')
  return path, config, out


def ours(home, **changes):
  path, config, _ = home
  config = ml_collections.ConfigDict(config.to_dict())
  for section in SECTIONS:
    config[section].weights = str(path / 'ours')
    config[section].update(changes.get(section, {}))
  config.audio_codec.vocoder.weights = str(path / 'ours')
  return config


def loaded(config, **mesh):
  mesh = mesh or dict(fsdp=1)
  count = int(np.prod(list(mesh.values())))
  with jax.set_mesh(sharding.make_mesh(jax.devices()[:count], **mesh)):
    return weights.load(system_lib.build(config))


@pytest.mark.parametrize('axes', [dict(fsdp=1), dict(fsdp=2, tensor=2)])
def test_it_stands_for_the_files(home, axes):
  _, config, out = home
  assert [line.split()[0] for line in out.splitlines()[-3:]] == list(SECTIONS)
  one, two = (tree.to_flat(loaded(x, **axes)) for x in (config, ours(home)))
  assert one.keys() == two.keys()
  for name, x in one.items():
    np.testing.assert_array_equal(np.asarray(x), np.asarray(two[name]), name)
    assert x.sharding == two[name].sharding


def test_latents_made_with_the_files_are_those_made_with_it(home):
  _, config, _ = home
  assert system_lib.build(config).made() == system_lib.build(ours(home)).made()


def test_what_a_killed_import_left_is_in_nobodys_way(tmp_path):
  for name in ('0.orbax-checkpoint-tmp', '.shared-1'):
    (tmp_path / name).mkdir()
  import_verb = cli.module('import')
  import_verb.new_folder(str(tmp_path))
  (tmp_path / '0').mkdir()
  with pytest.raises(rules.ConvertError, match='is not empty'):
    import_verb.new_folder(str(tmp_path))


def test_verify_checks_it(home):
  path, _, _ = home
  out = small_run.run('verify', '--checkpoint', path / 'ours')
  assert 'ours/0: whole;' in out and ' arrays, ' in out
  assert sorted(os.listdir(path / 'ours'))[-2:] == ['imported.json', 'tokenizer.json']


def test_another_config_is_told(home):
  changed = ours(home, video_codec=dict(width=16))
  with pytest.raises(rules.ConvertError, match=r'another config\.video_codec: width is 8 there'):
    loaded(changed)
  changed = ours(home)
  changed.audio_codec.vocoder.weights = 'random'
  with pytest.raises(config_lib.ConfigError, match=r'both are files.*one folder of `sr4 import`'):
    loaded(changed)


def test_what_cannot_be_imported_is_told(home, tmp_path):
  path, _, _ = home
  told = lambda config, out: small_run.run('import', '--config', config, '--out', out, code=1)
  assert 'is not empty; give a new folder' in told(path / 'config.py', path / 'ours')
  assert "--out='' is no folder" in told(path / 'config.py', '')
  small_run.write_config(tmp_path / 'bare.py', small_run.config(path))
  assert 'no part of this config has weights' in told(tmp_path / 'bare.py', tmp_path / 'x')
