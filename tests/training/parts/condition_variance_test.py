"""Tests of saejax.training.parts.condition_variance."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax import errors
from saejax.sae import condition_preps as preps
from saejax.sae.context import Batch
from saejax.training.parts.condition_variance import ConditionVariance
from saejax.training.recipe import Record
from tests import toy

D, COUNT = 8, 3
RNG = np.random.default_rng(0)
COND = RNG.integers(0, COUNT, 200)
X = (1 + COND)[:, None] * RNG.normal(2, 1, (200, D))
X = jnp.asarray(X, jnp.float32)
COND = jnp.asarray(COND, jnp.int32)


@jax.jit
def record(x, cond, weight=None, stats=None, sae=None):
  sae = toy.sae() if sae is None else sae
  forward = sae.forward(Batch(x=x, cond=cond, weight=weight))
  return Record(forward=forward, sae=sae, stats=stats or {}, engine="dense")


def after(rule, *batches, **kwargs):
  """Statistics after some batches."""
  update = jax.jit(
    lambda stats, *batch: rule.update(stats, record(*batch, **kwargs))
  )
  stats = rule.init(toy.sae())
  for batch in batches:
    stats = update(stats, *batch)
  return stats


class ConditionVarianceTest(parameterized.TestCase):
  def assertExact(self, stats, x=X, cond=COND):
    for c in range(COUNT):
      own = np.asarray(x)[np.asarray(cond) == c]
      np.testing.assert_allclose(
        stats["condition_mean"][c], own.mean(axis=0), rtol=1e-4
      )
      want = np.square(own - own.mean(axis=0)).sum(axis=1).mean()
      np.testing.assert_allclose(
        stats["condition_variance"][c], want, rtol=1e-4
      )

  @parameterized.parameters(200, 50, 1)
  def test_within_the_window_they_are_exact_in_batches_of_any_size(self, size):
    rule = ConditionVariance(COUNT)
    rows = 40 if size == 1 else 200
    parts = [
      (X[i : i + size], COND[i : i + size], None) for i in range(0, rows, size)
    ]
    stats = after(rule, *parts)
    self.assertExact(stats, X[:rows], COND[:rows])
    self.assertEqual(float(stats["condition_rows"].sum()), rows)

  def test_beyond_the_window_they_forget(self):
    rule = ConditionVariance(COUNT, window_rows=20)
    old = (100 * X, COND, None)
    stats = after(rule, old, *[(X, COND, None)] * 3)
    self.assertLessEqual(float(stats["condition_rows"].max()), 20)
    exact = after(ConditionVariance(COUNT), (X, COND, None))
    # 20 / (20 + c) of the old is left after each batch of c rows.
    c = np.bincount(COND, minlength=COUNT)
    left = np.prod([20 / (20 + c)] * 3, axis=0)
    want = (1 - left)[:, None] * exact["condition_mean"] + left[
      :, None
    ] * after(rule, old)["condition_mean"]
    np.testing.assert_allclose(stats["condition_mean"], want, rtol=1e-3)

  def test_rows_without_weight_and_conditions_without_rows_change_nothing(self):
    rule = ConditionVariance(COUNT)
    weight = (COND < 2).astype(jnp.float32)
    stats = after(rule, (X, COND, weight))
    alone = after(rule, (X[COND < 2], COND[COND < 2], None))
    toy.assert_trees_close(stats, alone, rtol=1e-4, atol=1e-5)
    self.assertEqual(float(stats["condition_rows"][2]), 0)
    self.assertEqual(float(stats["condition_variance"][2]), 0)

  def test_times_in_0_to_1_fall_into_bins(self):
    rule = ConditionVariance(COUNT, continuous=True)
    stats = after(rule, (X, COND.astype(jnp.float32) / COUNT + 0.1, None))
    self.assertExact(stats)

  def test_the_loss_is_the_mean_unexplained_variance_of_conditions(self):
    rule = ConditionVariance(COUNT)
    part = preps.table(D, COUNT)
    part = part.replace(gamma=0.2 * toy.rows(COUNT, D), beta=part.beta + 1)
    sae = toy.sae(prep_=preps.Modulated(part))
    stats = after(rule, (X, COND, None), sae=sae)
    loss = rule.loss(record(X, COND, stats=stats, sae=sae))
    x_hat = sae.reconstruct(Batch(x=X, cond=COND))  # in the units of x
    error = np.square(np.asarray(X - x_hat)).sum(axis=1)
    for c in range(COUNT):
      own = np.asarray(COND) == c
      spread = np.square(X[own] - X[own].mean(axis=0)).sum(axis=1).mean()
      np.testing.assert_allclose(
        loss[own].mean(), error[own].mean() / spread, rtol=1e-4
      )

  def test_a_condition_seen_once_takes_the_variance_of_the_others(self):
    rule = ConditionVariance(COUNT)
    x, cond = X[:5], jnp.asarray([0, 0, 0, 0, 1])
    stats = after(rule, (x, cond, None))
    loss = rule.loss(record(x, cond, stats=stats))
    error = jnp.sum((x - toy.sae().reconstruct(x)) ** 2, axis=1)
    np.testing.assert_allclose(
      loss, error / stats["condition_variance"][0], rtol=1e-4
    )
    first = after(rule, (x[:1], cond[:1], None))
    self.assertTrue(
      np.isfinite(rule.loss(record(x[:1], cond[:1], stats=first))).all()
    )

  def test_shrinking_the_frame_does_not_lower_the_loss(self):
    rule = ConditionVariance(COUNT)

    def loss(gamma, sae):
      table = preps.table(D, COUNT)
      table = table.replace(gamma=table.gamma + gamma)
      # A latent's error in x is the same whatever the frame: all are 0.
      silent = jnp.full((24,), -1e3)
      sae = sae.replace(
        prep=preps.Modulated(table),
        encoder=sae.encoder.replace(b=silent),
        decoder=sae.decoder.replace(b=jnp.zeros(D)),
      )
      stats = after(rule, (X, COND, None), sae=sae)
      return jnp.mean(rule.loss(record(X, COND, stats=stats, sae=sae)))

    value, slope = jax.value_and_grad(loss)(jnp.float32(-3), toy.sae())
    np.testing.assert_allclose(slope, 0, atol=1e-4)
    np.testing.assert_allclose(
      value, loss(jnp.float32(0), toy.sae()), rtol=1e-4
    )

  def test_refuses_rows_without_conditions(self):
    rule = ConditionVariance(COUNT)
    with self.assertRaisesRegex(errors.InputError, "cond=None"):
      after(rule, (X, None, None))


if __name__ == "__main__":
  absltest.main()
