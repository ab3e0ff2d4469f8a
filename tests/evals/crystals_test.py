"""Tests of saejax.evals.dictionary.crystals: relations behind a distractor."""

import pathlib

import numpy as np
from absl.testing import absltest, parameterized
from safetensors.numpy import load_file

from saejax.errors import InputError
from saejax.evals import metrics
from saejax.evals.dictionary import crystals

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "geometry.safetensors"


def planted(classes=12, each=40, d=64, seed=0):
  """v = a_class + s u + noise, with a large random s on one shared direction u."""
  rng = np.random.default_rng(seed)
  label = np.repeat(np.arange(classes), each)
  u = rng.standard_normal(d)
  s = 30 * rng.standard_normal(len(label))
  v = rng.standard_normal((classes, d))[label] + np.outer(
    s, u / np.linalg.norm(u)
  )
  return v + 0.5 * rng.standard_normal(v.shape), label, s


class CrystalsTest(parameterized.TestCase):
  def test_held_out_projection_finds_what_a_distractor_hides(self):
    v, label, _ = planted()
    found = crystals.crystals(v, label, draws=10)
    self.assertAlmostEqual(found.raw, -0.05, delta=0.05)
    self.assertAlmostEqual(found.held_out.observed, 0.70, delta=0.1)
    self.assertAlmostEqual(found.held_out.mean, -0.08, delta=0.04)
    self.assertGreater(found.held_out.z, 10)
    self.assertGreater(found.in_sample, found.held_out.observed)
    self.assertEqual(found.record()["pairs"], 480)

  def test_few_pairs_of_two_relations_have_a_null(self):
    v, label, _ = planted(classes=2, each=8)
    found = crystals.crystals(v, label, components=1, draws=50)
    self.assertTrue(np.all(np.isfinite(found.held_out.draws)))

  def test_random_labels_are_separated_in_sample_alone(self):
    rng = np.random.default_rng(0)
    v = rng.standard_normal((120, 600))[:, :100]
    label = rng.permutation(np.repeat(np.arange(12), 10))
    found = crystals.crystals(v, label, draws=5)
    self.assertAlmostEqual(
      found.in_sample, 0.652830, places=5
    )  # scikit-learn's
    self.assertLess(found.held_out.observed, 0)
    self.assertLess(abs(found.held_out.z), 3)

  @parameterized.parameters(2, 3)
  def test_lda_is_that_of_scikit_learn(self, components):
    golden = load_file(GOLDEN)
    x, label = golden["lda_x"], golden["lda_label"]
    found = crystals.lda(x, label, components)(x)
    np.testing.assert_allclose(
      np.abs(found), np.abs(golden[f"lda_{components}"]), atol=1e-8
    )
    self.assertAlmostEqual(
      metrics.silhouette(found, label),
      golden[f"lda_{components}_silhouette"].item(),
      places=6,
    )

  def test_the_first_component_follows_the_distractor(self):
    v, _, s = planted()
    self.assertGreater(crystals.length_correlation(v, s), 0.99)
    other = np.random.default_rng(1).permutation(s)
    self.assertLess(crystals.length_correlation(v, other), 0.2)

  def test_refuses_relations_that_cannot_be_divided(self):
    v, label, s = planted(4, 6, 8)
    with self.assertRaisesRegex(InputError, "^components=4: "):
      crystals.crystals(v, label, components=4)
    names = np.array(["sport", "capital", "sport"] * 8)
    with self.assertRaisesRegex(InputError, "^relation=23: "):
      crystals.crystals(v, names[:-1], components=1)
    names[:3] = "money"
    with self.assertRaisesRegex(
      InputError, "^relation=money: .*4 pairs, got 3"
    ):
      crystals.crystals(v, names, components=1)
    with self.assertRaisesRegex(InputError, "^test=1"):
      crystals.crystals(v, label, components=1, test=1)
    with self.assertRaisesRegex(InputError, "^length="):
      crystals.length_correlation(v, 0 * s)


if __name__ == "__main__":
  absltest.main()
