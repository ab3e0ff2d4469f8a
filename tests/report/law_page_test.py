"""Tests of saejax.report.law_page."""

import numpy as np
from absl.testing import absltest

from saejax.evals import scaling_law
from saejax.report import drawing, law_page, page, results, scaling_page
from tests.report import samples

NS, KS = (512, 1024, 2048, 4096), (4, 8, 16)


def noisy(ns=NS, noise=0.002):
  rng = np.random.default_rng(0)
  points = samples.points(ns, KS)
  for point in points:
    point["nmse"] *= float(np.exp(noise * rng.standard_normal()))
  return points


def sections(points, fit):
  found = results.collect(config={}, points=points, fit=fit)
  made = scaling_page.sections(
    found, fit, {"residuals": drawing.Plot(b"", None)}, "command"
  )
  return found, {section.title: section.blocks for section in made}


def tables(blocks):
  return {
    block.columns[0].name: block
    for block in blocks
    if isinstance(block, page.Table)
  }


class LawPageTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.points = noisy()
    cls.fit = scaling_law.fit(cls.points, resamples=5)

  def numbers(self, points, fit):
    blocks = sections(points, fit)[1]["Result"]
    (numbers,) = (b for b in blocks if isinstance(b, page.Numbers))
    return numbers.items

  def test_the_headline_is_the_extrapolation_error(self):
    value, label = self.numbers(self.points, self.fit)[0]
    self.assertEqual(value, f"{100 * self.fit.holdout.error:.1f} %")
    self.assertIn("extrapolation error", label)
    self.assertIn("n = 4,096", label)
    self.assertNotIn("R²", str(self.numbers(self.points, self.fit)))

  def test_a_headline_that_was_not_measured_says_so(self):
    points = noisy(NS[:3])
    value, label = self.numbers(points, scaling_law.fit(points, resamples=5))[0]
    self.assertEqual(value, "–")
    self.assertIn("not measured: without n = 2,048", label)

  def test_r2_and_error_stand_beside_those_of_polynomials(self):
    found, made = sections(self.points, self.fit)
    table = tables(made["The fitted law"])["Law"]
    self.assertEqual(
      [row[:2] for row in table.rows],
      [("scaling law", "6"), ("log-linear", "3"), ("quadratic", "6")],
    )
    for row, score in zip(table.rows, found["fit"]["comparison"], strict=True):
      self.assertEqual(row[0], score["law"])
      self.assertEqual(row[2], f"{100 * score['holdout_error']:.2f}")
      self.assertEqual(row[3], f"{score['r2']:.4f}")
    mine, line, _ = found["fit"]["comparison"]
    self.assertEqual(mine["r2"], self.fit.r2)
    self.assertEqual(mine["holdout_error"], self.fit.holdout.error)
    self.assertLess(line["r2"], mine["r2"])

  def test_open_ends_are_shown_and_are_null_in_the_results(self):
    rng = np.random.default_rng(1)
    points = [
      p | {"nmse": np.exp(0.002 * rng.standard_normal()) * n**-0.1 * k**-0.3}
      for p in self.points
      for n, k in [(p["n"], p["k"])]
    ]
    found, made = sections(points, scaling_law.fit(points, resamples=5))
    self.assertIsNone(found["fit"]["intervals"]["zeta"][0])
    table = tables(made["The fitted law"])["Parameter"]
    shown = {name: interval for name, _, interval, _ in table.rows}
    contains = {name: yes for name, *_, yes in table.rows}
    self.assertEqual(contains["β_n"], "no")
    for name, (a, b) in found["fit"]["intervals"].items():
      symbol = law_page._SYMBOLS[name]
      inside = (a is None or a <= 0) and (b is None or b >= 0)
      self.assertEqual(contains[symbol], "yes" if inside else "no")
    self.assertStartsWith(shown["ζ"], "−∞ to ")
    self.assertNotIn("∞", shown["β_n"])
    low, high = found["fit"]["intervals"]["beta_n"]
    self.assertBetween(-0.1, low, high)

  def test_laws_of_one_variable_say_how_many_points_they_have(self):
    _, made = sections(self.points, self.fit)
    captions = [
      block.caption
      for block in made["The fitted law"]
      if isinstance(block, page.Table) and block.caption.startswith("L against")
    ]
    self.assertEndsWith(captions[0], "3 parameters fitted to 4 points per law.")
    self.assertEndsWith(captions[1], "2 parameters fitted to 3 points per law.")

  def test_without_a_law_there_is_the_reason(self):
    (note,) = law_page.blocks({"fit_reason": "too few"}, None, {})
    self.assertEqual(note.text, "No law was fitted: too few.")


if __name__ == "__main__":
  absltest.main()
