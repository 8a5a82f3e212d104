"""Floating-point operations of the model, by its geometry: what MFU divides by.

Multiplications and additions of all matrix products of the forward pass; training is three times
that.  Norms, softmax and modulation of tokens are left out, as everywhere in the field.  Of sparse
attention those count that are done: of the tiles that are read, at the sparsity it is trained for.
"""

from sr4.core.av import AV
from sr4.models import mmdit


def forward(c: mmdit.Config, tokens: AV, text: int, shown: int = 0) -> float:
  """Of one row with these tokens in each branch (0: the branch is not there) and text tokens.

  Args:
    shown: of the video's tokens, those of references: sparse attention leaves out none of them.
  """
  layers, d, f = c.layers, c.width, c.mlp_ratio * c.width
  total, both = 0, all(tokens)
  patch = c.patch[0] * c.patch[1] * c.patch[2]
  ends = AV((patch * (2 * c.video_channels + 1), patch * c.video_channels), (c.audio_channels,) * 2)
  for i, s in enumerate(tokens):
    if not s:
      continue
    stream = s + text
    joint = stream * (2 * 4 * d * d + 2 * 2 * d * f) + 2 * 2 * stream * stream * d
    cross = 0
    if i == 0:  # Video reads the prompt.
      cross += attention(s, text, d) + sparse(c, s, text, shown)
    if both:
      cross += attention(s, tokens[1 - i], d)
    read = 2 * text * (c.text_width * d + d * d)
    time = 2 * (256 * d + d * d) + 2 * d * d * (9 + 6 + 2)
    total += layers * (joint + cross) + 2 * s * d * sum(ends[i]) + read + time
  return total


def sparse(c: mmdit.Config, s: int, text: int, shown: int) -> float:
  """What a layer's sparse attention adds to dense attention, in the mean of the layers: less than
  nothing, as far as tiles are left out; gates and the attention of means are more."""
  if not c.sparse.tile:
    return 0
  d, left = c.width, c.sparse.left(c.layers)
  tiles = (s + text) / c.sparse.size
  return 2 * s * d * d + 2 * 2 * tiles * tiles * d - left * 2 * 2 * (s - shown) ** 2 * d


def attention(queries: int, keys: int, d: int) -> int:
  """Cross-attention: q and out of the queries, k and v of the keys, and the product of both."""
  return 2 * 2 * queries * d * d + 2 * 2 * keys * d * d + 2 * 2 * queries * keys * d
