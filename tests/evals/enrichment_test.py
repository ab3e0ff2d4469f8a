"""Tests of saejax.evals.biology.enrichment: a planted gene set, and permuted names."""

import numpy as np
import scipy.stats
from absl.testing import absltest, parameterized

from saejax.errors import InputError
from saejax.evals.biology import enrichment

CELLS, GENES, SETS = 2000, 400, 20
NAMES = tuple(f"g{i}" for i in range(GENES))


def planted(seed=0):
  """A latent on 5 % of the cells, where the genes of set 3 are five times higher."""
  rng = np.random.default_rng(seed)
  z = np.where(rng.random(CELLS) < 0.05, rng.gamma(5, size=CELLS), 0)
  x = rng.gamma(10, size=(CELLS, GENES))
  sets = {
    f"set {i}": tuple(rng.choice(NAMES, 15, replace=False)) for i in range(SETS)
  }
  own = [NAMES.index(gene) for gene in sets["set 3"]]
  x[np.ix_(z > np.quantile(z, 0.98), own)] *= 5
  return z, x, sets


def differing(z, x, names=NAMES):
  return enrichment.expression(x, *enrichment.top_cells(z), names)


class EnrichedTest(parameterized.TestCase):
  def test_a_planted_set_is_found(self):
    z, x, sets = planted()
    found = differing(z, x)
    own = np.isin(NAMES, sets["set 3"])
    np.testing.assert_array_equal(found.listed(), own)
    first, *others = enrichment.enriched(found, sets)
    self.assertEqual((first.name, first.hits), ("set 3", 15))
    self.assertLess(first.binomial_q, 1e-5)
    self.assertLess(first.ranks_q, 1e-5)
    self.assertGreater(first.effect, 0.99)
    self.assertGreater(min(each.binomial_q for each in others), 1e-3)

  def test_permuted_names_have_p_values_that_are_roughly_uniform(self):
    z, x, _ = planted()
    rng = np.random.default_rng(1)
    found = differing(z, x, tuple(rng.permutation(NAMES)))
    sets = {
      str(i): tuple(rng.choice(NAMES, 60, replace=False)) for i in range(300)
    }
    results = enrichment.enriched(found, sets)
    ranks = [each.ranks_p for each in results]
    self.assertGreater(scipy.stats.kstest(ranks, "uniform").pvalue, 0.01)
    # Hits are few and whole: their p has steps, and is not below its level.
    binomial = np.array([each.binomial_p for each in results])
    for level in (0.1, 0.3, 0.5):
      self.assertLess((binomial <= level).mean(), level + 0.05)
    self.assertGreater((binomial <= 0.5).mean(), 0.25)
    self.assertGreater(min(each.binomial_q for each in results), 0.01)

  def test_ranks_are_those_of_scipy_with_ties(self):
    rng = np.random.default_rng(0)
    fold = rng.integers(1, 9, GENES).astype(float)
    p = np.ones(GENES)
    found = enrichment.Expression(NAMES, p, p, fold)
    results = enrichment.enriched(found, {"a": NAMES[:12], "b": NAMES[50:99]})
    for each, own in zip(
      sorted(results, key=lambda one: one.name),
      (slice(12), slice(50, 99)),
      strict=True,
    ):
      want = scipy.stats.mannwhitneyu(
        fold[own], np.delete(fold, own), method="asymptotic"
      )
      self.assertAlmostEqual(each.ranks_p, want.pvalue, places=9)
      self.assertEqual(each.binomial_p, 1)  # nothing is listed

  def test_sets_of_other_sizes_and_unmeasured_genes_are_left_out(self):
    z, x, _ = planted()
    sets = {"few": NAMES[:9], "some": (*NAMES[:10], "absent"), "all": NAMES}
    (only,) = enrichment.enriched(differing(z, x), sets, sizes=(10, 100))
    self.assertEqual((only.name, only.genes), ("some", 10))
    with self.assertRaisesRegex(InputError, "^sets=1: .*10 to 500"):
      enrichment.enriched(differing(z, x), {"other": ("a", "b")})


class ExpressionTest(absltest.TestCase):
  def test_tests_are_those_of_each_gene(self):
    z, x, _ = planted()
    high, low = enrichment.top_cells(z)
    self.assertEqual(high.sum(), 20)
    np.testing.assert_array_equal(low, z == 0)
    found = differing(z, x)
    want = scipy.stats.ttest_ind(x[high, 7], x[low, 7], equal_var=False)
    self.assertAlmostEqual(found.p[7], want.pvalue, places=12)
    self.assertAlmostEqual(
      found.fold[7], x[high, 7].mean() / x[low, 7].mean(), places=6
    )
    rank = scipy.stats.rankdata(found.p, method="max")
    ratio = found.p * GENES / rank
    want = [min(1, ratio[rank >= r].min()) for r in rank]
    np.testing.assert_allclose(found.q, want, rtol=1e-9)

  def test_constant_genes_are_not_listed(self):
    z, x, _ = planted()
    high, low = enrichment.top_cells(z)
    x[:, 0] = 0
    x[:, 1], x[high, 1] = 0, np.arange(high.sum()) + 50.0  # absent elsewhere
    found = enrichment.expression(x, high, low, NAMES)
    self.assertEqual((found.p[0], found.fold[0]), (1, 1))
    self.assertTrue(found.listed()[1])

  def test_refuses_groups_and_names_that_cannot_be(self):
    z, x, _ = planted()
    with self.assertRaisesRegex(InputError, "^z=0 cells: .*where it is 0"):
      enrichment.top_cells(z + 1)
    with self.assertRaisesRegex(InputError, "^z=0 cells: .*in its top"):
      enrichment.top_cells(0 * z)
    with self.assertRaisesRegex(InputError, "^share=1"):
      enrichment.top_cells(z, share=1)
    with self.assertRaisesRegex(InputError, "^genes=400: .*different"):
      differing(z, x, ("g0", *NAMES[:-1]))
    with self.assertRaisesRegex(InputError, "^x=expression: .*at least 0"):
      differing(z, x - x.mean(axis=0), NAMES)


class GeneSetsTest(parameterized.TestCase):
  def test_reads_sets_with_their_genes_once(self):
    lines = ["a\tabout a\tX\tY\tX\n", "\n", "b\t\tZ\t\r\n"]
    self.assertEqual(
      enrichment.gene_sets(lines), {"a": ("X", "Y"), "b": ("Z",)}
    )

  @parameterized.parameters(
    (["a\tx\tX", "b\tno genes"], "line 2=b: .*has 2 fields"),
    (["a\tx\tX", "", "\tx\tX"], "line 3=.*name"),
    (["a\tx\tX", "a\tx\tY"], "line 2=a: is there twice"),
    (["\n"], "go.gmt=0: "),
  )
  def test_refusals_name_the_line(self, lines, rule):
    with self.assertRaisesRegex(InputError, rule):
      enrichment.gene_sets(lines, name="go.gmt")


if __name__ == "__main__":
  absltest.main()
