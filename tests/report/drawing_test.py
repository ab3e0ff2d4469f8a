"""saejax/report/drawing.py: figures as SVG, their colours and values."""

import json
import re

import numpy as np
from absl.testing import absltest, parameterized

from saejax.report import axes, curves, drawing

CURVE = curves.Curve([1, 2, 4], [0.5, 0.3, 0.2])
AXIS = curves.Axis("x (units)", log=True)


def made():
  return curves.panels({"one": {"a < b": CURVE}, "two": {}}, AXIS, AXIS)


class DrawingTest(parameterized.TestCase):
  def test_it_is_drawn_for_two_widths_and_not_scaled(self):
    found = drawing.draw(axes.titled(made(), "T"), "f")
    boxes = []
    for svg, width in ((found.wide, axes.WIDTH), (found.narrow, axes.NARROW)):
      view = re.search(r'<svg[^>]* viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
      boxes.append([float(v) for v in view.groups()])
      self.assertAlmostEqual(boxes[-1][0], 72 * width, places=2)
      self.assertNotRegex(svg, "#[0-9a-f]{6}|http|<metadata")
      self.assertIn("x (units)", svg)  # text is text
    self.assertGreater(boxes[1][1], 1.8 * boxes[0][1])  # below each other
    sizes = [set(re.findall(r"font-size: [\d.]+", s)) for s in (found.wide,)]
    self.assertEqual(
      sizes, [set(re.findall(r"font-size: [\d.]+", found.narrow))]
    )

  def test_ids_are_of_the_figure_and_the_width(self):
    one, two = drawing.draw(made(), "f"), drawing.draw(made(), "g")
    ids = [
      id
      for svg in (one.wide, one.narrow, two.wide, two.narrow)
      for id in set(re.findall(r' id="([^"]*)"', svg))
    ]
    self.assertNotEmpty(ids)
    self.assertEqual(len(ids), len(set(ids)))
    self.assertEqual(one.wide, drawing.draw(made(), "f").wide)

  def test_the_values_are_those_drawn(self):
    found = drawing.draw(made(), "f")
    (panel,) = json.loads(found.json)["panels"]
    self.assertNotIn("<", found.json)
    self.assertEqual(panel["title"], "one")
    (curve,) = panel["curves"]
    self.assertEqual(curve["name"], "a < b")
    self.assertEqual((curve["x"], curve["y"]), ([1, 2, 4], [0.5, 0.3, 0.2]))
    self.assertEqual(panel["log"], [True, True])
    for box, width in zip(panel["boxes"], (518.4, 266.4), strict=True):
      self.assertBetween(box[0] + box[2], 0.3 * width, width)

  def test_long_curves_are_thinned_and_keep_their_end(self):
    x = np.arange(1, 1001)
    long = curves.panels({"p": {"a": curves.Curve(x, x)}}, AXIS, AXIS)
    (curve,) = drawing.draw(long, "f").values["panels"][0]["curves"]
    self.assertBetween(len(curve["x"]), 80, drawing.MOST_POINTS)
    self.assertEqual(curve["x"][-1], 1000)

  def test_dark_colours_reverse_the_order_of_lightness(self):
    grey = lambda c: sum(int(c[i : i + 2], 16) for i in (1, 3, 5)) / 3
    light = [s["color"] for s in axes.styles(range(5)).values()]
    light = [
      "#" + "".join(f"{round(255 * v):02x}" for v in c[:3]) for c in light
    ]
    dark = [grey(drawing.dark(c)) for c in light]
    self.assertEqual(dark, sorted(dark, reverse=True))
    for colour in [*light, *curves.COLOURS]:
      self.assertGreater(grey(drawing.dark(colour)), 75)  # on #141a21
    self.assertEqual(drawing.dark("#000000")[1:3], drawing.dark("#000000")[3:5])

  def test_pictures_keep_their_colours(self):
    heat = curves.heat({"h": np.eye(2)}, ("x", (1, 2)), ("y", (1, 2)), "v")
    self.assertTrue(drawing.draw(heat, "f").on_white)
    self.assertFalse(drawing.draw(made(), "f").on_white)


if __name__ == "__main__":
  absltest.main()
