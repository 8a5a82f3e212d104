"""What a prompt enhancer is: free text to a structured caption (core/captions.py)."""

from collections.abc import Sequence
import typing

from sr4.core import captions
from sr4.core import errors


class PromptError(errors.UserError):
  """An enhancer that cannot be asked, or whose answer is no structured caption."""


class PromptEnhancer(typing.Protocol):
  """What `sample` and the server call before they encode a prompt."""

  def __call__(
    self, prompt: str, *, seconds: float, sound: bool, references: tuple[str, ...]
  ) -> str:
    """A valid structured caption; a prompt that has tags already comes back unchanged.

    Args:
      prompt: free text, or a structured caption.
      seconds: length of the clip.
      sound: is any to be made?  If not, no tag of what is heard is filled.
      references: the kind of each one given, as in captions.check_references.

    Raises:
      CaptionError: the prompt has a wrong tag, or does not name exactly the references.
    """


def is_structured(prompt: str, references: Sequence[str]) -> bool:
  """Has it tags?  CaptionError where these or its references are wrong."""
  spans = captions.parse(prompt).spans
  captions.check_references(prompt, references)
  return bool(spans)
