"""Tests of saejax/fields.py."""

import dataclasses
from typing import Literal

from absl.testing import absltest, parameterized

from saejax import fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
  width: int = 4  # latents: naïve comment
  # learning rate,
  # a step
  rate: float = 1e-3
  bare: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer(Inner):
  inner: Inner = Inner(width=5)
  needed: int  # must be given


class LeavesTest(absltest.TestCase):
  def test_leaves_come_in_order_with_dotted_names_and_own_defaults(self):
    found = {leaf.name: leaf.default for leaf in fields.leaves(Outer, "a.")}
    self.assertEqual(list(found)[:3], ["a.width", "a.rate", "a.bare"])
    self.assertEqual(found["a.width"], 4)
    self.assertEqual(found["a.inner.width"], 5)
    self.assertIs(found["a.needed"], fields.MISSING)

  def test_comments_come_from_the_source_inherited_ones_too(self):
    found = {leaf.name: leaf.comment for leaf in fields.leaves(Outer)}
    self.assertEqual(found["width"], "latents: naïve comment")
    self.assertEqual(found["inner.rate"], "learning rate, a step")
    self.assertEqual(found["bare"], "")
    self.assertEqual(found["needed"], "must be given")


class TextTest(parameterized.TestCase):
  @parameterized.parameters(
    (int, -7, "-7"),
    (float, 0.1, "0.1"),
    (float, 3, "3.0"),
    (bool, True, "true"),
    (str, "a, b", "a, b"),
    (Literal["x", 2], 2, "2"),
    (int | None, None, "none"),
    (tuple[int, ...], (), ""),
    (tuple[float, float], (1e-8, 2.0), "1e-08,2.0"),
    (tuple[str, ...] | None, ("a", "b"), "a,b"),
  )
  def test_text_gives_the_value_back(self, kind, value, text):
    self.assertEqual(fields.show(kind, value), text)
    self.assertEqual(fields.read(kind, text), value)

  @parameterized.parameters(
    (int, "1.5", "must be a whole number"),
    (int, "inf", "must be a whole number"),
    (float, "nan", "must be a number"),
    (bool, "2", "must be true or false"),
    (Literal["x", 2], "y", "must be one of x, 2"),
    (tuple[int, int], "1", "must be 2 values .* each a whole number"),
    (int | None, "null", "must be a whole number"),
    (
      tuple[tuple[float, float], ...],
      "0.8,0.2",
      "must be 2 values .*, each a number, in parentheses$",
    ),
  )
  def test_other_text_is_refused_with_the_rule(self, kind, text, rule):
    with self.assertRaisesRegex(ValueError, rule):
      fields.read(kind, text)


if __name__ == "__main__":
  absltest.main()
