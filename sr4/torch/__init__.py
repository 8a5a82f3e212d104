"""The models and the sampler in PyTorch, for folders that `sr4 export` wrote.  Extra: [torch]."""

from sr4.torch.mmdit import MMDiT
from sr4.torch.pipeline import SkyReelsV4Pipeline

__all__ = ['MMDiT', 'SkyReelsV4Pipeline']
