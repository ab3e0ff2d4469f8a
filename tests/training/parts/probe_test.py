"""Tests of saejax.training.parts.probe."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from saejax import errors
from saejax.sae.context import Batch
from saejax.training.parts import probe
from saejax.training.recipe import Record
from tests import toy

ROWS, D = 200, 6


def data(noise=0.5):
  x = toy.rows(ROWS, D) + jnp.arange(6.0)
  y = x @ toy.rows(D, seed=3) + 2 + noise * toy.rows(ROWS, seed=4)
  return x, y


@functools.partial(jax.jit, static_argnums=(0, 1))
def sae(min_k=1, max_k=9):
  x, y = data()
  return probe.init(
    jax.random.key(0),
    n=24,
    d=D,
    sample=Batch(x=x, score=y),
    min_k=min_k,
    max_k=max_k,
  )


@jax.jit
def record(model, x, y, stats, step=None, weight=None):
  batch = Batch(x=x, score=y, weight=weight)
  forward = model.forward(batch, engine="dense", step=step)
  return Record(forward=forward, sae=model, stats=stats, engine="dense")


class RidgeTest(parameterized.TestCase):
  @parameterized.parameters(0.1, 10.0, 1000.0)
  def test_is_the_closed_form_with_a_free_bias(self, penalty):
    x, y = (np.asarray(a, np.float64) for a in data())
    ones = np.concatenate([x, np.ones((ROWS, 1))], axis=1)
    penalties = np.diag([penalty] * D + [0.0])
    want = np.linalg.solve(ones.T @ ones + penalties, ones.T @ y)
    w, b = jax.jit(probe.ridge)(*data(), penalty)
    np.testing.assert_allclose(w, want[:D], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(b, want[D], rtol=1e-3)

  def test_without_a_penalty_it_is_least_squares(self):
    x, y = data()
    ones = np.concatenate([x, np.ones((ROWS, 1))], axis=1)
    want = np.linalg.lstsq(np.float64(ones), np.float64(y), rcond=None)[0]
    w, b = probe.ridge(x, y, 1e-6)
    np.testing.assert_allclose(w, want[:D], atol=1e-4)
    np.testing.assert_allclose(b, want[D], rtol=1e-3)

  def test_shifting_the_scores_shifts_the_bias_alone(self):
    x, y = data()
    (w, b), (w2, b2) = probe.ridge(x, y, 5.0), probe.ridge(x, y + 7, 5.0)
    np.testing.assert_allclose(w2, w, atol=1e-4)
    np.testing.assert_allclose(b2, b + 7, rtol=1e-4)

  def test_rows_of_weight_0_do_not_count(self):
    x, y = data()
    on = jnp.arange(ROWS) < 150
    w, b = probe.ridge(x, jnp.where(on, y, 99), 2.0, on.astype(jnp.float32))
    want = probe.ridge(x[:150], y[:150], 2.0)
    np.testing.assert_allclose(w, want[0], atol=1e-4)
    np.testing.assert_allclose(b, want[1], rtol=1e-4)

  @parameterized.parameters((0.01, 0), (30.0, -1))
  def test_the_penalty_with_the_least_error_out_of_fold_is_taken(
    self, noise, at
  ):
    # Clean scores ask for the smallest; scores of noise alone for the largest.
    x, y = data(noise)
    if at:
      y = toy.rows(ROWS, seed=8)
    w, b, penalty = probe.fit(x, y)
    chosen = probe.PENALTIES[at]
    np.testing.assert_allclose(penalty, chosen / ROWS, rtol=1e-5)
    np.testing.assert_allclose(w, probe.ridge(x, y, chosen)[0], atol=1e-5)
    np.testing.assert_allclose(b, probe.ridge(x, y, chosen)[1], rtol=1e-4)


class InitTest(absltest.TestCase):
  def test_the_probe_starts_as_the_fit_to_the_sample(self):
    budget = sae.__wrapped__().activation.budget  # operations as in the fit
    got = (budget.w, budget.b, budget.penalty)
    toy.assert_trees_equal(got, probe.fit(*data()))

  def test_refuses_a_sample_without_scores(self):
    for sample in (toy.rows(9, D), Batch(x=toy.rows(4, D), score=toy.rows(4))):
      with self.assertRaisesRegex(errors.InputError, "each with a score"):
        probe.init(
          jax.random.key(0), n=24, d=D, sample=sample, min_k=1, max_k=2
        )


class LossTest(absltest.TestCase):
  def test_the_fit_has_no_gradient_on_its_own_rows(self):
    x, y = data()
    model = sae()
    stats = probe.Pull(0).init(model)
    loss = lambda model: probe.loss(record(model, x, y, stats))
    value, g = jax.value_and_grad(loss)(model)
    np.testing.assert_allclose(g.activation.budget.w, 0, atol=2e-2)
    np.testing.assert_allclose(g.activation.budget.b, 0, atol=2e-3)
    self.assertEqual(g.activation.budget.penalty, 0)
    self.assertFalse(g.decoder.W.any())
    budget = model.activation.budget
    want = jnp.mean((x @ budget.w + budget.b - y) ** 2)
    want += budget.penalty * jnp.sum(budget.w**2)
    np.testing.assert_allclose(value, want, rtol=1e-4)

  def test_moving_away_from_the_fit_costs_the_pull(self):
    x, y = data()
    model = sae()
    stats = probe.Pull(0, c=0.2).init(model)
    budget = model.activation.budget
    moved = budget.replace(w=budget.w.at[0].add(3).at[1].add(-4))
    moved = moved.replace(b=moved.b - 2)
    model = model.replace(activation=model.activation.replace(budget=moved))
    at = record(model, x, y, stats)
    free = record(model, x, y, {**stats, probe.PULL: jnp.zeros(())})
    np.testing.assert_allclose(
      probe.loss(at) - probe.loss(free), 0.2 * (5 + 2), rtol=1e-3
    )

  def test_refuses_rows_without_scores(self):
    model = sae()
    out = record(model, toy.rows(9, D), None, probe.Pull(0).init(model))
    with self.assertRaisesRegex(ValueError, "Batch.score"):
      probe.loss(out)


class PullTest(parameterized.TestCase):
  def after(self, scales, c=0.2, start=0):
    """c after batches whose errors are those."""
    x, _ = data()
    model, rule = sae(), probe.Pull(start, c)
    stats = rule.init(model)
    budget = model.activation.budget
    predicted = budget.predict(x)
    for i, scale in enumerate(scales):
      out = record(model, x, predicted + scale, stats, step=jnp.int32(i))
      stats = rule.update(stats, out)
    return float(stats[probe.PULL])

  @parameterized.parameters(
    ((1.0, 1.0), 0.2),  # not yet three
    ((1.0, 0.99, 0.97), 0.2 * 0.8),  # 1 - 0.97^2 is 6 %
    ((1.0, 0.5, 0.98), 0.2 * 1.2),  # 4 %
    ((1.0, 1.0, 1.0, 0.1), 0.2 * 1.2 * 0.8),
  )
  def test_falls_while_the_error_falls_and_rises_else(self, scales, want):
    self.assertAlmostEqual(self.after(scales), want, places=5)

  def test_stays_in_bounds_and_waits_for_its_step(self):
    self.assertAlmostEqual(self.after([1.0] * 12), 0.5, places=5)
    falling = [0.9**i for i in range(20)]
    self.assertAlmostEqual(self.after(falling), 0.01, places=5)
    self.assertAlmostEqual(self.after([1.0] * 9, start=9), 0.2, places=5)


class OptimizerTest(absltest.TestCase):
  def test_the_probe_waits_then_starts_with_moments_of_zero(self):
    model = sae()
    start = 3
    make = probe.optimizer(optax.adam, start_step=start, clip_norm=1.0)
    g = jax.tree.map(jnp.ones_like, model)
    state, moves = make(0.1).init(model), []
    with jax.numpy_dtype_promotion("standard"):
      for _ in range(5):
        updates, state = make(0.1).update(g, state, model)
        moves.append(updates)
    for i, update in enumerate(moves):
      # Equal gradients: Adam from 0 moves every number by the rate.
      want = -0.1 if i >= start else 0.0
      np.testing.assert_allclose(
        update.activation.budget.w, want, rtol=1e-4, atol=0
      )
      np.testing.assert_allclose(update.encoder.W, -0.1, rtol=1e-4)

  def test_each_clips_by_its_own_norm(self):
    model = sae()
    make = probe.optimizer(optax.sgd, start_step=0, clip_norm=1.0)
    g = jax.tree.map(jnp.zeros_like, model)
    budget = g.activation.budget
    budget = budget.replace(w=jnp.full((D,), 1e6))
    g = g.replace(activation=g.activation.replace(budget=budget))
    g = g.replace(decoder=g.decoder.replace(b=g.decoder.b.at[0].set(0.5)))
    with jax.numpy_dtype_promotion("standard"):
      updates, _ = make(1.0).update(g, make(1.0).init(model), model)
    self.assertAlmostEqual(float(updates.decoder.b[0]), -0.5, places=6)
    norm = jnp.linalg.norm(updates.activation.budget.w)
    np.testing.assert_allclose(norm, 1, rtol=1e-5)


if __name__ == "__main__":
  absltest.main()
