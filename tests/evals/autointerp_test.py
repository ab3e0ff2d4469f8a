"""Tests of saejax.evals.autointerp.autointerp and its results: scorers and planted worlds."""

import dataclasses

import numpy as np
from absl.testing import absltest, parameterized

from saejax.errors import InputError
from saejax.evals.autointerp import (
  autointerp,
  autointerp_examples,
  autointerp_results,
)
from saejax.evals.autointerp.autointerp import Examples
from saejax.evals.autointerp.autointerp_results import Scored
from saejax.evals.autointerp.judge import Chance, Constant, Oracle
from saejax.evals.autointerp.judge_keyword import Keyword
from saejax.evals.autointerp.windows import Window
from tests.evals import keyword_world as world


def examples(*, silent=None, count=200, seed=0, test=50):
  """The keyword world, divided as windows of a store are."""
  active = world.active(count, seed=seed)
  values = np.array([w.values.max() for w in active])
  found = autointerp_examples.split(values, test=test, seed=seed)
  numbered = [
    dataclasses.replace(w, quantile=int(q))
    for w, q in zip(active, found.quantile, strict=True)
  ]
  return Examples(
    train=[numbered[i] for i in found.train],
    test=[numbered[i] for i in found.test],
    silent=world.silent(50, seed=seed + 1) if silent is None else silent,
    contrast=world.silent(10, seed=seed + 2),
    rate=0.01,
  )


class Failing:
  """A judge that fails on every k-th window, and is right on the others."""

  threshold = 0.5

  def __init__(self, every=1):
    self.every, self.right = every, Oracle()

  def explain(self, windows, silent=()):
    return "cat"

  def score(self, explanation, windows, question):
    score = self.right.score(explanation, windows, question)
    score[:: self.every] = np.nan
    return score

  def simulate(self, explanation, windows):
    found = self.right.simulate(explanation, windows)
    found[:: self.every] = [np.full(len(f), np.nan) for f in found][
      :: self.every
    ]
    return found

  def odd(self, windows):
    return -1


class Seeing(Oracle):
  """Keeps what it was shown."""

  def __init__(self):
    super().__init__()
    object.__setattr__(self, "seen", [])

  def score(self, explanation, windows, question):
    self.seen.append(windows)
    return super().score(explanation, windows, question)


class BoundsTest(parameterized.TestCase):
  """Check 1: the oracle, constant and random judges."""

  def test_the_oracle_has_every_score_1(self):
    judge, given = Oracle(), examples()
    for scorer in (autointerp.detection, autointerp.fuzzing):
      found = scorer(judge, "x", given)
      self.assertEqual(found.balanced_accuracy, 1)
      self.assertEqual((found.f1, found.precision, found.recall), (1, 1, 1))
    wrong = autointerp.fuzzing(judge, "x", given, kind="active")
    self.assertEqual(wrong.balanced_accuracy, 1)
    for kind in ("standard", "internal"):
      found = autointerp.intruder(judge, given, kind=kind)
      self.assertEqual((found.accuracy, found.trials), (1, 20))
    listed = autointerp.listed(judge, "x", given.test, random=given.silent[:10])
    self.assertEqual((listed.accuracy, len(listed.label)), (1, 14))

  def test_the_oracles_simulation_is_1_up_to_rounding(self):
    found = autointerp.simulation(Oracle(), "x", examples())
    self.assertGreater(found.correlation, 0.98)
    self.assertLess(found.correlation, 1)
    self.assertEqual((found.constant, found.failed), (0, 0))
    self.assertGreater(min(found.quantiles.values()), 0.98)

  @parameterized.parameters((1.0, 2 / 3), (0.0, 0.0))
  def test_a_constant_judge_has_half_and_f1_of_always_or_never(self, value, f1):
    found = autointerp.detection(Constant(value), "x", examples())
    self.assertEqual(found.balanced_accuracy, 0.5)
    self.assertAlmostEqual(found.f1, f1)
    self.assertIsNone(found.auroc)

  def test_a_random_judge_has_auroc_half_and_intruders_by_chance(self):
    given, judge = (
      examples(silent=world.silent(200), count=500, test=200),
      Chance(),
    )
    auroc = autointerp.detection(judge, "x", given).auroc
    se = np.sqrt((200 + 200 + 1) / (12 * 200 * 200))
    self.assertLess(abs(auroc - 0.5), 3 * se)
    found = autointerp.intruder(judge, given, count=5, trials=500)
    self.assertLess(abs(found.accuracy - 0.2), 3 * np.sqrt(0.16 / 500))
    found = autointerp.intruder(Constant(), given, count=5, trials=500)
    self.assertLess(abs(found.accuracy - 0.2), 3 * np.sqrt(0.16 / 500))


class SimulationTest(parameterized.TestCase):
  """Check 2: an affine map of the prediction, and constant ones."""

  @parameterized.parameters((3.0, 1.0, 1), (0.01, -7.0, 1), (-2.0, 5.0, -1))
  def test_the_score_is_that_of_a_scaled_and_shifted_prediction(
    self, a, b, sign
  ):
    rng = np.random.default_rng(0)
    true = [rng.random(32) for _ in range(9)]
    predicted = [t + rng.random(32) for t in true]
    q = np.repeat([0, 1, -1], 3)
    first = autointerp_results.simulated(predicted, true, q)
    moved = [a * p + b for p in predicted]
    second = autointerp_results.simulated(moved, true, q)
    self.assertGreater(first.correlation, 0.5)
    self.assertAlmostEqual(second.correlation, sign * first.correlation)
    for number, r in first.quantiles.items():
      self.assertAlmostEqual(second.quantiles[number], sign * r)

  def test_a_constant_prediction_is_0_and_counted(self):
    found = autointerp.simulation(Constant(), "x", examples())
    self.assertEqual(found.correlation, 0)
    self.assertEqual(found.constant, 1 + len(found.quantiles))
    self.assertLen(found.quantiles, 10)

  def test_silent_windows_are_in_the_correlation(self):
    true = [np.array([0.0, 1.0]), np.array([0.0, 0.0])]
    said = [np.array([0.0, 10.0]), np.array([10.0, 10.0])]
    found = autointerp_results.simulated(said, true, np.array([0, -1]))
    self.assertLess(found.correlation, 0.5)
    self.assertEqual(found.correlation, found.quantiles[0])


class KeywordTest(absltest.TestCase):
  """Check 4: a latent that fires on "cat"."""

  def scores(self, given):
    judge = Keyword()
    explanation = autointerp.explain(judge, given)
    self.assertEqual(explanation, "cat")
    return [
      scorer(judge, explanation, given).balanced_accuracy
      for scorer in (autointerp.detection, autointerp.fuzzing)
    ]

  def test_detection_and_fuzzing_are_1(self):
    self.assertEqual(self.scores(examples()), [1, 1])

  def test_with_hard_silent_windows_detection_falls_and_fuzzing_stays(self):
    given = examples(silent=world.silent(50, word="cat"))
    detection, fuzzing = self.scores(given)
    self.assertEqual(detection, 0.5)
    self.assertGreater(fuzzing, 0.95)

  def test_intruders_and_simulation_of_the_keyword(self):
    given = examples()
    found = autointerp.intruder(Keyword(), given)
    self.assertEqual(found.accuracy, 1)
    r = autointerp.simulation(Keyword(), "cat", given).correlation
    self.assertGreater(r, 0.8)

  def test_a_row_has_every_score_and_says_whether_the_judge_is_able(self):
    from saejax.evals.autointerp import judge

    row = autointerp.evaluate(
      Keyword(), examples(), ability=judge.gate(Keyword()), intruders=5
    )
    self.assertEqual(row["judge"], "able")
    self.assertEqual(row["explanation"], "cat")
    for name in ("detection", "fuzzing"):
      self.assertEqual(row[name]["f1"], 1)
    row = autointerp.evaluate(
      Constant(), examples(), ability=judge.gate(Constant()), intruders=5
    )
    self.assertEqual(row["judge"], "not able")


class FailuresTest(absltest.TestCase):
  """Failures are wrong answers and counted, never dropped."""

  def test_a_judge_that_always_fails_has_the_worst_scores(self):
    given = examples()
    found = autointerp.detection(Failing(), "x", given)
    self.assertEqual(found.failed, 100)
    self.assertEqual((found.balanced_accuracy, found.f1), (0, 0))
    self.assertEqual(sum(found.confusion.values()), 100)
    found = autointerp.intruder(Failing(), given)
    self.assertEqual((found.accuracy, found.failed), (0, 20))
    found = autointerp.simulation(Failing(), "x", given)
    self.assertEqual(found.failed, 100)
    self.assertLess(found.correlation, -0.8)

  def test_some_failures_lower_all_scores(self):
    given = examples()
    found = autointerp.detection(Failing(4), "x", given)
    self.assertEqual(found.failed, 25)
    self.assertAlmostEqual(found.accuracy, 0.75)
    scored = Scored(
      score=np.array([0.9, 0.8, 0.2, 0.1, np.nan, np.nan]),
      label=np.array([True, True, False, False, True, False]),
      threshold=0.5,
      quantile=np.array([0, 0, -1, -1, 0, -1]),
    )
    self.assertAlmostEqual(scored.auroc, 4 / 9)  # 1 without the failures
    self.assertEqual(scored.confusion, {"tp": 2, "fp": 1, "tn": 2, "fn": 1})

  def test_no_explanation_is_a_failure_of_every_answer(self):
    given = examples()
    self.assertEqual(autointerp.detection(Oracle(), "", given).failed, 100)
    self.assertEqual(autointerp.simulation(Oracle(), "", given).failed, 100)

  def test_a_wrong_number_of_scores_is_refused(self):
    class Short(Oracle):
      def score(self, explanation, windows, question):
        return np.ones(len(windows) - 1)

    with self.assertRaisesRegex(
      InputError, "judge=.*one score for each of 100"
    ):
      autointerp.detection(Short(), "x", examples())


class MarksTest(absltest.TestCase):
  """Marks of silent windows give no cue."""

  def test_positions_differ_between_windows_and_none_is_always_marked(self):
    given = examples(silent=world.silent(400))
    seen = Seeing()
    found = autointerp.fuzzing(seen, "x", given)
    (windows,) = seen.seen
    wrong = [w for w, yes in zip(windows, found.label, strict=True) if not yes]
    self.assertLen(wrong, 400)
    places = np.array([np.flatnonzero(w.marks) for w in wrong])
    self.assertEqual(places.shape, (400, 1))
    counts = np.bincount(places[:, 0], minlength=32)
    self.assertLess(counts.max(), 60)
    self.assertGreater((counts > 0).sum(), 16)

  def test_of_centred_windows_the_centre_is_marked_in_both(self):
    like = []
    for _ in range(20):
      marks = np.zeros(32, bool)
      marks[24] = True
      like.append(Window((" a",) * 32, marks * 1.0, marks))
    found = autointerp.mark(world.silent(200), like)
    share = np.mean([w.marks[24] for w in found])
    self.assertGreater(share, 0.9)

  def test_the_number_of_marks_is_the_mean_rounded_up(self):
    like = [
      world.silent(1)[0].marked(np.arange(32) < count) for count in (1, 2, 2)
    ]
    found = autointerp.mark(world.silent(9), like)
    self.assertEqual([int(w.marks.sum()) for w in found], [2] * 9)

  def test_wrong_marks_of_active_windows_are_on_silent_tokens(self):
    seen = Seeing()
    found = autointerp.fuzzing(seen, "x", examples(), kind="active")
    for window, right in zip(seen.seen[0], found.label, strict=True):
      self.assertTrue(window.marks.any())
      self.assertEqual(bool(window.active[window.marks].all()), bool(right))

  def test_detection_shows_no_marks_and_shuffles(self):
    seen = Seeing()
    found = autointerp.detection(seen, "x", examples())
    self.assertFalse(any(w.marks.any() for w in seen.seen[0]))
    self.assertGreater(np.abs(np.diff(found.label.astype(int))).sum(), 20)


class ListTest(absltest.TestCase):
  def test_naming_none_is_10_of_14_and_half_balanced(self):
    given = examples()
    found = autointerp.listed(
      Constant(0.0), "x", given.test, random=given.silent[:10]
    )
    self.assertAlmostEqual(found.accuracy, 10 / 14)
    self.assertEqual(found.balanced_accuracy, 0.5)

  def test_random_windows_are_looked_at_unless_compat(self):
    given = examples()
    random = [*given.silent[:8], *given.test[10:12]]
    for compat, active in (("", 6), ("saebench", 4)):
      found = autointerp.listed(
        Oracle(), "x", given.test[:10], random=random, compat=compat
      )
      self.assertEqual(int(found.label.sum()), active)
      self.assertAlmostEqual(found.accuracy, 1 if not compat else 12 / 14)

  def test_weighted_ones_are_drawn_by_the_square_of_their_value(self):
    windows = world.active(40)
    strong = 0
    for seed in range(200):
      seen = Seeing()
      autointerp.listed(seen, "x", windows, seed=seed)
      values = sorted(w.values.max() for w in seen.seen[0])[:2]
      strong += sum(v > 0.55 for v in values)
    square = np.linspace(1, 0.1, 40)[2:] ** 2
    want = square[np.linspace(1, 0.1, 40)[2:] > 0.55].sum() / square.sum()
    self.assertLess(abs(strong / 400 - want), 0.06)


class ReportTest(absltest.TestCase):
  def test_counts_and_rates(self):
    scored = Scored(
      score=np.array([1.0, 1, 0, 1, 0, 0, 0, 0]),
      label=np.arange(8) < 3,
      threshold=0.5,
      quantile=np.array([0, 1, 1, -1, -1, -1, -1, -1]),
    )
    self.assertEqual(scored.confusion, {"tp": 2, "fp": 1, "tn": 4, "fn": 1})
    self.assertAlmostEqual(scored.precision, 2 / 3)
    self.assertAlmostEqual(scored.recall, 2 / 3)
    self.assertAlmostEqual(scored.f1, 2 / 3)
    self.assertAlmostEqual(scored.balanced_accuracy, (2 / 3 + 4 / 5) / 2)
    self.assertAlmostEqual(scored.accuracy, 6 / 8)
    self.assertEqual(scored.recalls(), {0: 1.0, 1: 0.5})

  def test_a_judge_without_threshold_has_an_auroc_alone(self):
    scored = Scored(
      score=np.array([3.0, 2.0, 2.5, 0.0]),
      label=np.array([True, True, False, False]),
      threshold=float("nan"),
      quantile=np.array([0, 0, -1, -1]),
    )
    record = scored.record()
    self.assertAlmostEqual(record["auroc"], 0.75)
    self.assertNotIn("f1", record)

  def test_f1_weighted_by_firing_rate(self):
    found = autointerp_results.weighted(
      np.array([1.0, 0.0, np.nan]), np.array([0.03, 0.01, 0.5])
    )
    self.assertAlmostEqual(found, 0.75)

  def test_a_latent_without_silent_windows_says_so(self):
    found = autointerp.detection(Oracle(), "x", examples(silent=[]))
    self.assertEqual(found.record()["silent"], 0)
    self.assertIsNone(found.record()["balanced_accuracy"])
    self.assertEqual(
      autointerp.intruder(Oracle(), examples(silent=[])).trials, 0
    )


if __name__ == "__main__":
  absltest.main()
