"""Checks JSON values against a part of JSON Schema.

Of the vocabulary: type, const, enum, minimum, maximum, minLength, items,
minItems, properties, required, additionalProperties: false, $defs and $ref to
them. Other words are refused, so that none is passed over.

References:
  JSON Schema, draft 2020-12, json-schema.org.
"""

import math
from collections.abc import Mapping
from typing import Any

_TYPES = {
  "object": dict,
  "array": list,
  "string": str,
  "boolean": bool,
  "integer": int,
  "number": (int, float),
}
_KNOWN = {
  "$schema",
  "$defs",
  "$ref",
  "title",
  "description",
  "type",
  "const",
  "enum",
  "minimum",
  "maximum",
  "minLength",
  "items",
  "minItems",
  "properties",
  "required",
  "additionalProperties",
}


def check(value: Any, schema: Mapping[str, Any]) -> None:
  """Checks a value.

  Args:
    value: of dicts, lists, texts, numbers and booleans.
    schema: the schema.

  Raises:
    ValueError: the value does not match; names the place, such as
      $.latents[3].count.
  """
  _check(value, schema, "$", schema.get("$defs", {}))


def _check(
  value: Any, schema: Mapping[str, Any], at: str, defs: Mapping[str, Any]
) -> None:
  if unknown := sorted(schema.keys() - _KNOWN):
    raise ValueError(f"{at}: the schema has unknown words {unknown}")
  if "$ref" in schema:
    _check(value, defs[schema["$ref"].removeprefix("#/$defs/")], at, defs)
  if "type" in schema and not _is(value, schema["type"]):
    raise ValueError(f"{at} must be of type {schema['type']}, got {value!r}")
  if "const" in schema and value != schema["const"]:
    raise ValueError(f"{at} must be {schema['const']!r}, got {value!r}")
  if "enum" in schema and value not in schema["enum"]:
    raise ValueError(f"{at} must be one of {schema['enum']}, got {value!r}")
  if isinstance(value, int | float):
    low = schema.get("minimum", -math.inf)
    high = schema.get("maximum", math.inf)
    if not low <= value <= high:
      raise ValueError(f"{at} must be in [{low}, {high}], got {value!r}")
  if isinstance(value, str) and len(value) < schema.get("minLength", 0):
    raise ValueError(f"{at} must have {schema['minLength']} characters")
  if isinstance(value, list):
    if len(value) < schema.get("minItems", 0):
      raise ValueError(f"{at} must have {schema['minItems']} items")
    for i, item in enumerate(value):
      _check(item, schema.get("items", {}), f"{at}[{i}]", defs)
  if isinstance(value, dict):
    _check_object(value, schema, at, defs)


def _check_object(
  value: Mapping[str, Any],
  schema: Mapping[str, Any],
  at: str,
  defs: Mapping[str, Any],
) -> None:
  known = schema.get("properties", {})
  for name in schema.get("required", ()):
    if name not in value:
      raise ValueError(f"{at}.{name} is missing")
  for name, item in value.items():
    if name in known:
      _check(item, known[name], f"{at}.{name}", defs)
    elif schema.get("additionalProperties") is False:
      raise ValueError(f"{at}.{name} is not in the schema")


def _is(value: Any, kind: str) -> bool:
  if isinstance(value, bool):
    return kind == "boolean"
  if isinstance(value, float) and not math.isfinite(value):
    return False  # JSON has no such numbers
  return isinstance(value, _TYPES[kind])
