"""The extension of mkdocstrings that reads docstrings as `entries` has them."""

import entries
import griffe


class Args(griffe.Extension):
  """Splits the docstrings of functions and classes when they are read."""

  def on_object(self, *, obj: griffe.Object, **_) -> None:
    if obj.docstring is not None:
      obj.docstring.value = entries.split(obj.docstring.value)
