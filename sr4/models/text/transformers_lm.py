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
  template: str = '{}'  # around a prompt; tokens before the {} are not kept
  tokens: int = 512  # of prompt and template; more are cut off
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
    before, after = c.template.split('{}')
    if prompt.images or prompt.clip is not None:
      given, first = seen(c, prompt), 0
    else:
      with TOKENIZING:
        given = words(
          before + prompt.text + after,
          truncation=True,
          max_length=c.tokens,
          return_special_tokens_mask=True,
          return_tensors='pt',
        )
        first = len(words(before, add_special_tokens=False)['input_ids']) if before else 0
      added = given.pop('special_tokens_mask')[0]
      first += int(added.argmin()) if before else 0  # What begins a text stands before all.
    given.pop('token_type_ids', None)
    with torch.inference_mode():
      out = model(**given.to(c.device), output_hidden_states=True).hidden_states[c.layer][0]
    found = out.float().cpu().numpy()
    if found.shape[1] != c.width or len(found) > c.tokens:
      raise PromptError(
        f'{c.weights} gives {len(found)} tokens of width {found.shape[1]}, and config.text has '
        f'tokens={c.tokens}, width={c.width}; correct these'
      )
    return found[first:]


def seen(c: Config, prompt: Prompt):
  """What the class's own processor makes of words and pictures."""
  from PIL import Image

  processor = loaded_processor(c)
  pictures = list(prompt.images)
  if prompt.clip is not None:  # Two frames a second, as stills.
    pictures += list(prompt.clip[:: max(1, round(prompt.fps / 2))])
  content = [{'type': 'image', 'image': Image.fromarray(picture)} for picture in pictures]
  content.append({'type': 'text', 'text': prompt.text})
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
    import torch
    import transformers
  except ImportError as error:
    raise PromptError(
      "config.text.name='transformers' needs torch and transformers: pip install torch transformers"
    ) from error
  kind = getattr(transformers, c.model, None)
  if kind is None:
    raise PromptError(f'config.text.model={c.model!r} is no class of transformers')
  try:
    words = transformers.AutoTokenizer.from_pretrained(c.weights, local_files_only=True)
    model = kind.from_pretrained(c.weights, dtype=getattr(torch, c.dtype), local_files_only=True)
  except (OSError, ValueError) as error:
    raise PromptError(
      f'config.text.weights={c.weights!r} is no folder that {c.model} loads ({error})'
    ) from error
  return model.to(c.device).eval(), words


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
