"""Tests of saejax.training.parts.density, and of budgets and thresholds a latent."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.errors import InputError
from saejax.sae import activations, budgets
from saejax.sae.context import Batch, Pre
from saejax.training.parts import density as allocation
from saejax.training.parts import revival, rules
from tests import toy


def rows_a_latent(k, rows, n, *, alpha=1.0, beta=5.0, **around):
  """The budget of n latents on some rows."""
  budget = budgets.Zipf(k, alpha, beta)
  pre = Pre(a=jnp.zeros((rows, n)))
  return np.asarray(jax.jit(lambda: budget(pre, toy.context(**around)))())


class BudgetTest(parameterized.TestCase):
  @parameterized.product(
    size=[
      (8, 64, 96),
      (4, 512, 1536),
      (64, 512, 1536),
      (1.3, 37, 40),
      (1, 8, 8),
    ],
    alpha=[0.0, 0.5, 1.0, 2.0],
  )
  def test_budgets_are_whole_in_bounds_and_sum_to_all(self, size, alpha):
    k, rows, n = size
    m = rows_a_latent(k, rows, n, alpha=alpha)
    self.assertEqual(m.sum(), int(k * rows + 1e-6))
    self.assertBetween(m.min(), 1, rows)
    self.assertBetween(m.max(), 1, rows)
    self.assertLessEqual(np.diff(m).max(), 0)

  def test_the_most_frequent_latent_gets_no_more_than_all_rows(self):
    # The law alone would ask 1.9 B rows for it.
    m = rows_a_latent(64, 512, 1536)
    self.assertGreater(64 * budgets.zipf(1536, 1.0, 5.0)[0], 1.8)
    self.assertEqual(m[0], 512)

  def test_inside_the_bounds_budgets_are_the_law_to_one_row(self):
    k, rows, n = 4, 2048, 300
    m = rows_a_latent(k, rows, n)
    want = 1 / (np.arange(1, n + 1) + 5)
    inside = (m > 1) & (m < rows)
    self.assertGreater(inside.sum(), 250)
    scale = (m[inside] / want[inside]).mean()
    np.testing.assert_allclose(m[inside], scale * want[inside], atol=1.1)

  def test_uniform_shares_what_is_left_lowest_index_first(self):
    m = rows_a_latent(2, 11, 5, alpha=0.0)
    np.testing.assert_array_equal(m, [5, 5, 4, 4, 4])

  def test_budgets_follow_the_ranks(self):
    rank = np.random.default_rng(0).permutation(30)
    by_rank = rows_a_latent(3, 64, 30)
    got = rows_a_latent(3, 64, 30, stats={budgets.RANK: jnp.asarray(rank)})
    np.testing.assert_array_equal(got, by_rank[rank])

  def test_rows_of_weight_0_are_not_allotted(self):
    weight = jnp.asarray([1.0, 0.0] * 6)
    batch = Batch(x=jnp.zeros((12, 1)), weight=weight)
    m = rows_a_latent(2, 12, 4, alpha=0.0, batch=batch)
    np.testing.assert_array_equal(m, 3)
    a = toy.rows(12, 4)
    kept = activations.Ranked(budgets.Zipf(2, 0.0), "column").chosen(
      Pre(a=a), toy.context(batch=batch)
    )
    np.testing.assert_array_equal(np.asarray(kept).sum(0), 3)
    self.assertFalse(np.asarray(kept)[1::2].any())
    both = activations.Ranked(budgets.Constant(2), "batch").chosen(
      Pre(a=a), toy.context(batch=batch)
    )
    self.assertEqual(np.asarray(both).sum(), 12)
    self.assertFalse(np.asarray(both)[1::2].any())

  def test_members_have_budgets_of_their_own_under_vmap(self):
    pre = Pre(a=jnp.zeros((64, 20)))
    budget = budgets.Zipf(8)
    m = jax.jit(jax.vmap(lambda k: budget(pre, toy.context(k=k))))(
      jnp.asarray([1, 4, 8])
    )
    np.testing.assert_array_equal(m.sum(axis=1), [64, 256, 512])
    np.testing.assert_array_equal(m[1], rows_a_latent(4, 64, 20))

  @parameterized.parameters((2, 3, 8), (0.5, 100, 64))
  def test_refuses_batches_too_small_for_all_latents(self, k, rows, n):
    with self.assertRaisesRegex(InputError, f"batch_rows={rows}"):
      rows_a_latent(k, rows, n)

  @parameterized.parameters((1.0, 7, 8), (9.0, 100, 8))
  def test_refuses_sums_below_n_or_above_all(self, k, rows, n):
    with self.assertRaisesRegex(InputError, "batch_rows"):
      budgets.check_rows(k, n, rows)

  @parameterized.parameters(2.1, 0.7, 3.3, 1.9)
  def test_fractions_of_a_latent_a_row_are_not_lost(self, k):
    a = toy.rows(1000, 8)
    kept = activations.Ranked(budgets.Constant(k), "batch").chosen(
      Pre(a=a), toy.context()
    )
    self.assertEqual(np.asarray(kept).sum(), round(1000 * k))


class DensityTest(parameterized.TestCase):
  def start(self, n):
    return allocation.Density().init(toy.sae(n=n))

  def test_averages_plainly_first_and_by_the_rate_later(self):
    rule = allocation.Density(rate=0.25)
    stats, f = self.start(2), [1.0, 0.0, 1.0, 1.0, 0.0, 1.0]
    for step, part in enumerate(f):
      z = np.zeros((4, 2), np.float32)
      z[: int(4 * part), 0] = 0.3
      record = toy.record(jnp.asarray(z), step=jnp.asarray(step))
      stats = rule.update(stats, record)
      if step == 3:
        np.testing.assert_allclose(stats["density"], [0.75, 0.0])
    q = 0.75 * 0.75
    np.testing.assert_allclose(stats["density"], [q + 0.25 * (1 - q), 0.0])

  def test_rows_of_weight_0_do_not_count(self):
    batch = Batch(x=jnp.zeros((3, 1)), weight=jnp.asarray([2.0, 0.0, 1.0]))
    z = jnp.asarray([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    record = toy.record(z, batch=batch, step=jnp.asarray(0))
    stats = allocation.Density().update(self.start(2), record)
    np.testing.assert_allclose(stats["density"], [0.5, 0.0])

  def test_ranks_follow_density_until_frozen(self):
    rule = allocation.Density(freeze_step=2)
    busy = lambda i: jnp.zeros((4, 3)).at[:, i].set(1.0)
    stats = rule.init(toy.sae(n=3))
    for step, latent, want in (
      (0, 2, [1, 2, 0]),
      (1, 1, [2, 0, 1]),  # 1 and 2 equal: by index
      (2, 0, [2, 0, 1]),
      (9, 0, [2, 0, 1]),
    ):
      record = toy.record(busy(latent), step=jnp.asarray(step))
      stats = rule.update(stats, record)
      np.testing.assert_array_equal(stats[budgets.RANK], want)
    frozen = allocation.Density().update(self.start(3), record)
    np.testing.assert_array_equal(frozen[budgets.RANK], [0, 1, 2])

  def test_ranks_are_places(self):
    q = jnp.asarray([0.1, 0.5, 0.0, 0.5])
    np.testing.assert_array_equal(allocation.ranks(q), [2, 0, 3, 1])


class UnderusedTest(parameterized.TestCase):
  def test_latents_below_a_tenth_of_their_ranks_share_are_underused(self):
    n, k = 40, 4.0
    rule = allocation.underused(100, k)
    floor = 0.1 * k * np.asarray(budgets.zipf(n, 1.0, 5.0))
    q = np.sort(np.linspace(0.0, 0.2, n, dtype=np.float32))[::-1].copy()
    low = q <= floor
    self.assertBetween(low.sum(), 1, n - 1)
    record = toy.record(jnp.zeros((60, n)))
    stats = {**rule.init(toy.sae(n=n)), "density": jnp.asarray(q)}
    for wanted in (np.zeros(n, bool), low):
      stats = rule.update(stats, record)
      np.testing.assert_array_equal(rule.dead(stats), wanted)
    recovered = rule.update({**stats, "density": jnp.ones(n)}, record)
    self.assertFalse(rule.dead(recovered).any())

  def test_with_a_floor_of_0_it_is_aux_k(self):
    n, d, k = 24, 8, 2
    tracker = rules.DeadTracker(40)
    density = allocation.Density(rate=1.0)
    rare = allocation.underused(40, k, eta=0.0)
    sae = toy.sae(n=n, d=d)
    stats = {**tracker.init(sae), **density.init(sae), **rare.init(sae)}
    terms = [revival.aux_k(4, among=among) for among in (tracker, rare)]
    seen = 0
    for step in range(12):
      a = toy.rows(10, n, seed=step) - jnp.linspace(0, 3, n)
      z = toy.activate(activations.TopK(k), a)
      x = toy.rows(10, d, seed=step + 50)
      record = toy.record(
        z, x=x, W=sae.W_dec, a=a, sae=sae, step=jnp.asarray(step)
      )
      for rule in (tracker, density, rare):
        stats = rule.update(stats, record)
      record = record.replace(stats=stats)
      np.testing.assert_array_equal(tracker.dead(stats), rare.dead(stats))
      one, two = (float(term.fn(record)) for term in terms)
      self.assertAlmostEqual(one, two, delta=1e-6)
      seen += one > 0
      self.assertEqual(*(bool(t.active(stats, 10)) for t in terms))
    self.assertGreater(seen, 3)


class ColumnSharesTest(parameterized.TestCase):
  def shares(self, rule, step, batch=None):
    a = toy.rows(12, 4) if batch is None else toy.rows(batch.rows, 4)
    around = {} if batch is None else {"batch": batch}
    record = toy.record(a, a=a, step=jnp.asarray(step), **around)
    start = rule.init(toy.sae(n=4))
    return np.asarray(rule.update(start, record)[rules.COLUMN_SHARE])

  def test_are_the_budgets_over_the_rows_that_count(self):
    rule = rules.ColumnShares(budgets.Zipf(2))
    m = rows_a_latent(2, 12, 4)
    np.testing.assert_allclose(self.shares(rule, 0), m / 12)
    weight = jnp.asarray([1.0] * 12 + [0.0] * 5)
    padded = Batch(x=jnp.zeros((17, 1)), weight=weight)
    np.testing.assert_allclose(self.shares(rule, 0, padded), m / 12)

  def test_start_with_their_phase(self):
    rule = rules.ColumnShares(budgets.Zipf(2), start_step=3)
    for step, known in ((0, False), (2, False), (3, True)):
      self.assertEqual(np.isfinite(self.shares(rule, step)).all(), known)


if __name__ == "__main__":
  absltest.main()
