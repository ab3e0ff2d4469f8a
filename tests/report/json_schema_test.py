"""saejax/report/json_schema.py: values against a part of JSON Schema."""

from absl.testing import absltest, parameterized

from saejax.report import json_schema

SCHEMA = {
  "type": "object",
  "required": ["a"],
  "additionalProperties": False,
  "properties": {
    "a": {"type": "integer", "minimum": 0, "maximum": 3},
    "b": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/c"}},
    "e": {"enum": ["x", "y"]},
    "f": {"const": 1},
    "g": {"type": "string", "minLength": 2},
  },
  "$defs": {"c": {"type": "number"}},
}


class JsonSchemaTest(parameterized.TestCase):
  @parameterized.parameters(
    {"a": 0},
    {"a": 3, "b": [0.5, 2], "e": "y", "f": 1, "g": "ab"},
  )
  def test_what_matches_passes(self, **value):
    json_schema.check(value, SCHEMA)

  @parameterized.parameters(
    ({}, r"\$.a is missing"),
    ([], r"\$ must be of type object"),
    ({"a": -1}, r"\$.a must be in \[0, 3\]"),
    ({"a": 4}, r"\$.a must be in"),
    ({"a": 1.0}, r"\$.a must be of type integer"),
    ({"a": True}, r"\$.a must be of type integer"),
    ({"a": 1, "b": []}, r"\$.b must have 1 items"),
    ({"a": 1, "b": [1, "x"]}, r"\$.b\[1\] must be of type number"),
    ({"a": 1, "b": [float("nan")]}, r"\$.b\[0\] must be of type number"),
    ({"a": 1, "e": "z"}, r"\$.e must be one of"),
    ({"a": 1, "f": 2}, r"\$.f must be 1"),
    ({"a": 1, "g": "a"}, r"\$.g must have 2"),
    ({"a": 1, "h": 2}, r"\$.h is not in the schema"),
  )
  def test_what_does_not_is_named(self, value, message):
    with self.assertRaisesRegex(ValueError, message):
      json_schema.check(value, SCHEMA)

  def test_words_that_it_does_not_know_are_refused(self):
    with self.assertRaisesRegex(ValueError, "pattern"):
      json_schema.check("a", {"type": "string", "pattern": "b"})


if __name__ == "__main__":
  absltest.main()
