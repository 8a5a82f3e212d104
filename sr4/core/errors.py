"""Errors that a person caused and can mend; a verb prints them in one line, without a traceback."""


class UserError(ValueError):
  """Says the value, the rule and the fix."""
