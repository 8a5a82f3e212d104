"""Any language model of `transformers` as an encoder, run by torch where the data is read.

For an encoder that sr4 has no port of, or to hold one against.  It runs in the loader's threads, on
a CPU or a GPU of the host, so keep what it makes (`config.text.cache`), or write latents with it.
"""

import dataclasses
import functools
import threading

import jax
import numpy as np

from sr4.core.batch import Size
from sr4.core.prompt import Prompt
from sr4.core.prompt import PromptError

TOKENIZING = threading.Lock()  # Each call sets how a tokenizer that all threads share cuts off.


@dataclasses.dataclass(frozen=True)
class Config:
  weights: str  # folder as save_pretrained writes it, with the tokenizer
  width: int  # of its hidden states
  model: str = 'AutoModel'  # class of transformers, such as 'UMT5EncoderModel'
  layer: int = -1  # of hidden_states: 0 the embeddings, -1 the last
  # Around a prompt; tokens before the {} are not kept, but where pictures are before them, too.
  template: str = '{}'
  tokens: int = 512  # of prompt and template; more are cut off, or with pictures an error
  dtype: str = 'bfloat16'
  device: str = 'cpu'  # as torch calls it

  def __post_init__(self):
    if self.template.count('{}') != 1:
      raise ValueError(f'template={self.template!r} must have one {{}}, where the prompt goes')


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Transformers:
  """models/text/encoder.py `TextEncoder` whose weights are torch's."""

  config: Config

  @property
  def width(self) -> int:
    return self.config.width

  def shapes(self, rows: int, size: Size):
    like = lambda *shape, dtype: jax.ShapeDtypeStruct((rows, self.config.tokens, *shape), dtype)
    return like(self.width, dtype=np.float32), like(dtype=bool)

  def read(self, prompts: list[Prompt], size: Size) -> tuple[np.ndarray, np.ndarray]:
    text, valid = (np.zeros(x.shape, x.dtype) for x in self.shapes(len(prompts), size))
    for row, prompt in enumerate(prompts):
      found = self.hidden(prompt)
      text[row, : len(found)], valid[row, : len(found)] = found, True
    return text, valid

  def hidden(self, prompt: Prompt) -> np.ndarray:
    """float32 [v e] of the tokens that are kept."""
    import torch

    c, (model, words) = self.config, loaded(self.config)
    if prompt.images or prompt.clip is not None:
      given, first = seen(c, prompt), 0
    else:
      given, first = spelt(c, words, prompt.text)
    if not given['input_ids'].numel():
      return np.zeros((0, c.width), np.float32)
    given.pop('token_type_ids', None)
    with torch.inference_mode():
      layers = model(**given.to(c.device), output_hidden_states=True).hidden_states
    if not -len(layers) <= c.layer < len(layers):
      raise PromptError(
        f'config.text.layer={c.layer}: {c.model} has {len(layers)} hidden states; name one of them'
      )
    out = layers[c.layer][0]
    found = out.float().cpu().numpy()
    if found.shape[1] != c.width or len(found) > c.tokens:
      raise PromptError(
        f'{c.weights} gives {len(found)} tokens of width {found.shape[1]}, and config.text has '
        f'tokens={c.tokens}, width={c.width}; correct these'
      )
    return found[first:]


def spelt(c: Config, words, text: str):
  """(what the model is given, how many of its tokens stand before the prompt).

  These are the tokens that the template's beginning has with any prompt: what of it is in one token
  with the prompt's first word, as a space is, belongs to that.
  """
  before, after = c.template.split('{}')
  with TOKENIZING:
    given = words(before + text + after, truncation=True, max_length=c.tokens, return_tensors='pt')
    alone = words(before)['input_ids'] if before else []
  same = [mine == ours for mine, ours in zip(alone, given['input_ids'][0].tolist())]
  first = (*same, False).index(False)
  if first == c.tokens:
    raise PromptError(
      f'config.text.template takes all tokens={c.tokens}; give more, or a shorter template'
    )
  return given, first


def seen(c: Config, prompt: Prompt):
  """What the class's own processor makes of words and pictures."""
  from PIL import Image

  processor = loaded_processor(c)
  pictures = list(prompt.images)
  if prompt.clip is not None:  # Two frames a second, as stills.
    pictures += list(prompt.clip[:: max(1, round(prompt.fps / 2))])
  content = [{'type': 'image', 'image': Image.fromarray(picture)} for picture in pictures]
  content.append({'type': 'text', 'text': c.template.replace('{}', prompt.text)})
  return processor.apply_chat_template(
    [{'role': 'user', 'content': content}],
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors='pt',
  )


@functools.lru_cache(maxsize=2)
def loaded(c: Config):
  """(model, tokenizer)."""
  try:
    import safetensors
    import torch
    import transformers
  except ImportError as error:
    raise PromptError(
      "config.text.name='transformers' needs torch and transformers: pip install torch transformers"
    ) from error
  kind = getattr(transformers, c.model, None)
  if kind is None:
    raise PromptError(f'config.text.model={c.model!r} is no class of transformers')
  if not isinstance(dtype := getattr(torch, c.dtype, None), torch.dtype):
    raise PromptError(f'config.text.dtype={c.dtype!r} is no dtype of torch, such as bfloat16')
  try:
    words = transformers.AutoTokenizer.from_pretrained(c.weights, local_files_only=True)
    model, told = kind.from_pretrained(
      c.weights, dtype=dtype, local_files_only=True, output_loading_info=True
    )
  except (OSError, ValueError, safetensors.SafetensorError) as error:
    raise PromptError(
      f'config.text.weights={c.weights!r} is no folder that {c.model} loads ({error})'
    ) from error
  # Hidden states do not pass through a pooler, which some classes have and files lack.
  if lacks := sorted(name for name in told['missing_keys'] if 'pooler' not in name):
    raise PromptError(
      f'config.text.weights={c.weights!r} has no {", ".join(lacks[:8])} of {c.model}; fetch all of '
      'it, or name the class that wrote it'
    )
  try:
    return model.to(c.device).eval(), words
  except (RuntimeError, AssertionError) as error:
    raise PromptError(f'config.text.device={c.device!r}: {error}') from error


@functools.lru_cache(maxsize=2)
def loaded_processor(c: Config):
  import transformers

  try:
    found = transformers.AutoProcessor.from_pretrained(c.weights, local_files_only=True)
  except (OSError, ValueError, ImportError) as error:
    found = error
  if not hasattr(found, 'image_processor'):
    why = found if isinstance(found, Exception) else 'it reads text alone'
    raise PromptError(
      f'a prompt has pictures, and {c.weights} has no processor for them ({why}); give an encoder '
      'that sees, or take the references away'
    )
  return found
