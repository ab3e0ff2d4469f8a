"""Documents in records: JSON objects and rows of data sets."""

import dataclasses
from collections.abc import Callable
from typing import Any

from saejax.errors import InputError
from saejax.models import tokenizer

# A record and where it is, for errors -> its document; None leaves it out.
Document = Callable[[Any, str], str | None]


@dataclasses.dataclass(frozen=True)
class Text:
  """The text in a field of each record.

  Attributes:
    field: its name; `a.b` is the field b of the object in a, unless a field is
      called so.
    skip_null: whether records in which it is null are left out.
  """

  field: str
  skip_null: bool = False

  def __call__(self, record: Any, where: str) -> str | None:
    """The text, with U+FFFD for lone surrogates.

    Raises:
      InputError: "harvest.field" where the record has no text there.
    """
    try:
      found = self._find(record)
    except KeyError:
      raise self._refusal(f"{where} has {_names(record)}") from None
    if isinstance(found, str):
      return tokenizer.well_formed(found)
    if found is not None:
      raise self._refusal(f"in {where} it is of type {type(found).__name__}")
    if self.skip_null:
      return None
    raise self._refusal(
      f"in {where} it is null", "or leave such documents out: harvest.skip_null"
    )

  def _find(self, record: Any) -> Any:
    if isinstance(record, dict) and self.field in record:
      return record[self.field]
    found = record
    for name in self.field.split("."):
      if found is None:
        return None
      if not isinstance(found, dict):
        raise KeyError(name)
      found = found[name]
    return found

  def _refusal(self, found: str, more: str = "") -> InputError:
    return InputError(
      "harvest.field",
      self.field,
      f"must name a text in every document; {found}",
      f"set harvest.field to the field that holds the text {more}".strip(),
    )


def _names(record: Any) -> str:
  if not isinstance(record, dict):
    return "no object"
  return ", ".join(sorted(map(str, record))[:20]) or "no fields"


def token_ids(record: Any, where: str) -> str:
  """The list of token ids in "ids" as text: numbers with blanks between them."""
  found = record.get("ids") if isinstance(record, dict) else None
  if not isinstance(found, list) or not all(
    type(i) is int and 0 <= i < 2**31 for i in found
  ):
    raise InputError(
      "harvest.corpus",
      where,
      "every line must be an object whose 'ids' is a list of token ids",
      "write the file with data.text.corpus.write_ids",
    )
  return " ".join(map(str, found))
