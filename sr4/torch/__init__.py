"""The models in PyTorch, for diffusers: of folders that `sr4 export` wrote.  Extra: [torch]."""

from sr4.torch.mmdit import MMDiT

__all__ = ['MMDiT']
