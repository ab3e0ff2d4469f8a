"""Tests of saejax.training.parts.rules."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.sae.context import Batch
from saejax.sae.latents import DenseLatents, SparseLatents
from saejax.training.parts import rules
from tests import toy

TRACKER = rules.DeadTracker(100)


def stats(*since):
  return {rules.SINCE_FIRED: jnp.asarray(since, jnp.int32)}


class DeadTrackerTest(parameterized.TestCase):
  def test_starts_with_every_latent_alive(self):
    start = TRACKER.init(toy.sae())
    np.testing.assert_array_equal(start[rules.SINCE_FIRED], np.zeros(24))
    self.assertFalse(TRACKER.dead(start).any())

  def test_counts_tokens_since_a_latent_was_kept_and_not_zero(self):
    # Latent 0 fires; 1 is selected with value 0; 2 is not selected.
    values, indices = jnp.asarray([[0.5, 0.0], [0.0, 0.0]]), [[0, 1], [1, 0]]
    sparse = SparseLatents(
      *(jnp.tile(jnp.asarray(v), (5, 1)) for v in (values, indices)), 3
    )
    for latents in (sparse, DenseLatents(sparse.dense())):
      moved = TRACKER.update(stats(7, 7, 90), toy.record(latents))
      np.testing.assert_array_equal(moved[rules.SINCE_FIRED], [0, 17, 100])
      np.testing.assert_array_equal(TRACKER.dead(moved), [False, False, True])

  def test_rows_of_weight_0_do_not_count(self):
    record = toy.record(
      jnp.asarray([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]),
      batch=Batch(x=jnp.zeros((3, 1)), weight=jnp.asarray([2.0, 0.0, 1.0])),
    )
    moved = TRACKER.update(stats(5, 5), record)
    np.testing.assert_array_equal(moved[rules.SINCE_FIRED], [0, 7])

  def test_leaves_other_statistics_alone(self):
    record = toy.record(jnp.ones((1, 2)))
    moved = TRACKER.update({**stats(1, 2), "other": jnp.ones(3)}, record)
    np.testing.assert_array_equal(moved["other"], 1)

  def test_the_mean_of_the_data_is_that_of_all_rows_by_weight(self):
    rule, sae = rules.DataMean(), toy.sae()
    found, batches = (
      rule.init(sae),
      [3 + toy.rows(7, 8, seed=s) for s in (1, 2)],
    )
    others = 100 + toy.rows(5, 8)
    weight = jnp.concatenate([jnp.full(7, 2.0), jnp.zeros(5)])
    for x in batches:
      padded = Batch(x=jnp.concatenate([x, others]), weight=weight)
      record = toy.record(jnp.zeros((12, 24)), x=padded.x, batch=padded)
      found = rule.update(found, record)
    want = np.concatenate(batches).mean(axis=0)
    np.testing.assert_allclose(found[rules.DATA_MEAN], want, rtol=1e-5)
    self.assertEqual(found[rules.DATA_WEIGHT], 28)
    plain = rule.init(sae)
    for x in batches:
      plain = rule.update(plain, toy.record(jnp.zeros((7, 24)), x=x))
    np.testing.assert_allclose(plain[rules.DATA_MEAN], want, rtol=1e-5)

  def test_counter_saturates(self):
    record = toy.record(jnp.zeros((2048, 3)))
    near = stats(2**31 - 1, 2**31 - 5, 2**31 - 1 - 2048)
    moved = jax.jit(lambda s: TRACKER.update(s, record))(near)
    np.testing.assert_array_equal(moved[rules.SINCE_FIRED], 2**31 - 1)
    again = TRACKER.update(moved, record)
    np.testing.assert_array_equal(again[rules.SINCE_FIRED], 2**31 - 1)
    self.assertTrue(TRACKER.dead(again).all())

  def test_says_whether_any_would_be_dead_after_more_tokens(self):
    after = lambda rows: bool(TRACKER.any_dead(stats(0, 60), rows))
    self.assertFalse(after(39))
    self.assertTrue(after(40))
    self.assertTrue(TRACKER.any_dead(stats(2**31 - 1), 2048))

  def test_metric_is_the_fraction_dead(self):
    metrics = TRACKER.metrics(stats(100, 99, 0, 500))
    self.assertEqual({k: float(v) for k, v in metrics.items()}, {"dead": 0.5})

  @parameterized.parameters(
    (5, 1), (300_000, 6_000), (5 * 10**8, 10**7), (10**11, 10**7)
  )
  def test_dead_after_a_fiftieth_of_the_run_or_ten_million(self, tokens, after):
    self.assertEqual(rules.dead_after(tokens), after)


if __name__ == "__main__":
  absltest.main()
