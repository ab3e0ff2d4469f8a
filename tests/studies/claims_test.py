"""Tests of saejax.studies.claims."""

import numpy as np
from absl.testing import absltest

from saejax.report import page
from saejax.studies import claims


def points(arm, fvus, l0s=(4, 16), dead=0.1):
  return [
    {
      "arm": arm,
      "seed": seed,
      "k": l0,
      "l0": l0,
      "fvu": fvu * scale,
      "dead": dead,
      "status": "ok",
    }
    for seed, fvu in enumerate(fvus)
    for l0, scale in zip(l0s, (2, 1), strict=True)
  ]


CLAIM = claims.Claim(
  recipe="batchtopk",
  paper="2412.06410",
  claim="lower error than TopK at equal L0",
  method="batch",
  against="row",
  compare=claims.both(claims.log_fvu(8)),
  direction="lower",
  data="planted",
)


class ClaimsTest(absltest.TestCase):
  def test_effect_is_the_paired_difference_of_log_fvu(self):
    rows = [
      *points("batch", [0.09, 0.18, 0.28]),
      *points("row", [0.1, 0.2, 0.3]),
    ]
    found = claims.measure(CLAIM, rows)
    want = np.mean(np.log([0.9, 0.9, 0.28 / 0.3]))
    self.assertAlmostEqual(found["effect"], want)
    self.assertEqual(found["seeds"], 3)
    self.assertEqual(found["verdict"], "holds")
    low, high = found["interval"]
    self.assertLess(low, want)
    self.assertLess(high, -0.01)

  def test_the_other_direction_does_not_hold(self):
    rows = [*points("batch", [0.2, 0.4, 0.5]), *points("row", [0.1, 0.2, 0.3])]
    self.assertEqual(claims.measure(CLAIM, rows)["verdict"], "does not hold")

  def test_without_common_l0_it_is_undecided(self):
    rows = [
      *points("batch", [0.1, 0.2], l0s=(20, 40)),
      *points("row", [0.1, 0.2]),
    ]
    found = claims.measure(CLAIM, rows)
    self.assertEqual((found["verdict"], found["seeds"]), ("undecided", 0))

  def test_frozen_runs_do_not_count(self):
    rows = [*points("batch", [0.1, 0.2]), *points("row", [0.2, 0.4])]
    rows[0]["status"] = rows[1]["status"] = "frozen"
    self.assertEqual(claims.measure(CLAIM, rows)["seeds"], 1)

  def test_page_shows_every_claim(self):
    rows = [
      *points("batch", [0.09, 0.18, 0.28]),
      *points("row", [0.1, 0.2, 0.3]),
    ]
    found = [claims.measure(CLAIM, rows), claims.measure(CLAIM, [])]
    text = page.render("Claims", claims.sections(found)[0])
    self.assertEqual(text.count("2412.06410"), 2)
    self.assertIn("undecided", text)


if __name__ == "__main__":
  absltest.main()
