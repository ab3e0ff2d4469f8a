"""Tests of saejax.training.parts.sparsity."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax import errors
from saejax.sae import jumprelu
from saejax.sae.context import Batch
from saejax.training.parts import losses, sparsity
from tests import contract, toy
from tests.sae import gated_test

X = 2 * toy.rows(40, 8)
THETA = 0.3 + jnp.abs(toy.rows(24, seed=3))


def sae(theta=THETA, eps=0.4, **choices):
  """A JumpReLU SAE whose decoder rows are not of unit norm."""
  made = toy.sae(activation=jumprelu.JumpReLU(theta, eps, **choices))
  W = made.W_dec * jnp.linspace(0.5, 2, 24)[:, None]
  return made.replace(decoder=made.decoder.replace(W=W))


def record(ours, x=X, **around):
  return contract.record(None, ours, x, **around)


class CountTest(parameterized.TestCase):
  def test_l0_counts_latents_and_moves_thresholds_alone(self):
    ours = sae()
    count = sparsity.l0(record(ours))
    np.testing.assert_array_equal(count, record(ours).forward.latents.count())
    total = lambda s: jnp.sum(sparsity.l0(record(s)))
    gradient = jax.grad(total)(ours)
    K = jumprelu.KERNELS["rectangle"](record(ours).forward.pre.a - THETA, 0.4)
    np.testing.assert_allclose(
      gradient.activation.theta, -K.sum(0), rtol=1e-6, atol=1e-5
    )
    zero = gradient.replace(activation=None)
    for leaf in jax.tree.leaves(zero):
      np.testing.assert_array_equal(leaf, jnp.zeros_like(leaf))

  def test_target_compares_rows_or_their_mean(self):
    ours = sae()
    count = np.asarray(sparsity.l0(record(ours)))
    batch = sparsity.l0_target(5.0)(record(ours))
    row = sparsity.l0_target(5.0, "row")(record(ours))
    np.testing.assert_allclose(batch, (count.mean() / 5 - 1) ** 2, rtol=1e-5)
    np.testing.assert_allclose(row, (count / 5 - 1) ** 2, rtol=1e-5)
    # SAELens' form: punishes spread too.
    self.assertGreater(np.mean(row), batch + 0.5 * np.var(count) / 25)

  def test_rows_of_weight_0_do_not_count(self):
    ours = sae()
    weight = jnp.asarray([2.0] * 10 + [0.0] * 30)
    for penalty in (sparsity.l0_target(5.0), sparsity.tanh_quadratic()):
      got = penalty(record(ours, Batch(x=X, weight=weight)))
      np.testing.assert_allclose(got, penalty(record(ours, X[:10])), rtol=1e-5)

  @parameterized.parameters(0.5, 1.5)
  def test_the_gradient_changes_sign_at_the_target(self, part):
    ours = sae()
    target = part * float(np.mean(sparsity.l0(record(ours))))
    loss = lambda s: sparsity.l0_target(target)(record(s))
    gradient = jax.grad(loss)(ours).activation.theta
    # Too many on: thresholds rise, against a gradient below 0.
    self.assertLess(float(jnp.sum(gradient)) * (1 - part), 0)
    self.assertTrue(np.all(np.asarray(gradient) * (1 - part) <= 0))

  def test_at_the_target_nothing_moves(self):
    ours = sae()
    target = float(np.mean(sparsity.l0(record(ours))))
    loss = lambda s: sparsity.l0_target(target)(record(s))
    gradient = jax.grad(loss)(ours).activation.theta
    np.testing.assert_allclose(gradient, np.zeros(24), atol=1e-5)

  def test_a_members_k_is_its_target(self):
    ours = sae()
    k = jnp.asarray(7, jnp.int32)
    got = sparsity.l0_target(5.0)(record(ours, k=k))
    want = sparsity.l0_target(7.0)(record(ours))
    np.testing.assert_allclose(got, want, rtol=1e-6)

  @parameterized.parameters(
    (sparsity.l0_target, (0.0,), "target=0.0"),
    (sparsity.l0_target, (5.0, "column"), "scope=column"),
    (sparsity.power, (0.0,), "p=0.0"),
  )
  def test_settings_without_sense_are_refused(self, make, args, said):
    with self.assertRaisesRegex(errors.InputError, said):
      make(*args)


class SizeTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.record = record(sae())
    z = np.asarray(self.record.forward.latents.dense(), np.float64)
    self.size = np.abs(z) * np.linalg.norm(self.record.forward.W_dec, axis=-1)

  def test_tanh(self):
    got = sparsity.tanh(4.0)(self.record)
    np.testing.assert_allclose(got, np.tanh(4 * self.size).sum(-1), rtol=1e-5)

  def test_tanh_reaches_every_weight(self):
    total = lambda s: jnp.sum(sparsity.tanh(0.5)(record(s)))
    gradient = jax.grad(total)(sae())
    for leaf in jax.tree.leaves(gradient):
      self.assertGreater(float(jnp.max(jnp.abs(leaf))), 0)

  def test_tanh_quadratic_punishes_frequent_latents(self):
    got = sparsity.tanh_quadratic(4.0, 0.1)(self.record)
    f = np.tanh(4 * self.size).mean(0)
    np.testing.assert_allclose(got, np.sum(f * (1 + f / 0.1)), rtol=1e-5)

  @parameterized.parameters(0.5, 1.0, 2.0)
  def test_power(self, p):
    got = sparsity.power(p)(self.record)
    want = np.where(self.size > 0, self.size, 0) ** p
    np.testing.assert_allclose(got, want.sum(-1), rtol=1e-5)
    total = lambda s: jnp.sum(sparsity.power(p)(record(s)))
    for leaf in jax.tree.leaves(jax.grad(total)(sae())):
      self.assertTrue(np.isfinite(leaf).all())

  def test_below_threshold_lifts_what_is_off(self):
    got = sparsity.below_threshold(self.record)
    a = np.asarray(self.record.forward.pre.a)
    norms = np.linalg.norm(self.record.forward.W_dec, axis=-1)
    want = (np.maximum(THETA - a, 0) * norms).sum(-1)
    np.testing.assert_allclose(got, want, rtol=1e-5)

  def test_needs_every_pre_activation(self):
    passed = self.record.replace(forward=self.record.forward.replace(pre=None))
    with self.assertRaisesRegex(ValueError, "dense engine"):
      sparsity.l0(passed)


class GateTest(parameterized.TestCase):
  def test_terms_are_their_equations(self):
    ours = gated_test.sae()
    passed = record(ours)
    gate = np.maximum(np.asarray(passed.forward.pre.gate), 0)
    np.testing.assert_allclose(
      sparsity.gate_l1(passed), gate.sum(-1), rtol=1e-5
    )
    e = np.asarray(X) - gate @ np.asarray(ours.W_dec) - np.asarray(ours.b_dec)
    np.testing.assert_allclose(
      sparsity.gate_path(passed), np.square(e).sum(-1), rtol=1e-4
    )

  def test_the_gate_path_leaves_the_decoder_alone(self):
    ours = gated_test.sae()
    total = lambda s: jnp.mean(sparsity.gate_path(record(s)))
    gradient = jax.grad(total)(ours)
    np.testing.assert_array_equal(gradient.decoder.W, np.zeros((24, 8)))
    # b_dec is reached as the pre-bias alone: -sum_b dL/dgate W.
    fixed = jax.grad(lambda s: total(s))(ours.replace(pre_bias=False))
    np.testing.assert_array_equal(fixed.decoder.b, np.zeros(8))
    want = -gradient.encoder.b_gate @ ours.encoder.W
    np.testing.assert_allclose(gradient.decoder.b, want, rtol=1e-4, atol=1e-4)

  def test_the_error_alone_does_not_teach_the_gate(self):
    total = lambda s: jnp.mean(losses.mse(record(s)))
    gradient = jax.grad(total)(gated_test.sae())
    np.testing.assert_array_equal(gradient.encoder.b_gate, np.zeros(24))
    self.assertGreater(float(jnp.max(jnp.abs(gradient.encoder.b_mag))), 0)


if __name__ == "__main__":
  absltest.main()
