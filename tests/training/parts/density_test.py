"""Tests of saejax.training.parts.density, and of budgets and thresholds a latent."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jaxtyping import Array, Float

from saejax.errors import InputError
from saejax.sae import activations, budgets
from saejax.sae.context import Batch, Pre
from saejax.training.parts import density as allocation
from saejax.training.parts import losses, rules
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
    terms = [
      losses.aux_k(4, among=among, capacity=6) for among in (tracker, rare)
    ]
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


class Counts(budgets.Budget):
  """Rows of each latent, given."""

  m: Float[Array, "n"]

  def __call__(self, pre, ctx):
    return self.m


class ThresholdTest(parameterized.TestCase):
  def thetas(self, kind, *, steps=300, rows=256, each=48):
    """Learned thresholds, and means of the smallest kept, by budget."""
    m = np.repeat([1, 2, 4, 8], each)
    budget = Counts(jnp.asarray(m))
    rule = rules.ThresholdAverage(budget=budget)
    choose = activations.Ranked(budget, "column")

    @jax.jit
    def run(keys):
      def one(carry, key):
        stats, least = carry
        a = getattr(jax.random, kind)(key, (rows, len(m)))
        z = toy.activate(choose, a)
        stats = rule.update(stats, toy.record(z, a=a))
        least += jnp.min(jnp.where(z != 0, a, jnp.inf), axis=0) / steps
        return (stats, least), None

      start = (rule.init(toy.sae(n=len(m))), jnp.zeros(len(m)))
      return jax.lax.scan(one, start, keys)[0]

    stats, least = run(jax.random.split(jax.random.key(0), steps))
    tails = {
      "normal": jax.scipy.stats.norm.sf,
      "exponential": lambda t: jnp.exp(-t),
    }
    tail = lambda theta: np.asarray(tails[kind](theta)) * rows / m
    off = lambda theta: tail(theta).reshape(4, each).mean(axis=1) - 1
    return off(stats[rules.THRESHOLD]), off(least)

  def test_midpoints_keep_the_rates_that_smallest_values_bias(self):
    midpoint, smallest = self.thetas("normal")
    np.testing.assert_allclose(
      smallest, [-0.41, -0.20, -0.11, -0.05], atol=0.02
    )
    self.assertLess(np.abs(midpoint).max(), 0.045)

  def test_exponential_tails_bias_the_rarest_by_8_percent(self):
    midpoint, _ = self.thetas("exponential")
    self.assertBetween(midpoint[0], -0.11, -0.04)
    self.assertLess(np.abs(midpoint[1:]).max(), 0.045)

  def test_is_halfway_between_the_last_kept_and_the_first_left(self):
    a = jnp.asarray(
      [[5.0, 1.0, -1.0, 3.0], [4.0, -2.0, -3.0, 1.0], [1.0, -1.0, -2.0, 2.0]]
    )
    budget = Counts(jnp.asarray([2, 2, 1, 3]))
    rule = rules.ThresholdAverage(budget=budget)
    z = toy.activate(activations.Ranked(budget, "column"), a)
    stats = rule.update(rule.init(toy.sae(n=4)), toy.record(z, a=a))
    # Fewer positive than the budget: any positive value is kept.
    np.testing.assert_allclose(stats["threshold"], [2.5, 0.0, 0.0, 0.5])

  def test_starts_with_its_phase(self):
    a = jnp.asarray([[2.0], [1.0]])
    for budget in (None, Counts(jnp.asarray([1]))):
      rule = rules.ThresholdAverage(budget=budget, start_step=3)
      stats = rule.init(toy.sae(n=1))
      for step, known in ((0, False), (2, False), (3, True)):
        z = jnp.where(a > 1, a, 0)
        record = toy.record(z, a=a, step=jnp.asarray(step))
        stats = rule.update(stats, record)
        self.assertEqual(bool(jnp.isfinite(stats["threshold"]).all()), known)
        self.assertTrue(jnp.isfinite(rule.metrics(stats)["threshold"]))

  def test_batch_threshold_gives_the_l0_of_training_on_fresh_rows(self):
    k, n, rows = 8, 256, 512
    rule = rules.ThresholdAverage()
    choose = activations.Ranked(budgets.Constant(k), "batch")

    @jax.jit
    def run(keys):
      def one(stats, key):
        a = jax.random.normal(key, (rows, n))
        return rule.update(
          stats, toy.record(toy.activate(choose, a), a=a)
        ), None

      return jax.lax.scan(one, rule.init(toy.sae(n=n)), keys)[0]

    theta = run(jax.random.split(jax.random.key(1), 100))["threshold"]
    fresh = jax.random.normal(jax.random.key(2), (8192, n))
    l0 = float(jnp.mean(jnp.sum(fresh > theta, axis=-1, dtype=jnp.float32)))
    self.assertAlmostEqual(l0, k, delta=0.02 * k)


if __name__ == "__main__":
  absltest.main()
