"""A Qwen3-VL as small as it gets: its files as `transformers` writes them, and a tokenizer."""

import tokenizers
import torch
import transformers

FIELDS = dict(
  layer=4,
  template='<|im_start|>user\n{}<|im_end|>\n',
  tokens=128,
  picture_tokens=16,
  d=64,
  f=96,
  depth=4,
  heads=4,
  groups=2,
  head=16,
  vocabulary=400,
  sections=(4, 2, 2),
  vision=dict(d=32, f=48, depth=5, heads=2, grid=6, deep=(0, 2)),
  dtype='float32',
)
MARKS = (
  '<|endoftext|>',
  '<|im_start|>',
  '<|im_end|>',
  '<|vision_start|>',
  '<|vision_end|>',
  '<|image_pad|>',
  '<|video_pad|>',
)
TEXT = 'a red circle bounces and a blue square rings; describe the video and its sound. system user'
# Qwen's: letters, single digits, signs, and line breaks apart.
SPLIT = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
  r'\s*[\r\n]+|\s+(?!\S)|\s+'
)


def tokenizer() -> tokenizers.Tokenizer:
  """Byte-level pairs, as Qwen's, learnt from one line."""
  made = tokenizers.Tokenizer(tokenizers.models.BPE())
  made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
    [
      tokenizers.pre_tokenizers.Split(tokenizers.Regex(SPLIT), 'isolated'),
      tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  made.decoder = tokenizers.decoders.ByteLevel()
  alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=350, initial_alphabet=alphabet, show_progress=False
  )
  made.train_from_iterator([TEXT], trainer)
  made.add_special_tokens([tokenizers.AddedToken(mark, special=True) for mark in MARKS])
  return made


def reference(with_head: bool = False, **changes):
  """The class of transformers with random weights, in eval mode."""
  c = FIELDS | changes
  v = c['vision']
  words = tokenizer()
  config = transformers.Qwen3VLConfig(
    text_config=dict(
      vocab_size=c['vocabulary'],
      hidden_size=c['d'],
      intermediate_size=c['f'],
      num_hidden_layers=c['depth'],
      num_attention_heads=c['heads'],
      num_key_value_heads=c['groups'],
      head_dim=c['head'],
      rope_parameters=dict(rope_type='default', rope_theta=5e6, mrope_section=list(c['sections'])),
    ),
    vision_config=dict(
      depth=v['depth'],
      hidden_size=v['d'],
      intermediate_size=v['f'],
      num_heads=v['heads'],
      out_hidden_size=c['d'],
      num_position_embeddings=v['grid'] ** 2,
      deepstack_visual_indexes=list(v['deep']),
    ),
    **{
      f'{name}_token_id': words.token_to_id(mark)
      for name, mark in (
        ('image', '<|image_pad|>'),
        ('video', '<|video_pad|>'),
        ('vision_start', '<|vision_start|>'),
        ('vision_end', '<|vision_end|>'),
      )
    },
  )
  torch.manual_seed(0)
  kind = transformers.Qwen3VLForConditionalGeneration if with_head else transformers.Qwen3VLModel
  made = kind(config).eval()
  with torch.no_grad():  # Norms are ones and biases zeros at first, which hides what they do.
    for x in made.parameters():
      x.add_(0.1 * (x.std() if x.ndim > 1 else 1) * torch.randn_like(x))
  return made


def write(folder, **changes):
  """The files of a release: safetensors, config.json, tokenizer.json.  Returns the class."""
  made = reference(**changes)
  made.save_pretrained(folder)
  tokenizer().save(str(folder / 'tokenizer.json'))
  return made
