"""The models and the sampler in PyTorch, for folders that `sr4 export` wrote.  Extra: [torch]."""

try:
  from sr4.torch.mmdit import MMDiT
  from sr4.torch.pipeline import SkyReelsV4Pipeline
except ModuleNotFoundError as error:
  raise ModuleNotFoundError(f"{error}; pip install 'sr4[torch]'", name=error.name) from error

__all__ = ['MMDiT', 'SkyReelsV4Pipeline']
