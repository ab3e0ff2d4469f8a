"""Tests of saejax.training.parts.importance."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.sae import activations, masking
from saejax.sae.context import Batch
from saejax.training.parts import importance
from tests import contract, toy


class ProbabilityTest(parameterized.TestCase):
  @parameterized.parameters((0.0, 1.0), (0.5, 2.0), (-0.5, 0.3))
  def test_falls_with_importance_to_0_at_the_threshold(self, c, r):
    i = jnp.sort(jnp.abs(toy.rows(50))).at[0].set(0)
    p = np.asarray(importance.probability(i, c=c, r=r))
    self.assertTrue((np.diff(p) <= 0).all())
    theta = float(jnp.mean(i) + c * jnp.std(i))
    np.testing.assert_array_equal(p[i >= theta], 0)
    self.assertTrue((p[i < theta * 0.99] > 0).all())
    self.assertAlmostEqual(p[0], 1 - np.exp(-r), places=6)
    below = np.asarray(i)[i < theta]
    np.testing.assert_allclose(
      p[i < theta], 1 - np.exp(-r * (theta - below) / theta), atol=1e-6
    )

  def test_no_importance_at_all_is_finite(self):
    p = importance.probability(jnp.zeros(4), c=0.0, r=1.0)
    self.assertTrue(jnp.isfinite(p).all())


class MeasuresTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.x = 2 * toy.rows(7, 8)
    self.model = toy.sae(activation=masking.RandomMask())
    p = jnp.where(jnp.arange(24) < 9, 1.0, 0.0)
    self.around = {
      "stats": {masking.PROBABILITY: p},
      "key": jax.random.key(0),
      "train": True,
    }

  def record(self, weight=None):
    batch = Batch(x=self.x, weight=weight)
    return contract.record(None, self.model, batch, **self.around)

  def test_the_need_is_what_ablation_costs(self):
    record = self.record()
    size, rate, need = importance.measures(record)
    s = np.asarray(jax.nn.relu(record.forward.pre.a))
    z = np.asarray(record.forward.latents.dense())
    y, W = np.asarray(record.forward.target), np.asarray(self.model.W_dec)
    error = lambda z: ((y - z @ W - np.asarray(self.model.b_dec)) ** 2).sum(1)
    self.assertFalse(z[:, :9].any())
    for j in range(24):
      used, without = z.copy(), z.copy()
      used[:, j], without[:, j] = s[:, j], 0
      rise = np.maximum(error(without) - error(used), 0)
      np.testing.assert_allclose(need[j], rise.mean(), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(rate, (s > 0).mean(0), atol=1e-6)
    on = np.maximum((s > 0).sum(0), 1)
    np.testing.assert_allclose(size, s.sum(0) / on, rtol=1e-5)

  def test_rows_of_weight_0_do_not_count(self):
    weight = jnp.asarray([1.0, 1, 1, 1, 0, 0, 0])
    got = importance.measures(self.record(weight))
    self.x = self.x[:4]
    want = importance.measures(self.record())
    toy.assert_trees_close(got, want, rtol=1e-5, atol=1e-5)

  def test_refuses_the_sparse_engine(self):
    model = toy.sae()
    record = contract.record(None, model, self.x, engine="sparse")
    with self.assertRaisesRegex(ValueError, "dense engine"):
      importance.measures(record)


class RuleTest(absltest.TestCase):
  def test_means_run_and_masking_starts_with_its_step(self):
    rule = importance.Importance(start_step=2, decay=0.9)
    model = toy.sae(activation=masking.RandomMask())
    stats = rule.init(model)
    for i in range(3):
      record = contract.record(
        None,
        model,
        toy.rows(20, 8, seed=i),
        stats=stats,
        step=jnp.int32(i),
        key=jax.random.key(i),
        train=True,
      )
      before, stats = stats, rule.update(stats, record)
      self.assertEqual(bool(stats[masking.PROBABILITY].any()), i + 1 >= 2)
      for name, new in zip(
        importance.PARTS, importance.measures(record), strict=True
      ):
        np.testing.assert_allclose(
          stats[name], 0.9 * before[name] + 0.1 * new, rtol=1e-5
        )
    self.assertGreater(rule.metrics(stats)["masked"], 0)
    shares = [stats[n] / jnp.mean(stats[n]) for n in importance.PARTS]
    want = importance.probability(sum(shares) / 3, c=0.0, r=1.0)
    np.testing.assert_allclose(stats[masking.PROBABILITY], want, atol=1e-5)

  def test_latents_masked_half_of_the_time_can_be_left_out(self):
    model = toy.sae(activation=masking.RandomMask())
    p = jnp.zeros(24).at[3].set(0.5).at[4].set(0.49)
    done = importance.WithoutMasked()(model, {masking.PROBABILITY: p}, None)
    relu = model.replace(activation=activations.ReLU())
    x = toy.rows(40, 8)
    want = np.array(relu.encode(x))
    self.assertTrue(want[:, 3].any())
    want[:, 3] = 0
    np.testing.assert_array_equal(done.encode(x), want)


if __name__ == "__main__":
  absltest.main()
