"""Tests of saejax.evals.least_squares."""

import numpy as np
import scipy.optimize
from absl.testing import absltest, parameterized

from saejax.evals import least_squares

P = 24


def model(seed=0):
  """A sum of two exponentials over random columns."""
  rng = np.random.default_rng(seed)
  U = np.concatenate([np.ones((P, 1)), rng.standard_normal((P, 2))], axis=1)
  V = np.concatenate([np.ones((P, 1)), rng.standard_normal((P, 1))], axis=1)
  return least_squares.ExponentSum(U, V)


def problems(count, seed=1):
  """Starts and log losses with noise, some of it far out."""
  rng = np.random.default_rng(seed)
  start = rng.standard_normal((count, 5))
  truth = start + 0.3 * rng.standard_normal((count, 5))
  noise = 0.05 * rng.standard_normal((count, P))
  noise[:, :2] += 1.0
  return start, model().predict(truth) + noise


class SolveTest(parameterized.TestCase):
  def test_costs_are_those_of_scipy(self):
    start, y = problems(6)
    found = least_squares.solve(model(), y, start, 0.1)
    for i in range(6):
      best = scipy.optimize.least_squares(
        lambda theta, i=i: model().predict(theta) - y[i],
        start[i],
        loss="soft_l1",
        f_scale=0.1,
        xtol=1e-12,
        ftol=1e-12,
      )
      self.assertLessEqual(found.cost[i], best.cost * (1 + 1e-6))
      np.testing.assert_allclose(
        found.residuals[i], model().predict(found.theta[i]) - y[i]
      )
    costs = least_squares.cost(found.residuals, np.full(6, 0.1)).sum(axis=-1)
    np.testing.assert_allclose(costs, found.cost)

  def test_a_batch_gives_what_each_problem_gives_alone(self):
    start, y = problems(4)
    together = least_squares.solve(model(), y, start, 0.1)
    for i in range(4):
      alone = least_squares.solve(model(), y[i], start[i : i + 1], 0.1)
      np.testing.assert_allclose(alone.theta[0], together.theta[i], rtol=1e-9)

  def test_without_a_second_term_and_outliers_it_is_linear_regression(self):
    rng = np.random.default_rng(2)
    U = model().U
    y = U @ np.array([0.3, -1.0, 2.0]) + 0.01 * rng.standard_normal(P)
    line = least_squares.ExponentSum(U, np.zeros((P, 0)))
    found = least_squares.solve(line, y, np.zeros((1, 3)), 1e3)
    want, rest = np.linalg.lstsq(U, y, rcond=None)[:2]
    np.testing.assert_allclose(found.theta[0], want, atol=1e-8)
    np.testing.assert_allclose(2 * found.cost, rest, rtol=1e-6)

  def test_a_weight_is_how_often_a_point_counts(self):
    start, y = problems(1)
    counts = np.arange(P) % 3
    weighted = least_squares.solve(
      model(), y, start, 0.1, weights=counts[None].astype(float)
    )
    each = np.repeat(np.arange(P), counts)
    repeated = least_squares.solve(
      least_squares.ExponentSum(model().U[each], model().V[each]),
      y[:, each],
      start,
      0.1,
    )
    np.testing.assert_allclose(weighted.theta, repeated.theta, rtol=1e-6)
    np.testing.assert_allclose(weighted.cost, repeated.cost)

  def test_what_is_not_within_is_held(self):
    start, y = problems(3)
    direction = np.array([0.6, 0.0, 0.8, 0.0, 0.0])
    span = np.linalg.svd(direction[None])[2][1:].T
    found = least_squares.solve(
      model(), y, start, 0.1, within=np.tile(span, (3, 1, 1))
    )
    np.testing.assert_allclose(
      found.theta @ direction, start @ direction, atol=1e-12
    )
    free = least_squares.solve(model(), y, found.theta, 0.1)
    self.assertTrue(np.all(free.cost < found.cost))
    # Nothing is gained along the span.
    for column in span.T:
      for step in (-1e-4, 1e-4):
        moved = model().predict(found.theta + step * column) - y
        cost = least_squares.cost(moved, np.full(3, 0.1)).sum(axis=-1)
        self.assertTrue(np.all(cost >= found.cost - 1e-12))

  def test_lower_bounds_hold(self):
    start, y = problems(2)
    low = np.array([-np.inf, -np.inf, -np.inf, 5.0, -np.inf])
    found = least_squares.solve(model(), y, start, 0.1, low=low)
    self.assertTrue(np.all(found.theta[:, 3] >= 5.0))

  def test_the_jacobian_is_the_derivative(self):
    theta = np.random.default_rng(3).standard_normal((2, 5))
    numeric = [
      (model().predict(theta + h) - model().predict(theta - h)) / 2e-6
      for h in 1e-6 * np.eye(5)
    ]
    np.testing.assert_allclose(
      model().jacobian(theta), np.stack(numeric, axis=-1), atol=1e-8
    )

  def test_small_residuals_cost_half_their_square(self):
    r = np.array([1e-9, -1e-5])
    got = least_squares.cost(r, np.array(0.01))
    np.testing.assert_allclose(got, r**2 / 2, rtol=1e-5)


if __name__ == "__main__":
  absltest.main()
