"""Qwen3-VL: the names of transformers' classes, which are those of the published files."""

import math
import os

from sr4.convert import files
from sr4.convert import rules
from sr4.models import kinds
from sr4.models.text import qwen_vl

LANGUAGE = {
  'norm1': 'input_layernorm',
  'norm2': 'post_attention_layernorm',
  'q_norm': 'self_attn.q_norm',
  'k_norm': 'self_attn.k_norm',
  'q': 'self_attn.q_proj',
  'k': 'self_attn.k_proj',
  'v': 'self_attn.v_proj',
  'proj': 'self_attn.o_proj',
  'gate': 'mlp.gate_proj',
  'up': 'mlp.up_proj',
  'down': 'mlp.down_proj',
}
TOWER = {
  'norm1': 'norm1',
  'norm2': 'norm2',
  'qkv': 'attn.qkv',
  'proj': 'attn.proj',
  'up': 'mlp.linear_fc1',
  'down': 'mlp.linear_fc2',
}
MERGER = {'norm': 'norm', 'up': 'linear_fc1', 'down': 'linear_fc2'}
LEAVES = {'kernel': 'weight', 'scale': 'weight', 'bias': 'bias'}
EPS = 1e-6  # of all our norms
# What config.json calls the fields that no shape tells of.
TEXT = {
  'd': 'hidden_size',
  'f': 'intermediate_size',
  'depth': 'num_hidden_layers',
  'heads': 'num_attention_heads',
  'groups': 'num_key_value_heads',
  'head': 'head_dim',
  'vocabulary': 'vocab_size',
}
VISION = {
  'd': 'hidden_size',
  'f': 'intermediate_size',
  'depth': 'depth',
  'heads': 'num_heads',
  'patch': 'patch_size',
  'frames': 'temporal_patch_size',
  'merge': 'spatial_merge_size',
  'deep': 'deepstack_visual_indexes',
}


def table(config: qwen_vl.Config, source: files.Source) -> rules.Table:
  """Of the names in a source: those of the model alone, or of one with a head."""
  head = 'model.' if any(name.startswith('model.') for name in source.places) else ''
  v = config.vision
  starts = [0] + [i + 1 for i in v.deep]
  blocks = {
    'first': (f'{head}language_model.layers', 0, LANGUAGE),
    'rest': (f'{head}language_model.layers', len(v.deep), LANGUAGE),
    **{
      f'vision.stages.{i}': (f'{head}visual.blocks', start, TOWER) for i, start in enumerate(starts)
    },
  }
  mergers = {
    'vision.merger': f'{head}visual.merger',
    **{
      f'vision.mergers.{i}': f'{head}visual.deepstack_merger_list.{i}' for i in range(len(v.deep))
    },
  }
  patch = v.d, 3, v.frames, v.patch, v.patch

  def found(name: str, shape: tuple[int, ...]) -> rules.Tensor | rules.Stack:
    if name == 'embedding':
      return rules.Tensor(f'{head}language_model.embed_tokens.weight', shape, (0, 1))
    if name == 'vision.positions':
      return rules.Tensor(f'{head}visual.pos_embed.weight', shape, (0, 1))
    if name == 'vision.patches.kernel':
      return rules.Tensor(f'{head}visual.patch_embed.proj.weight', patch, (1, 2, 3, 4, 0))
    if name == 'vision.patches.bias':
      return rules.Tensor(f'{head}visual.patch_embed.proj.bias', shape, (0,))
    if name == 'norm.scale':
      return rules.Tensor(f'{head}language_model.norm.weight', shape, (0,))
    prefix, layer, leaf = name.rsplit('.', 2)
    if prefix in mergers:
      return dense(f'{mergers[prefix]}.{MERGER[layer]}.{LEAVES[leaf]}', leaf, shape)
    theirs, first, words = blocks[prefix]
    count, *one = shape
    names = (f'{theirs}.{first + i}.{words[layer]}.{LEAVES[leaf]}' for i in range(count))
    inputs = 2 if layer == 'proj' else 1
    return rules.Stack(tuple(dense(name, leaf, tuple(one), inputs) for name in names))

  return found


def dense(name: str, leaf: str, shape: tuple[int, ...], inputs: int = 1) -> rules.Tensor:
  """[in... out...] of ours is [out in] of theirs."""
  if leaf != 'kernel':
    return rules.Tensor(name, (math.prod(shape),), (0,))
  return rules.Tensor(name, (math.prod(shape[inputs:]), math.prod(shape[:inputs])), (1, 0))


def unused(config: qwen_vl.Config) -> tuple[str, ...]:
  """Patterns of what the encoder does not need: the head, and what follows its layer."""
  later = tuple(f'*language_model.layers.{i}.*' for i in range(config.layer, config.depth))
  norm = ('*language_model.norm.weight',) if config.layer < config.depth else ()
  return ('lm_head.weight', *later, *norm)


def check(config: qwen_vl.Config, path: str):
  """ConvertError where the config.json beside the weights tells of another model."""
  place = kinds.beside(path, 'config.json')
  if not os.path.isfile(place):
    return
  page = files.page(place)
  text, vision = page.get('text_config') or {}, page.get('vision_config') or {}
  rope = text.get('rope_parameters') or text.get('rope_scaling') or {}
  told = {name: (getattr(config, name), text.get(theirs)) for name, theirs in TEXT.items()}
  told |= {
    f'vision.{name}': (getattr(config.vision, name), vision.get(theirs))
    for name, theirs in VISION.items()
  }
  told['theta'] = config.theta, rope.get('rope_theta', text.get('rope_theta'))
  told['sections'] = config.sections, rope.get('mrope_section')
  told |= {  # What is not in config.text, as it is one for all sizes.
    'model_type': ('qwen3_vl', page.get('model_type')),
    'hidden_act': ('silu', text.get('hidden_act')),
    'rms_norm_eps': (EPS, text.get('rms_norm_eps')),
    'rope_type': ('default', rope.get('rope_type')),
  }
  plain = lambda x: list(x) if isinstance(x, (list, tuple)) else x
  wrong = [
    f'{name} is {plain(theirs)} there and {plain(ours)} here'
    for name, (ours, theirs) in told.items()
    if theirs is not None and plain(theirs) != plain(ours)
  ]
  if wrong:
    raise rules.ConvertError(
      f'{place} tells of another model: {rules.some(wrong)}; name the size that it is '
      f'({", ".join(qwen_vl.SIZES)}), or give its fields in config.text'
    )
