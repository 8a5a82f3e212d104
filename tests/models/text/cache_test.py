"""Embeddings on disk, and encoders that torch runs: what is kept is what was made."""

from concurrent import futures
import dataclasses
import os
import shutil
import sys
import types

import jax
import numpy as np
import pytest
import safetensors.numpy
import tokenizers
import torch
import transformers
from transformers.models.clip import image_processing_pil_clip

from sr4.core import config as config_lib
from sr4.core.batch import Size
from sr4.core.prompt import Prompt
from sr4.core.prompt import PromptError
from sr4.models import kinds
from sr4.models.text import cache
from sr4.models.text import encoder
from sr4.models.text import transformers_lm
from tests import small_text

SIZE = Size(5, 16, 16, 8.0, 0)
random = np.random.default_rng(0)
SMALL = dict(
  vocab_size=400,
  hidden_size=24,
  intermediate_size=32,
  num_hidden_layers=3,
  num_attention_heads=2,
  num_key_value_heads=2,
)
PICTURE = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A small Llama with the tokenizer, as save_pretrained writes it."""
  path = tmp_path_factory.mktemp('llama')
  torch.manual_seed(0)
  transformers.LlamaModel(transformers.LlamaConfig(**SMALL)).save_pretrained(path)
  words = transformers.PreTrainedTokenizerFast(
    tokenizer_object=small_text.tokenizer(), pad_token='<|endoftext|>'
  )
  words.save_pretrained(path)
  return path


def torches(path, **changes):
  fields = dict(weights=str(path), width=24, tokens=20, dtype='float32') | changes
  return encoder.build_text(fields | dict(name='transformers'))


def test_hidden_states_of_any_class(folder):
  made = torches(folder, layer=2, template='describe: {}!')
  text, valid = made.read([Prompt('a red circle'), Prompt('')], SIZE)
  assert (
    [x.shape for x in made.shapes(2, SIZE)]
    == [text.shape, valid.shape]
    == [
      (2, 20, 24),
      (2, 20),
    ]
  )
  model = transformers.AutoModel.from_pretrained(folder)
  words = transformers.AutoTokenizer.from_pretrained(folder)
  ids = words('describe: a red circle!', return_tensors='pt')
  first = len(words('describe:')['input_ids'])  # The space is in the first word.
  with torch.no_grad():
    expected = model(ids['input_ids'], output_hidden_states=True).hidden_states[2][0, first:]
  np.testing.assert_allclose(text[0, valid[0]], expected, atol=1e-5)
  assert not np.any(text[~valid]) and valid[1].sum() == 1


def test_a_space_of_the_template_is_in_the_first_word(tmp_path):
  """As tokenizers of Qwen, GPT and Llama have it: 'describe', ':', ' red'."""
  words = transformers.PreTrainedTokenizerFast(tokenizer_object=small_text.tokenizer())
  config = types.SimpleNamespace(template='describe: {}', tokens=20)
  for text, kept in (('red circle', ['Ġred', 'Ġcircle']), ('red', ['Ġred']), ('', [])):
    given, first = transformers_lm.spelt(config, words, text)
    assert words.convert_ids_to_tokens(given['input_ids'][0])[first:] == kept


def test_a_token_before_the_template_is_not_kept_either(folder, tmp_path):
  transformers.LlamaModel.from_pretrained(folder).save_pretrained(tmp_path)
  words = small_text.tokenizer()
  words.post_processor = tokenizers.processors.TemplateProcessing(
    single='<|im_start|> $A', special_tokens=[('<|im_start|>', words.token_to_id('<|im_start|>'))]
  )
  transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path)
  for template in ('describe: {}!', '<|im_start|>describe: {}!'):
    plain, begun = (torches(path, template=template) for path in (folder, tmp_path))
    kept = len(plain.hidden(Prompt('a red circle')))
    assert len(begun.hidden(Prompt('a red circle'))) == kept > 1


def test_threads_share_a_tokenizer(folder):
  made, prompts = torches(folder, template='describe: {}!'), [Prompt('a red circle ' * 9)] * 200
  made.hidden(prompts[0])
  before = sys.getswitchinterval()
  sys.setswitchinterval(1e-6)
  try:
    with futures.ThreadPoolExecutor(4) as pool:
      lengths = {len(x) for x in pool.map(made.hidden, prompts)}
  finally:
    sys.setswitchinterval(before)
  assert len(lengths) == 1


def test_what_torch_cannot_load_or_see_is_told(folder, tmp_path):
  cases = [
    (torches(tmp_path), 'is no folder that AutoModel loads'),
    (torches(folder, model='NoSuchModel'), "model='NoSuchModel' is no class of transformers"),
    (torches(folder, width=23), r'tokens of width 24.*width=23; correct these'),
  ]
  for made, told in cases:
    with pytest.raises(PromptError, match=told):
      made.read([Prompt('a')], SIZE)
  with pytest.raises(PromptError, match='no processor for them.*reads text alone'):
    torches(folder).read([Prompt('@image_1', (PICTURE,))], SIZE)


def test_what_is_no_whole_model_is_told(folder, tmp_path):
  missing, cut = (shutil.copytree(folder, tmp_path / name) for name in ('missing', 'cut'))
  weights = safetensors.numpy.load_file(folder / 'model.safetensors')
  kept = {name: x for name, x in weights.items() if 'layers.1' not in name}
  safetensors.numpy.save_file(kept, missing / 'model.safetensors', metadata={'format': 'pt'})
  (cut / 'model.safetensors').write_bytes((folder / 'model.safetensors').read_bytes()[:-100])
  for path, changes, told in (
    (missing, {}, r'has no layers\.1.* of AutoModel; fetch all of it'),
    (cut, {}, 'is no folder that AutoModel loads'),
    (folder, dict(dtype='bf16'), "dtype='bf16' is no dtype of torch"),
    (folder, dict(device='cuda:99'), "device='cuda:99'"),
    (folder, dict(layer=9), 'layer=9: AutoModel has 4 hidden states'),
    (folder, dict(template='describe ' * 20 + '{}'), 'takes all tokens=20; give more'),
  ):
    with pytest.raises(PromptError, match=told):
      torches(path, **changes).hidden(Prompt('a red circle'))
  text, valid = torches(folder).read([Prompt('')], SIZE)
  assert not text.any() and not valid.any()


def test_a_class_that_sees_reads_pictures(tmp_path):
  words = small_text.tokenizer()
  words.add_special_tokens(['<image>'])
  tower = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=2, image_size=16)
  config = transformers.LlavaConfig(
    vision_config=transformers.CLIPVisionConfig(**tower, num_attention_heads=2, patch_size=8),
    text_config=transformers.LlamaConfig(**SMALL | dict(vocab_size=words.get_vocab_size())),
    image_token_index=words.token_to_id('<image>'),
  )
  transformers.LlavaForConditionalGeneration(config).save_pretrained(tmp_path)
  sides = dict(size={'shortest_edge': 16}, crop_size={'height': 16, 'width': 16})
  transformers.LlavaProcessor(
    image_processor=image_processing_pil_clip.CLIPImageProcessorPil(**sides),
    tokenizer=transformers.PreTrainedTokenizerFast(
      tokenizer_object=words, extra_special_tokens={'image_token': '<image>'}
    ),
    patch_size=8,
    vision_feature_select_strategy='default',
    num_additional_image_tokens=1,
    chat_template=(
      "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>"
      "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}"
    ),
  ).save_pretrained(tmp_path)
  made = torches(tmp_path, model='LlavaForConditionalGeneration', tokens=40)
  of = lambda *pictures: made.read([Prompt('a red circle', pictures)], SIZE)
  (one, told), (two, _), (many, more) = of(PICTURE), of(255 - PICTURE), of(PICTURE, PICTURE)
  assert told.sum() > 4 and more.sum() == told.sum() + 4
  assert np.abs(one - two)[told].max() > 1e-3 and np.any(many[more])


def test_what_was_made_once_is_read(folder, tmp_path):
  fields = dict(name='transformers', weights=str(folder), width=24, tokens=20, dtype='float32')
  cached = encoder.build_text(fields | dict(cache=str(tmp_path)))
  prompts = [Prompt('a red circle'), Prompt('a red circle', (PICTURE,)), Prompt('a red circle')]
  with pytest.raises(PromptError, match='no processor'):
    cached.read(prompts, SIZE)
  text, valid = cached.read(prompts[::2], SIZE)
  exact, there = torches(folder).read(prompts[::2], SIZE)
  np.testing.assert_array_equal(valid, there)
  assert np.abs(text - exact).max() < 0.01 * np.abs(exact).max()  # It is kept in bf16.
  assert len([f for _, _, names in os.walk(tmp_path) for f in names]) == 2  # And encoder.json.
  dead = dataclasses.replace(cached, encoder=_Silent(cached.encoder))
  again, _ = dead.read(prompts[:1], SIZE)
  np.testing.assert_array_equal(again[0], text[0])
  with pytest.raises(AssertionError, match='asked'):
    dead.read([Prompt('something else')], SIZE)


@jax.tree_util.register_static
class _Silent:
  """An encoder that may not be asked."""

  def __init__(self, like):
    self.shapes, self.width, self.config = like.shapes, like.width, like.config

  def read(self, prompts, size):
    raise AssertionError('asked')


def test_all_that_an_embedding_follows_from_is_in_its_name(folder, tmp_path):
  config = torches(folder).config
  base = kinds.identity(config)
  for change in (dict(layer=1), dict(template='x{}'), dict(tokens=21), dict(dtype='bfloat16')):
    assert kinds.identity(dataclasses.replace(config, **change)) != base
  names = {
    cache.key(base, prompt)
    for prompt in (
      Prompt('a'),
      Prompt('b'),
      Prompt('a', (PICTURE,)),
      Prompt('a', (PICTURE[::-1],)),
      Prompt('a', clip=PICTURE[None], fps=8.0),
      Prompt('a', clip=PICTURE[None], fps=16.0),
    )
  }
  assert len(names) == 6
  other = small_text.reference()  # Other weights under the names of a release.
  other.save_pretrained(tmp_path)
  one = kinds.weights_id(str(tmp_path))
  with torch.no_grad():
    other.language_model.norm.weight.add_(1)
  other.save_pretrained(tmp_path)
  assert kinds.weights_id(str(tmp_path)) != one


def test_weights_on_the_mesh_fill_a_folder_ahead(tmp_path):
  fields = small_text.FIELDS | dict(name='qwen3-vl-8b', weights='random', cache=str(tmp_path))
  cached = encoder.build_text(fields)
  assert not jax.tree.leaves(cached)  # A run needs no memory for them.
  with pytest.raises(PromptError, match=r"'a ball' is not in .*data_pipelines\.encode"):
    cached.read([Prompt('a ball')], SIZE)
  shape, valid = cached.shapes(1, SIZE)
  text = np.asarray(random.standard_normal(shape.shape[1:]), np.float32)
  there = np.arange(valid.shape[1]) % 3 == 1
  cached.write(Prompt('a ball'), text, there)
  found, told = cached.read([Prompt('a ball')], SIZE)
  np.testing.assert_array_equal(told[0], there)
  np.testing.assert_allclose(found[0, there], text[there], rtol=1e-2)


def test_a_broken_file_is_told(folder, tmp_path):
  fields = dict(name='transformers', weights=str(folder), width=24, tokens=20)
  cached = encoder.build_text(fields | dict(cache=str(tmp_path)))
  cached.read([Prompt('a')], SIZE)
  path = cached.path(Prompt('a'))
  with open(path, 'r+b') as f:
    f.truncate(40)
  with pytest.raises(PromptError, match='is broken.*made anew'):
    cached.read([Prompt('a')], SIZE)


def test_a_name_that_is_none():
  with pytest.raises(
    config_lib.ConfigError, match=r"text\.name='gpt' is not among bytes, qwen3-vl"
  ):
    encoder.build_text(dict(name='gpt'))
