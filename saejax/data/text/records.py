"""Documents in records: JSON objects and rows of datasets."""

import dataclasses
from collections.abc import Callable
from typing import Any

from saejax.errors import InputError
from saejax.models import tokenizer

# (record, its location for errors) -> document, or None to leave it out.
Document = Callable[[Any, str], str | None]


@dataclasses.dataclass(frozen=True)
class Text:
  """Extracts the text in a field of a record.

  Attributes:
    field: name of the field; `a.b` is the field b of the object in field a,
      unless there is a field of the name "a.b".
    skip_null: whether to leave out records in which the field is null.

  >>> Text("meta.title")({"meta": {"title": "Emma"}}, "line 1")
  'Emma'
  """

  field: str
  skip_null: bool = False

  def __call__(self, record: Any, where: str) -> str | None:
    """Returns the text, with U+FFFD for lone surrogates, or None for null.

    Args:
      record: the record.
      where: location of the record, for errors.

    Raises:
      InputError: the record has no text in the field.
    """
    try:
      value = _found(record, self.field)
    except KeyError:
      raise self._refusal(f"{where} has {_names(record)}") from None
    if isinstance(value, str):
      return tokenizer.well_formed(value)
    if value is not None:
      raise self._refusal(f"in {where} it is of type {type(value).__name__}")
    if self.skip_null:
      return None
    raise self._refusal(
      f"in {where} it is null", "or skip such documents: harvest.skip_null"
    )

  def _refusal(self, found: str, more: str = "") -> InputError:
    return InputError(
      "harvest.field",
      self.field,
      f"must be a text field of every document; {found}",
      f"set harvest.field to the name of the text field {more}".strip(),
    )


@dataclasses.dataclass(frozen=True)
class Label:
  """Extracts the label in a field of a record, as a text.

  Attributes:
    field: name of the field, as for `Text`.

  >>> Label("stars")({"text": "Good.", "stars": 5}, "line 1")
  '5'
  """

  field: str

  def __call__(self, record: Any, where: str) -> str:
    """Returns the label: a text, or a whole number, true or false in words.

    Args:
      record: the record.
      where: location of the record, for errors.

    Raises:
      InputError: the record has no such label in the field.
    """
    try:
      value = _found(record, self.field)
    except KeyError:
      raise self._refusal(f"{where} has {_names(record)}") from None
    if (isinstance(value, str) and value) or type(value) in (int, bool):
      return str(value)
    raise self._refusal(f"in {where} it is {value!r:.40}")

  def _refusal(self, found: str) -> InputError:
    rule = f"must be a label of every document, a text or whole number; {found}"
    remedy = "set labels to the name of the field with the label"
    return InputError("labels", self.field, rule, remedy)


def _found(record: Any, field: str) -> Any:
  """The value in a field; KeyError where there is none."""
  if isinstance(record, dict) and field in record:
    return record[field]
  value = record
  for name in field.split("."):
    if value is None:
      return None
    if not isinstance(value, dict):
      raise KeyError(name)
    value = value[name]
  return value


def _names(record: Any) -> str:
  if not isinstance(record, dict):
    return "no object"
  return ", ".join(sorted(map(str, record))[:20]) or "no fields"


def token_ids(record: Any, where: str) -> str:
  """Returns the token ids in the field "ids" as text, separated by blanks.

  A token is ~id where the field "rows", if there is one, has 0: it is never a row.

  Args:
    record: the record.
    where: location of the record, for errors.

  Raises:
    InputError: the record has no list of token ids, or no 0 or 1 for each.

  >>> token_ids({"ids": [3, 5]}, "line 1")
  '3 5'
  >>> token_ids({"ids": [3, 5], "rows": [0, 1]}, "line 1")
  '-4 5'
  """
  ids = record.get("ids") if isinstance(record, dict) else None
  if not isinstance(ids, list) or not all(
    type(i) is int and 0 <= i < 2**31 for i in ids
  ):
    raise _no_ids(where, "whose 'ids' is a list of token ids")
  if "rows" not in record:
    return " ".join(map(str, ids))
  rows = record["rows"]
  if (
    not isinstance(rows, list)
    or len(rows) != len(ids)
    or not all(type(row) in (int, bool) and row in (0, 1) for row in rows)
  ):
    raise _no_ids(where, "whose 'rows', if any, has 0 or 1 for each of its ids")
  pairs = zip(ids, rows, strict=True)
  return " ".join(str(i if row else ~i) for i, row in pairs)


def _no_ids(where: str, rule: str) -> InputError:
  return InputError(
    "harvest.corpus",
    where,
    f"every line must be an object {rule}",
    "write the file with data.text.corpus.write_ids",
  )
