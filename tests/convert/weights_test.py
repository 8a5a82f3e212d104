"""sr4/convert: public names both ways, and what is said of files that are not the model's."""

import contextlib
import json
import os

import jax
import ml_collections
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from sr4.convert import files
from sr4.convert import imported
from sr4.convert import mmaudio
from sr4.convert import rules
from sr4.convert import wan
from sr4.convert import weights
from sr4.core import config as config_lib
from sr4.core import sharding
from sr4.core import tree
from sr4.models import codec
from sr4.models import kinds
from sr4.models import system as system_lib
from tests import small_codecs
from tests import small_run


def system(sections) -> system_lib.System:
  config = small_run.config('nowhere')
  for name, fields in sections.items():
    config[name] = ml_collections.ConfigDict(fields)
  return system_lib.build(config)


def test_both_codecs_come_from_their_files(tmp_path):
  sections = small_codecs.write(tmp_path)
  found = weights.load(system(sections)).codecs
  for mine, wanted in zip(found, (small_codecs.video(), small_codecs.audio())):
    mine, wanted = tree.to_flat(mine), tree.to_flat(wanted)
    assert mine.keys() == wanted.keys()
    for name, x in wanted.items():
      np.testing.assert_array_equal(mine[name], x)
      assert mine[name].sharding.is_fully_replicated


@pytest.mark.parametrize('table', [wan.diffusers, wan.original])
def test_both_releases_of_wan(table, tmp_path):
  model = small_codecs.video()
  path = tmp_path / 'vae.safetensors'
  safetensors.numpy.save_file(rules.export(model, table(model.config)), path)
  source = files.source(str(path))
  found = rules.load(model, wan.table(model.config, source), source)
  for name, x in tree.to_flat(model).items():
    np.testing.assert_array_equal(tree.to_flat(found)[name], x)


def test_the_original_names_are_those_of_the_release():
  """As diffusers' converter reads them."""
  from diffusers.loaders import single_file_utils

  model = small_codecs.video(blocks=2)
  ours = rules.export(model, wan.original(model.config))
  theirs = rules.export(model, wan.diffusers(model.config))
  found = single_file_utils.convert_wan_vae_to_diffusers(dict(ours))
  assert found.keys() == theirs.keys()
  for name, x in theirs.items():
    np.testing.assert_array_equal(found[name], x)


def split(tensors, folder):
  """As transformers writes large models: two files and an index."""
  names = sorted(tensors)
  parts = {'a.safetensors': names[::2], 'b.safetensors': names[1::2]}
  for part, of in parts.items():
    safetensors.numpy.save_file({name: tensors[name] for name in of}, folder / part)
  index = {'weight_map': {name: part for part, of in parts.items() for name in of}}
  (folder / 'model.safetensors.index.json').write_text(json.dumps(index))


def test_a_folder_in_parts_of_bfloat16(tmp_path):
  model = small_codecs.video()
  table = wan.diffusers(model.config)
  split({n: x.astype(ml_dtypes.bfloat16) for n, x in rules.export(model, table).items()}, tmp_path)
  found = tree.to_flat(rules.load(model, table, files.source(str(tmp_path))))
  for name, x in tree.to_flat(model).items():
    np.testing.assert_array_equal(found[name], np.asarray(x, ml_dtypes.bfloat16).astype(np.float32))
  os.remove(tmp_path / 'b.safetensors')
  with pytest.raises(files.FileError, match=r'names b\.safetensors, which is not there'):
    files.source(str(tmp_path))


@pytest.mark.parametrize(
  'index, told',
  [
    ('{"weight_ma', 'is no whole index .*fetch it again'),
    ('{}', "is no whole index .*'weight_map'"),
    ('{"weight_map": {"a": "a.safetensors", "b": "a.safetensors"}}', 'a.safetensors has no b, '),
    ('{"weight_map": {}}', 'names no file; fetch it again'),
    ('{"weight_map": {"a": ""}}', 'names no file; fetch it again'),
  ],
)
def test_an_index_that_is_none(tmp_path, index, told):
  safetensors.numpy.save_file({'a': np.zeros(3)}, tmp_path / 'a.safetensors')
  (tmp_path / 'model.safetensors.index.json').write_text(index)
  with pytest.raises(files.FileError, match=told):
    files.source(str(tmp_path))


def test_what_an_index_leaves_out_is_there(tmp_path):
  """For `rules.check` to say that it is left over."""
  safetensors.numpy.save_file({'a': np.zeros(3), 'b': np.ones(2)}, tmp_path / 'a.safetensors')
  index = json.dumps({'weight_map': {'a': 'a.safetensors'}})
  (tmp_path / 'model.safetensors.index.json').write_text(index)
  assert files.source(str(tmp_path)).shapes() == {'a': (3,), 'b': (2,)}
  (tmp_path / 'other.safetensors.index.json').write_text(index)
  with pytest.raises(files.FileError, match='model.* and other.*; give a folder of one model'):
    files.source(str(tmp_path))


def test_a_config_beside_the_weights_is_of_this_model(tmp_path):
  sections = small_codecs.write(tmp_path)
  like, place = system(sections), tmp_path / 'config.json'
  page = {'_class_name': 'AutoencoderKLWan'} | wan.page(like.codecs.video.config)
  sections['audio_codec']['weights'] = sections['audio_codec']['vocoder']['weights'] = 'random'
  for change, told in (
    ({}, ''),
    ({'_diffusers_version': '1', 'clip_output': True}, ''),
    ({'latents_mean': [9.0] * 4}, r'latents_mean is \[9.0, 9.0, 9.0, 9.0\] there and'),
    ({'_class_name': 'AutoencoderKL'}, '_class_name is AutoencoderKL there and AutoencoderKLWan'),
  ):
    place.write_text(json.dumps(page | change))
    with pytest.raises(rules.ConvertError, match=told) if told else contextlib.nullcontext():
      weights.load(system(sections))
  place.write_text('{"_class')
  with pytest.raises(files.FileError, match='is no whole description'):
    weights.load(system(sections))
  place.write_text('{"model_type": "of another kind"}')
  weights.load(system(sections))


def test_what_was_imported_is_not_looked_for_where_one_stands(tmp_path, monkeypatch):
  (tmp_path / 'imported.json').write_text('{}')
  monkeypatch.chdir(tmp_path)
  assert imported.there(str(tmp_path)) and not imported.there('')
  for text in ('{"vid', '3'):
    (tmp_path / 'imported.json').write_text(text)
    with pytest.raises(config_lib.ConfigError, match=r'json is broken .* import the weights again'):
      kinds.weights_id(str(tmp_path), 'sr4.models.video_vae')


def broken(tensors, path):
  """(what is wrong, the file, what is told)."""
  save = lambda name, x: safetensors.numpy.save_file(x, path / name) or str(path / name)
  names = sorted(tensors)
  whole = (path / 'video.safetensors').read_bytes()
  (path / 'cut').write_bytes(whole[:-7])
  (path / 'text').write_text('weights')
  yield str(path / 'nowhere'), 'there is no such file'
  yield str(path / 'cut'), 'no whole safetensors file'
  yield str(path / 'text'), 'no whole safetensors file'
  yield save('less', {n: tensors[n] for n in names[1:]}), f'1 missing: {names[0]}'
  yield save('more', tensors | {'zz': np.zeros(2)}), '1 left over: zz'
  turned = tensors | {'quant_conv.weight': np.zeros((8, 9, 1, 1, 1), np.float32)}
  yield (
    save('turned', turned),
    r'1 of another shape: quant_conv.weight \[8, 9, 1, 1, 1\] for',
  )
  of_bytes = tensors | {names[0]: tensors[names[0]].astype(np.int8)}
  yield save('bytes', of_bytes), f'1 of no float: {names[0]} I8'
  yield save('nan', tensors | {names[0]: tensors[names[0]] * np.nan}), 'not finite; fetch it again'
  yield save('other', {'vae.weight': np.zeros(2)}), r'missing: .* and \d+ more; 1 left over: vae'


def test_files_of_something_else(tmp_path):
  sections = small_codecs.write(tmp_path)
  model = small_codecs.video()
  for path, told in broken(rules.export(model, wan.diffusers(model.config)), tmp_path):
    sections['video_codec']['weights'] = path
    with pytest.raises(config_lib.errors.UserError, match=told):
      weights.load(system(sections))


def test_weights_have_to_be_named(tmp_path):
  sections = small_codecs.write(tmp_path)
  sections['video_codec']['weights'] = ''
  with pytest.raises(config_lib.ConfigError, match=r'video_codec\.weights names no file.*random'):
    weights.load(system(sections))
  sections = small_codecs.write(tmp_path)
  sections['audio_codec']['weights'] = 'random'
  with pytest.raises(config_lib.ConfigError, match='both are files, or both are'):
    weights.load(system(sections))


def test_random_weights_are_the_same_on_any_mesh(tmp_path):
  sections = small_codecs.write(tmp_path)
  sections['video_codec']['weights'] = 'random'
  one = tree.to_flat(weights.load(system(sections)).codecs.video)
  with jax.set_mesh(sharding.make_mesh(fsdp=2, seq=4)):
    many = tree.to_flat(weights.load(system(sections)).codecs.video)
    assert all(x.sharding.is_fully_replicated for x in many.values())
    for name, x in one.items():
      np.testing.assert_array_equal(many[name], x)


def test_a_codec_without_weights_needs_none():
  plain = system({})
  assert weights.load(plain).codecs == plain.codecs
  assert isinstance(codec.build_video(dict(name='dct')), codec.dct.DctVideo)
  assert mmaudio.UNUSED
