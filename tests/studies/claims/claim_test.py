"""Tests of saejax.studies.claims: the record of a claim, the table, the page."""

import dataclasses

import numpy as np
from absl.testing import absltest

from saejax.report import page
from saejax.studies import arms, scores
from saejax.studies.claims import claim as claims
from saejax.studies.claims import site, training, words
from saejax.training.config import TrainConfig


def points(arm, fvus, l0s=(4, 16), dead=0.1):
  return [
    {
      "arm": arm,
      "data": "here",
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
  arms=("batch", "row"),
  measure=training.ERROR,
  direction=claims.LOWER,
)
SIZES = claims.Sizes(n=32, k=(4, 8, 16))
measured = lambda rows, claim=CLAIM: claims.measured(claim, rows, "here", SIZES)


class ClaimsTest(absltest.TestCase):
  def test_effect_is_the_paired_difference_of_log_fvu(self):
    rows = [
      *points("batch", [0.09, 0.18, 0.28]),
      *points("row", [0.1, 0.2, 0.3]),
    ]
    found = measured(rows)
    want = np.mean(np.log([0.9, 0.9, 0.28 / 0.3]))
    self.assertAlmostEqual(found["effect"], want)
    self.assertEqual(found["seeds"], 3)
    self.assertEqual(found["verdict"], "holds")
    low, high = found["interval"]
    self.assertLess(low, want)
    self.assertLess(high, -0.01)

  def test_the_other_direction_does_not_hold(self):
    rows = [*points("batch", [0.2, 0.4, 0.5]), *points("row", [0.1, 0.2, 0.3])]
    self.assertEqual(measured(rows)["verdict"], "does not hold")

  def test_without_common_l0_it_is_undecided(self):
    rows = [
      *points("batch", [0.1, 0.2], l0s=(20, 40)),
      *points("row", [0.1, 0.2]),
    ]
    found = measured(rows)
    self.assertEqual((found["verdict"], found["seeds"]), ("undecided", 0))

  def test_diverged_runs_do_not_count(self):
    rows = [*points("batch", [0.1, 0.2]), *points("row", [0.2, 0.4])]
    rows[0]["status"] = rows[1]["status"] = "diverged at step 3"
    self.assertEqual(measured(rows)["seeds"], 1)

  def test_page_shows_every_claim(self):
    rows = [
      *points("batch", [0.09, 0.18, 0.28]),
      *points("row", [0.1, 0.2, 0.3]),
    ]
    found = [measured(rows), measured([])]
    text = page.render("Claims", words.sections(found)[0])
    self.assertEqual(text.count("2412.06410"), 2)
    self.assertIn("undecided", text)

  def test_the_margin_of_a_row_goes_before_that_of_its_measure(self):
    rows = [*points("batch", [0.101, 0.202]), *points("row", [0.1, 0.2])]
    self.assertEqual(measured(rows)["verdict"], "does not hold")
    lenient = dataclasses.replace(CLAIM, margin=-0.02)
    found = measured(rows, lenient)
    self.assertEqual((found["verdict"], found["margin"]), ("holds", -0.02))

  def test_a_claim_with_a_reservation_is_measured_without_a_verdict(self):
    rows = [*points("batch", [0.09, 0.18]), *points("row", [0.1, 0.2])]
    found = measured(rows, dataclasses.replace(CLAIM, reservation="too short"))
    self.assertEqual(found["verdict"], claims.NOT_JUDGED)
    self.assertAlmostEqual(found["effect"], np.log(0.9))
    text = page.render("Claims", words.sections([found])[0])
    self.assertIn("too short", text)

  def test_points_of_other_data_do_not_count(self):
    rows = [*points("batch", [0.1, 0.2]), *points("row", [0.2, 0.4])]
    found = claims.measured(CLAIM, rows, "elsewhere", SIZES)
    self.assertEqual(found["seeds"], 0)

  def test_fields_and_words_follow_the_sizes(self):
    claim = next(c for c in training.CLAIMS if c.measure is training.CUT_DOWN)
    ours = [{**p, "fvu_at_8": 0.2} for p in points(claim.arms[0], [0.1, 0.1])]
    theirs = [{**p, "fvu_at_8": 0.4} for p in points("topk", [0.1, 0.1])]
    found = measured([*ours, *theirs], claim)
    self.assertIn("with 8 latents than TopK trained with 16", found["claim"])
    self.assertAlmostEqual(found["effect"], np.log(0.5))


class TableTest(absltest.TestCase):
  def test_no_claim_stands_twice(self):
    keys = [(c.recipe, c.claim, c.group) for c in training.CLAIMS]
    self.assertEqual(len(keys), len(set(keys)))

  def test_every_arm_that_a_claim_about_a_site_names_is_trained(self):
    rows = arms.planted(
      {"x": np.eye(8, dtype=np.float32)}, {"x": np.eye(8, dtype=np.float32)}, {}
    )
    rows = scores.with_scores(rows)
    config = TrainConfig(steps=100, batch_rows=64)
    here = site.Site(name="here", rows=rows, config=config, sizes=SIZES)
    trained = [arm.facts["arm"] for arm in site.site_arms(here)]
    self.assertEqual(len(trained), len(set(trained)))
    named = {
      arm
      for claim in training.CLAIMS
      if claim.group == claims.SITE
      for arm in claim.arms
    }
    self.assertContainsSubset(named, trained)
    # What no claim names is trained for nothing.
    self.assertEmpty(set(trained) - named - {"batchtopk sparse"})


if __name__ == "__main__":
  absltest.main()
