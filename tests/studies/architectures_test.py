"""Tests of saejax.studies.architectures; tests/experiments runs the script."""

from absl.testing import absltest

from saejax.report import page
from saejax.studies import architectures
from tests.evals.frontier_test import point, topk


class PageTest(absltest.TestCase):
  def test_the_page_has_a_line_for_a_method_without_numbers(self):
    points = [
      point("topk", l0, topk(l0, seed), seed)
      for l0 in (8, 32)
      for seed in (0, 1)
    ]
    sections, drawn = architectures.sections(
      [*points, point("gba", 50, 0.1), point("vsae", 9, 2 * topk(9))]
    )
    text = page.render("Methods", sections)
    self.assertGreaterEqual(text.count("gba"), 2)
    self.assertIn("2.000", text)
    self.assertIn("ratios", drawn)


if __name__ == "__main__":
  absltest.main()
