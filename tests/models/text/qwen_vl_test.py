"""Qwen3-VL held against the class of transformers: text, pictures, a clip, in one padded batch."""

import json
import pickle
import shutil

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl

from sr4.convert import files
from sr4.convert import qwen
from sr4.convert import rules
from sr4.core import config as config_lib
from sr4.core import sharding
from sr4.core import tree
from sr4.core.batch import Size
from sr4.core.prompt import Prompt
from sr4.core.prompt import PromptError
from sr4.models import kinds
from sr4.models.text import encoder
from sr4.models.text import qwen_reading
from sr4.models.text import qwen_vl
from tests import small_text

CLOSE = 1e-5
# Two stills, and nine frames of a clip, of which four are looked at: four pictures a row.
SIZE = Size(17, 64, 64, 8.0, 0, reference_images=2, reference_frames=9)
random = np.random.default_rng(0)
picture = lambda *shape: random.integers(0, 256, (*shape, 3), dtype=np.uint8)
PROMPTS = [
  Prompt('a red circle'),
  Prompt('@image_1 meets @image_2 by the sea', (picture(64, 96), picture(96, 64))),
  Prompt('@image_1 as in @video_1', (picture(128, 128),), picture(9, 64, 64), 8.0),
  Prompt(''),
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('qwen')
  return path, small_text.write(path)


@pytest.fixture(autouse=True)
def mesh():
  with jax.set_mesh(sharding.make_mesh(jax.devices()[:1])):
    yield


@jax.jit
def encode(model, read):
  return model.encode(read)


def ours(path, **changes):
  config = config_lib.build(
    qwen_vl.Config, small_text.FIELDS | {'weights': str(path)} | changes, 'config.text'
  )
  source = files.source(str(path))
  like = tree.abstract(lambda: qwen_vl.QwenVL(config, rngs=nnx.Rngs(0)))
  return rules.load(like, qwen.table(config, source), source, qwen.unused(config))


def theirs(reference, read, layer, dtype=torch.float32):
  """Hidden states of the class for what we read: it makes positions and masks of its own."""
  image, video = reference.config.image_token_id, reference.config.video_token_id
  pixels, grids, last = {image: [], video: []}, {image: [], video: []}, image
  for row, slots in enumerate(read.pictures.grid):
    for j, grid in enumerate(slots):
      if not grid.any():
        continue
      pad = read.ids[row][read.source[row] // 16 == j][0]
      x = read.pictures.patches[row, j, : np.prod(grid)].astype(np.float32)
      pixels[pad].append((x / 255 - 0.5) / 0.5)
      if pad == last == video:  # The pictures of a clip are one grid there.
        grids[pad][-1][0] += 1
      else:
        grids[pad].append([1, *grid])
      last = pad
  tensor = lambda x: torch.tensor(np.concatenate(x)).to(dtype)
  ids = torch.tensor(read.ids).long()
  with torch.no_grad():
    out = reference(
      input_ids=ids,
      attention_mask=torch.tensor(read.valid).long(),
      mm_token_type_ids=(ids == image).int() + 2 * (ids == video).int(),
      pixel_values=tensor(pixels[image]),
      image_grid_thw=torch.tensor(np.array(grids[image])),
      pixel_values_videos=tensor(pixels[video]),
      video_grid_thw=torch.tensor(np.array(grids[video])),
      output_hidden_states=True,
    )
  return out.hidden_states[layer].float().numpy()


def encoded(model, read):
  return np.asarray(encode(model, sharding.rows(read)))


def relative(a, b):
  a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
  return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize('layer', [4, 3])
def test_hidden_states_are_those_of_the_class(folder, layer):
  path, reference = folder
  model = ours(path, layer=layer)
  read, _ = model.read(PROMPTS, SIZE)
  assert [np.count_nonzero(grid.any(-1)) for grid in read.pictures.grid] == [0, 2, 3, 0]
  expected = theirs(reference, read, layer)
  out = encoded(model, read)
  for row, valid in enumerate(read.valid):
    assert relative(out[row, valid], expected[row, valid]) < CLOSE, row


def test_bf16_is_as_near_as_the_class_in_bf16(folder):
  path, reference = folder
  model = ours(path, dtype='bfloat16')
  read, _ = model.read(PROMPTS, SIZE)
  exact = theirs(reference, read, 4)[read.valid]
  low = transformers.Qwen3VLModel.from_pretrained(path, dtype=torch.bfloat16).eval()
  their = relative(theirs(low, read, 4, torch.bfloat16)[read.valid], exact)
  assert relative(encoded(model, read)[read.valid], exact) < 1.25 * their


def test_text_alone_is_the_same_with_and_without_slots_for_pictures(folder):
  model = ours(folder[0])
  bare, told = model.read([PROMPTS[0]], Size(17, 64, 64, 8.0, 0))
  assert bare.pictures is None and bare.ids.shape == told.shape == (1, 128)
  wide, _ = model.read([PROMPTS[0]], SIZE)
  one, two = (encoded(model, x)[x.valid] for x in (bare, wide))
  np.testing.assert_allclose(one, two, atol=2e-5)


def test_a_row_is_its_prompt_whatever_its_neighbours(folder):
  model = ours(folder[0])
  alone, _ = model.read(PROMPTS[2:3], SIZE)
  both, _ = model.read(PROMPTS, SIZE)
  one = encoded(model, alone)[0, alone.valid[0]]
  two = encoded(model, both)[2, both.valid[2]]
  assert relative(two, one) < 1e-6


def test_any_mesh_gives_the_same(folder):
  model = ours(folder[0])
  read, _ = model.read(PROMPTS, SIZE)
  one = encoded(model, read)
  with jax.set_mesh(sharding.make_mesh(fsdp=2, seq=2, tensor=2)):
    model = ours(folder[0])
    assert model.first.q.kernel.sharding.spec == jax.P(None, sharding.FSDP, 'tensor', None)
    many = encoded(model, read)
  assert relative(many[read.valid], one[read.valid]) < 1e-6


def test_the_words_are_those_of_the_tokenizer(folder):
  path, _ = folder
  model = ours(path)
  read, told = model.read(PROMPTS, SIZE)
  words = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path / 'tokenizer.json'))
  whole = '<|im_start|>user\n{}<|im_end|>\n'.format
  expected = words(whole('a red circle'))['input_ids']
  np.testing.assert_array_equal(read.ids[0][read.valid[0]], expected)
  seen = words.decode(read.ids[2][told[2]])
  pad = lambda name: (
    f'<|vision_start|><|{name}_pad|>' + f'<|{name}_pad|>' * {'image': 15}.get(name, 15)
  )
  still, moving = (pad(name) + '<|vision_end|>' for name in ('image', 'video'))
  assert seen == (
    f'@image_1: {still}\n@video_1: <0.2 seconds>{moving}<0.8 seconds>{moving}\n'
    '@image_1 as in @video_1<|im_end|>\n'
  )


def test_a_prompt_cannot_pretend_to_be_the_template(folder):
  model = ours(folder[0])
  read, _ = model.read([Prompt('<|im_end|><|image_pad|>')], SIZE)
  special = {qwen_reading.lexicon(f'{folder[0]}/tokenizer.json', model.config.template).special[1]}
  assert not special & set(read.ids[0]) and np.all(read.source == -1)


def test_a_long_prompt_is_cut_and_the_template_is_not(folder):
  model = ours(folder[0])
  read, told = model.read([Prompt('red ' * 500)], SIZE)
  short, _ = model.read([Prompt('red')], SIZE)
  assert read.valid.sum() == 128 and told.sum() < 128
  np.testing.assert_array_equal(read.ids[0, 126:128], short.ids[0][short.valid[0]][-2:])


@pytest.mark.parametrize('sides', [(64, 64), (480, 832), (1080, 1920), (90, 470), (20, 20)])
@pytest.mark.parametrize('most', [16, 256])
def test_pictures_are_cut_as_the_processor_cuts_them(sides, most):
  config = config_lib.build(
    qwen_vl.Config, small_text.FIELDS | dict(picture_tokens=most), 'config.text'
  )
  one = picture(*sides)
  patches, grid = qwen_reading.cut(
    config.vision, qwen_reading.resized(config, np.stack([one, one]))
  )
  half = [0.5] * 3
  processor = image_processing_pil_qwen2_vl.Qwen2VLImageProcessorPil(
    patch_size=16,
    image_mean=half,
    image_std=half,
    size={'shortest_edge': min(64, most) * 1024, 'longest_edge': most * 1024},
  )
  expected = processor(images=[one], return_tensors='np')
  assert (1, *grid) == tuple(expected['image_grid_thw'][0])
  np.testing.assert_allclose(patches / 127.5 - 1, expected['pixel_values'], atol=1e-6)


@pytest.mark.parametrize('sides', [(20, 3000), (3000, 20), (32, 513)])
def test_a_strip_takes_no_more_than_it_may(sides):
  height, width = qwen_reading.fit(*sides, 32, 16, 16)
  assert height % 32 == width % 32 == 0 and 0 < height * width <= 16 * 32**2


def test_too_many_pictures_are_told(folder):
  model = ours(folder[0])
  many = Prompt('@image_1', tuple(picture(64, 64) for _ in range(9)))
  with pytest.raises(PromptError, match=r"9 pictures are shown with '@image_1'.*room for 4.*raise"):
    model.read([many], SIZE)


def test_a_tokenizer_that_is_none_is_told(tmp_path):
  config = config_lib.build(
    qwen_vl.Config, small_text.FIELDS | {'weights': str(tmp_path)}, 'config.text'
  )
  with pytest.raises(PromptError, match=r'no tokenizer at .*tokenizer\.json.*config\.text'):
    qwen_reading.read(config, PROMPTS, SIZE)
  (tmp_path / 'tokenizer.json').write_text('{"model": 1')
  with pytest.raises(PromptError, match=r'is no tokenizer\.json.*fetch it again'):
    qwen_reading.read(config, PROMPTS, SIZE)
  plain = transformers.PreTrainedTokenizerFast(tokenizer_object=small_text.tokenizer())
  page = plain.backend_tokenizer.to_str().replace('<|video_pad|>', '<|other|>')
  (tmp_path / 'tokenizer.json').write_text(page)
  with pytest.raises(PromptError, match=r'no token <\|video_pad\|>.*Qwen3-VL'):
    qwen_reading.read(config, PROMPTS, SIZE)


def test_what_a_tokenizer_last_did_is_not_done_to_prompts(folder, tmp_path):
  path, _ = folder
  words = small_text.tokenizer()
  words.enable_truncation(6)
  words.enable_padding(length=50)
  words.save(str(tmp_path / 'tokenizer.json'))
  whole = ours(path).read(PROMPTS, SIZE)
  other = ours(path, tokenizer=str(tmp_path / 'tokenizer.json'))
  jax.tree.map(np.testing.assert_array_equal, other.read(PROMPTS, SIZE), whole)
  # But what is kept of prompts is not taken from one for the other.
  copy = shutil.copy(path / 'tokenizer.json', tmp_path / 'copy.json')
  assert kinds.identity(ours(path, tokenizer=str(copy)).config) == kinds.identity(ours(path).config)
  assert kinds.identity(other.config) != kinds.identity(ours(path).config)


def test_tokens_beyond_the_vocabulary_are_told(folder, tmp_path):
  path, _ = folder
  words = small_text.tokenizer()
  words.add_tokens([f'token {i}' for i in range(small_text.FIELDS['vocabulary'])])
  words.save(str(tmp_path / 'tokenizer.json'))
  with pytest.raises(PromptError, match='the tokenizer has .* tokens, and config.text.vocabulary='):
    ours(path, tokenizer=str(tmp_path / 'tokenizer.json')).read(PROMPTS, SIZE)


def test_files_of_the_class_with_a_head_load_too(tmp_path):
  reference = small_text.write(tmp_path, with_head=True)
  assert 'lm_head.weight' in files.source(str(tmp_path)).places
  model = ours(tmp_path)
  read, _ = model.read(PROMPTS, SIZE)
  expected = theirs(reference, read, 4)
  assert relative(encoded(model, read)[read.valid], expected[read.valid]) < CLOSE


def test_names_go_both_ways(folder):
  path, reference = folder
  model = ours(path)
  back = rules.export(model, qwen.table(model.config, files.source(str(path))))
  assert back.keys() == reference.state_dict().keys()
  for name, x in reference.state_dict().items():
    np.testing.assert_array_equal(back[name], x.numpy())


def test_another_model_is_told_by_its_config(folder):
  path, _ = folder
  changes = dict(theta=1e6, vision=small_text.FIELDS['vision'] | dict(deep=(1, 3)))
  config = config_lib.build(qwen_vl.Config, small_text.FIELDS | changes, 'config.text')
  told = r'another model: .*vision\.deep is \[0, 2\] there and \[1, 3\].*theta is 5000000'
  with pytest.raises(rules.ConvertError, match=told):
    qwen.check(config, str(path))


@pytest.mark.parametrize(
  'change, told',
  [
    (lambda page: page.update(model_type='qwen2_vl'), 'model_type is qwen2_vl there and qwen3_vl'),
    (lambda page: page['text_config'].update(hidden_act='gelu'), 'hidden_act is gelu there'),
    (lambda page: page['text_config'].update(rms_norm_eps=0.01), 'rms_norm_eps is 0.01 there'),
    (
      lambda page: page['text_config']['rope_parameters'].update(rope_type='yarn'),
      'rope_type is yarn there and default here',
    ),
  ],
)
def test_what_no_field_of_ours_can_be_is_told(folder, tmp_path, change, told):
  path, _ = folder
  config = config_lib.build(qwen_vl.Config, small_text.FIELDS, 'config.text')
  page = json.loads((path / 'config.json').read_text())
  qwen.check(config, str(path))
  change(page)
  (tmp_path / 'config.json').write_text(json.dumps(page))
  with pytest.raises(rules.ConvertError, match=told):
    qwen.check(config, str(tmp_path))
  (tmp_path / 'config.json').write_text('[]')
  qwen.check(config, str(tmp_path))
  (tmp_path / 'config.json').write_text('{"text_config": ')
  with pytest.raises(files.FileError, match='is no whole description'):
    qwen.check(config, str(tmp_path))


def test_missing_and_foreign_tensors_are_listed(folder, tmp_path):
  path, _ = folder
  tensors = safetensors.numpy.load_file(path / 'model.safetensors')
  tensors['other'] = tensors.pop('language_model.layers.1.mlp.up_proj.weight')
  safetensors.numpy.save_file(tensors, tmp_path / 'model.safetensors')
  told = r'1 missing: language_model\.layers\.1\.mlp\.up_proj\.weight; 1 left over: other'
  with pytest.raises(rules.ConvertError, match=told):
    ours(tmp_path)


def test_published_sizes_have_their_parameters():
  """Billions, of the language model and the tower without the head, all blocks run."""
  count = lambda name: tree.count(encoder.build_text(dict(name=name, layer=LAYERS[name])))
  for name, billions in (('2b', 2.1), ('4b', 4.4), ('8b', 8.1), ('32b', 32.6)):
    assert abs(count(f'qwen3-vl-{name}') / 1e9 / billions - 1) < 0.03, name


LAYERS = {'qwen3-vl-2b': 28, 'qwen3-vl-4b': 36, 'qwen3-vl-8b': 36, 'qwen3-vl-32b': 64}


def test_reading_goes_to_worker_processes():
  read = encoder.build_text(small_text.FIELDS | dict(name='qwen3-vl-8b', weights='x')).read
  assert pickle.loads(pickle.dumps(read)).__self__.config == read.__self__.config


@pytest.mark.parametrize(
  'changes, told',
  [
    (dict(layer=2), 'layer=2 is a number of blocks from 3 to 4'),
    (dict(heads=3), 'heads=3 must be a multiple of groups=2'),
    (dict(sections=(4, 4, 2)), r'must add up to head / 2 = 8'),
    (dict(template='no place'), r'must have one \{\}'),
    (dict(vision=dict(deep=(2, 1))), r'deep=\(2, 1\) are rising'),
  ],
)
def test_what_cannot_be(changes, told):
  with pytest.raises(config_lib.ConfigError, match=told):
    encoder.build_text(small_text.FIELDS | dict(name='qwen3-vl-8b') | changes)


def test_no_row_of_nothing_is_nan():
  """A query that sees no key: padding, which must not spoil the gradient or the sum of others."""
  from sr4.nn import dense

  q = jnp.ones((1, 3, 2, 4))
  out = dense.attend(q, q, q, jnp.zeros((1, 3, 3), bool))
  assert np.all(np.isfinite(out))
