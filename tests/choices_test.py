"""Tests of saejax/choices.py."""

import dataclasses
from typing import ClassVar

from absl.testing import absltest

from saejax import choices, fields
from saejax.errors import InputError

SHAPES = {"circle": "radius", "square": "side"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
  CHOICE: ClassVar[str] = "kind"

  kind: str = "circle"  # of shape
  count: int = 1  # shapes

  @classmethod
  def variant(cls, kind):
    if kind not in SHAPES:
      raise InputError("kind", kind, "must be a shape", "such as circle")
    size = dataclasses.field(default=1.0, metadata={"comment": "of it"})
    made = [("kind", str, kind), (SHAPES[kind], float, size)]
    return dataclasses.make_dataclass(
      "Shape", made, bases=(Shape,), frozen=True, kw_only=True
    )

  @staticmethod
  def choices():
    return {kind: f"a {kind}" for kind in SHAPES}

  @staticmethod
  def elsewhere(kind, name):
    having = [shape for shape, size in SHAPES.items() if size == name]
    return (f"is not of {kind}", f"of {having[0]}") if having else ("", "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
  shape: Shape = Shape(count=3)
  title: str = ""  # above it


def widened(kind=None):
  return choices.widened(Drawing, lambda name, default: kind or default)


class ChoicesTest(absltest.TestCase):
  def leaves(self, cls):
    return {leaf.name: leaf for leaf in fields.leaves(cls)}

  def test_the_value_chosen_adds_its_fields(self):
    found = self.leaves(widened("square"))
    self.assertEqual(
      list(found), ["shape.kind", "shape.count", "shape.side", "title"]
    )
    self.assertEqual(found["shape.kind"].default, "square")
    self.assertEqual(found["shape.side"].default, 1.0)
    self.assertEqual(found["shape.side"].comment, "of it")
    self.assertEqual(found["title"].comment, "above it")

  def test_defaults_of_the_config_around_stay(self):
    found = self.leaves(widened())
    self.assertEqual(found["shape.count"].default, 3)
    self.assertIn("shape.radius", found)
    self.assertNotIn("shape.side", found)

  def test_the_name_asked_for_is_dotted(self):
    asked = []
    choices.widened(Drawing, lambda *of: asked.append(of) or of[1])
    self.assertEqual(asked, [("shape.kind", "circle")])

  def test_a_value_that_there_is_not_is_refused_by_its_flag(self):
    with self.assertRaisesRegex(InputError, "^--shape.kind=cube: must be a sh"):
      widened("cube")

  def test_a_class_without_choices_stays(self):
    self.assertIs(choices.widened(fields.Leaf, lambda *of: None), fields.Leaf)

  def test_fields_of_other_values_are_explained(self):
    made = widened("square")
    self.assertEqual(
      choices.explain(made, "shape.radius"), ("is not of square", "of circle")
    )
    self.assertEqual(choices.explain(made, "shape.length"), ("", ""))
    self.assertEqual(choices.explain(made, "title.radius"), ("", ""))

  def test_every_choice_is_listed(self):
    text = "\n".join(choices.listing(widened("square")))
    self.assertIn(
      "--shape.kind is one of\n  circle             a circle\n", text
    )
    self.assertIn("arguments of square", text)


if __name__ == "__main__":
  absltest.main()
