"""The twin MMDiT and the Refiner in torch: sr4/models/mmdit.py, for diffusers and its tools.

  model = MMDiT.from_pretrained('exported/transformer', torch_dtype=torch.bfloat16)
  velocities = model(AV((latents,), (sound,)), AV(t, t), condition)

It is called as ours is, with torch tensors in the same contract (sr4/core/batch.py).  Parameters
have our names, layer by layer: dual.3.video.tokens.qkv.weight.
"""

import dataclasses
from typing import ClassVar

from diffusers import configuration_utils
from diffusers import ModelMixin  # By this name a pipeline finds in this module what loads it.
from diffusers.models import cache_utils
import torch
from torch import nn
from torch.nn import functional

from sr4.core.av import AV
from sr4.core.batch import Condition
from sr4.models import mmdit
from sr4.nn import embed
from sr4.nn import order
from sr4.nn import rope
from sr4.torch import layers
from sr4.torch import parallel
from sr4.torch import vsa


class Trunk(nn.Module):
  """What one branch has outside its layers."""

  def __init__(self, d: int, text_width: int, channels_in: int, channels_out: int):
    super().__init__()
    self.embed = layers.Linear(channels_in, d)
    self.text_in, self.text_out = layers.Linear(text_width, d), layers.Linear(d, d)
    self.time = layers.TimeEmbedding(d)
    self.mod, self.text_mod = layers.Linear(d, 9 * d), layers.Linear(d, 6 * d)
    self.head_table, self.head_mod = nn.Parameter(torch.zeros(2, d)), layers.Linear(d, 2 * d)
    self.head = layers.Linear(d, channels_out)

  def read_prompt(self, text):
    return self.text_out(functional.gelu(self.text_in(text), approximate='tanh'))

  def forward(self, x, time):
    """What is predicted of tokens [b s d]."""
    shift, scale = rows(self.head_mod(time), 2) + self.head_table[:, None]
    return self.head(layers.modulate(x, shift, scale))


class MMDiT(ModelMixin, configuration_utils.ConfigMixin, cache_utils.CacheMixin):
  """v(x_t, t, condition).

  The fields are those of sr4.models.mmdit.Config, `sparse` those of vsa.Config; a Refiner, which
  has no audio branch, has no audio channels.
  """

  _no_split_modules: ClassVar = ['Layer']
  _repeated_blocks: ClassVar = ['Layer']
  _cp_plan: ClassVar = {}  # Nothing is left for hooks: parallel.py.
  _keep_in_fp32_modules: ClassVar = [
    *('time', 'mod', 'text_mod', 'head_mod', 'head', 'head_table', 'table', 'cross_table'),
    *('q_norm', 'k_norm', 'text_norm'),
  ]
  _skip_layerwise_casting_patterns: ClassVar = _keep_in_fp32_modules

  @configuration_utils.register_to_config
  def __init__(
    self,
    width: int = 256,
    heads: int = 4,
    dual_layers: int = 2,
    single_layers: int = 4,
    mlp_ratio: int = 4,
    video_channels: int = 16,
    audio_channels: int = 40,
    text_width: int = 3584,
    patch: tuple[int, ...] = (1, 2, 2),
    audio_rope_scale: str = 'seconds',
    video_rate: float = 4.0,
    audio_rate: float = 44100 / 1024,
    sparse: dict | None = None,
  ):
    super().__init__()
    audio, self.patch = audio_channels > 0, tuple(patch)
    cells = self.patch[0] * self.patch[1] * self.patch[2]
    self.sparse = sparse if sparse and sparse['tile'] else None
    trunk = lambda *channels: Trunk(width, text_width, *channels)
    self.video = trunk(cells * (2 * video_channels + 1), cells * video_channels)
    self.audio = trunk(audio_channels, audio_channels) if audio else None
    how = dict(sparse=self.sparse is not None, audio=audio)
    stack = lambda depth, dual: nn.ModuleList(
      layers.Layer(width, heads, mlp_ratio, dual=dual, **how) for _ in range(depth)
    )
    self.dual, self.single = stack(dual_layers, True), stack(single_layers, False)

  def forward(self, x: AV, t: AV, cond: Condition) -> AV:
    """Velocities for the generated segments, fp32; shapes as sr4.models.mmdit.MMDiT says."""
    trunks, spread = AV(self.video, self.audio), parallel.Spread.of(self)
    each = lambda f: AV(*(f(i) if cond.segments[i] is not None else None for i in range(2)))
    places = each(lambda i: self.places(i, x, cond))
    times = each(lambda i: trunks[i].time(t[i]))
    y = each(lambda i: self.tokens(i, trunks[i], x, cond, places[i], spread))
    context = lambda i: self.context(i, trunks[i], times[i], t[i], x, y[i], cond, places[i], spread)
    contexts = each(context)
    dense = set(self.sparse['dense_layers'] if self.sparse else ())
    tokens = [z for pair in y if pair for z in pair]
    for number, layer in enumerate([*self.dual, *self.single]):
      told = contexts._replace(video=without(contexts.video)) if number in dense else contexts
      tokens = layer(*tokens, ctx=told)
    y = layers.paired(tokens, contexts)
    out = each(lambda i: trunks[i](y[i][0], times[i]))
    out = each(lambda i: spread.whole(out[i], contexts[i].lengths[0]))
    return each(lambda i: self.velocities(i, out[i], x, cond, places[i]))

  def patches(self, modality: int) -> tuple[int, ...]:
    return (1,) if modality else self.patch

  def tokens(self, modality, trunk: Trunk, x, cond, places, spread):
    """(all segments as one list of tokens [b s d], the branch's text stream [b m d]): a part."""
    noisy, grids = iter(x[modality]), []
    for segment, at in zip(cond.segments[modality], places):
      parts = [next(noisy) if segment.generated else segment.known]
      if segment.mask is not None:
        parts += [segment.known, segment.mask]
      z = torch.cat([part.float() for part in parts], -1)
      grids.append(arranged(embed.patchify(z, self.patches(modality)), at))
    return trunk.embed(spread.part(torch.cat(grids, 1))), trunk.read_prompt(spread.part(cond.text))

  def context(self, modality, trunk, time, t, x, y, cond, places, spread) -> layers.Context:
    k, segments = self.config.width // self.config.heads, cond.segments[modality]
    joined = lambda parts: torch.cat([arranged(*pair) for pair in zip(parts, places)], 1)
    positions, valid = joined([s.positions for s in segments]), joined([s.valid for s in segments])
    clock = mmdit.rotary_time(self.config, modality, positions[..., :1], x)
    space, dims = (clock, (k,)) if modality else (positions, rope.split_3d(k))
    if not modality:
      space = torch.cat([clock, positions[..., 1:]], -1)
    return layers.Context(
      spread=spread,
      lengths=(valid.shape[1], cond.text.shape[1]),
      mod=rows(trunk.mod(time), 9),
      text_mod=rows(trunk.text_mod(time), 6),
      angle=spread.part(layers.angles(space, dims)),
      time_angle=spread.part(layers.angles(clock, (k,))),
      keys=layers.Keys.of(torch.cat([valid, cond.text_valid], 1)),
      readable=layers.Keys.of(valid & cond.present[modality][:, None]),
      prompt=y[1],
      words=layers.Keys.of(cond.text_valid),
      tiles=self.tiles(t, segments, places, cond.sparsity),
    )

  def tiles(self, t, segments, places, most) -> vsa.Tiles | None:
    """Which tiles are chosen among, and how many of them; None where attention is dense."""
    if places[0] is None:
      return None
    size = tokens_of(self.sparse['tile'])
    choosing = [s.generated for s, at in zip(segments, places) for _ in range(len(at) // size)]
    sparsity = torch.full_like(t, self.sparse['sparsity'])
    sparsity = sparsity if most is None else torch.minimum(most, sparsity)
    sparsity = torch.where(t < self.sparse['dense_until'], 0, sparsity)
    return vsa.Tiles(sparsity, torch.tensor(choosing, device=t.device), size)

  def places(self, modality, x, cond) -> list:
    """The order of each segment's tokens, int64 [s]; None: as they are cut."""
    if modality or not self.sparse:
      return [None] * len(cond.segments[modality])
    noisy, tile, found = iter(x[modality]), tuple(self.sparse['tile']), []
    for segment in cond.segments[modality]:
      if segment.generated:
        sides = zip(next(noisy).shape[1:-1], self.patch)
        at = order.tiles(tuple(side // step for side, step in sides), tile)
      else:
        at = order.rows(segment.positions.shape[1], tokens_of(tile))
      found.append(torch.from_numpy(at).long().to(segment.positions.device))
    return found

  def velocities(self, modality, out, x, cond, places) -> tuple[torch.Tensor, ...]:
    """The tokens of the generated segments, as latents again."""
    noisy, start, found = iter(x[modality]), 0, []
    for segment, at in zip(cond.segments[modality], places):
      count = segment.positions.shape[1]
      length = count if at is None else len(at)
      if segment.generated:
        tokens, grid = out[:, start : start + length], next(noisy).shape[1:-1]
        tokens = tokens if at is None else tokens[:, at.argsort(stable=True)[:count]]
        found.append(embed.unpatchify(tokens, grid, self.patches(modality)))
      start += length
    return tuple(found)


def rows(x, count: int):
  """A projection's [b count*d] as [count b d]."""
  return x.unflatten(-1, (count, -1)).movedim(1, 0)


def without(ctx: layers.Context) -> layers.Context:
  """The context of a dense layer: nothing is left out."""
  tiles = dataclasses.replace(ctx.tiles, sparsity=torch.zeros_like(ctx.tiles.sparsity))
  return dataclasses.replace(ctx, tiles=tiles)


def arranged(x, at):
  """[b s ...] in this order; zero, or False, where no token is."""
  if at is None:
    return x
  there = (at < x.shape[1]).reshape(1, -1, *(1,) * (x.ndim - 2))
  return torch.where(there, x[:, at.clamp(max=x.shape[1] - 1)], torch.zeros_like(x[:1, :1]))


def tokens_of(tile) -> int:
  count = 1
  for side in tile:
    count *= side
  return count
