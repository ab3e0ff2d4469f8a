"""Records of JSON lines; a wrong line is refused by its number."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from saejax.errors import InputError

_NAMES = {str: "text", int: "an integer", bool: "true or false"}


def records(
  lines: Iterable[str], fields: Mapping[str, type], *, field: str
) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yields the number and object of each line, with at least the given fields.

  Empty lines are skipped, further fields are kept.

  Args:
    lines: lines, such as an open file.
    fields: type of each field.
    field: name of the setting that the lines came from, for errors.

  Raises:
    InputError: a line is no JSON object, or lacks a field or has it with
      another type.

  >>> list(records(['{"a": 1}', ""], {"a": int}, field="pairs"))
  [(1, {'a': 1})]
  """
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      found = json.loads(line)
    except (ValueError, RecursionError) as error:
      raise _wrong(field, number, f"must be JSON ({error})") from error
    if not isinstance(found, dict):
      raise _wrong(field, number, "must be an object with fields")
    for name, kind in fields.items():
      if name not in found:
        raise _wrong(field, number, f"must have the field {name}")
      if type(found[name]) is not kind:
        rule = f"{name} must be {_NAMES[kind]}, not {found[name]!r}"
        raise _wrong(field, number, rule)
    yield number, found


def _wrong(field: str, number: int, rule: str) -> InputError:
  return InputError(
    field, f"line {number}", rule, "correct the line, or leave it out"
  )
