"""saejax/data/synthetic.py: planted data is what it says it is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.data import synthetic
from saejax.errors import InputError

KEY = jax.random.key(0)
ROWS = 20_000


def draw(f, *args, **options):
  """One compiled call: everything here must work inside jit."""
  return jax.device_get(jax.jit(lambda key: f(key, *args, **options))(KEY))


class DirectionsTest(absltest.TestCase):
  def test_directions_have_unit_norm(self):
    V = draw(synthetic.directions, 40, 8)
    np.testing.assert_allclose(np.linalg.norm(V, axis=1), 1, rtol=1e-5)

  def test_orthonormal_rows_and_no_more_than_there_is_room_for(self):
    V = draw(synthetic.orthonormal, 6, 8)
    np.testing.assert_allclose(V @ V.T, np.eye(6), atol=1e-5)
    with self.assertRaisesRegex(InputError, "at most d=8"):
      synthetic.orthonormal(KEY, 9, 8)

  def test_dictionaries_of_subspaces_are_orthogonal_to_each_other(self):
    a, b = draw(synthetic.subspaces, 10, (3, 4), 8)
    np.testing.assert_allclose(a @ b.T, 0, atol=1e-5)
    self.assertEqual(np.linalg.matrix_rank(a, tol=1e-3), 3)
    self.assertEqual(np.linalg.matrix_rank(b, tol=1e-3), 4)


class FrequenciesTest(absltest.TestCase):
  def test_decaying_is_the_formula(self):
    p = synthetic.decaying(4, 2, 0.5)
    np.testing.assert_allclose(p, [0.5, 0.25, 0.125, 0.0625])

  def test_a_power_law_has_its_mean_and_its_slope(self):
    p = synthetic.power_law(64, 3, 0.7)
    self.assertAlmostEqual(p.sum(), 3, places=5)
    self.assertAlmostEqual(p[0] / p[31], 32**0.7, places=3)

  def test_a_probability_above_1_is_refused(self):
    with self.assertRaisesRegex(InputError, "active"):
      synthetic.power_law(8, 7, 2.0)


class ActivityTest(parameterized.TestCase):
  def test_bernoulli_has_its_frequencies(self):
    p = synthetic.power_law(16, 3, 0.5)
    on = draw(synthetic.bernoulli, ROWS, p)
    sigma = np.sqrt(p * (1 - p) / ROWS)
    np.testing.assert_array_less(np.abs(on.mean(axis=0) - p), 4 * sigma)

  def test_exactly_has_as_many_as_asked_in_every_row(self):
    on = draw(synthetic.exactly, 100, 5, jnp.ones(16))
    np.testing.assert_array_equal(on.sum(axis=1), 5)

  def test_exactly_draws_by_weight_and_never_weight_0(self):
    w = np.array([0.0, 1.0, 3.0], np.float32)
    on = draw(synthetic.exactly, ROWS, 1, w)
    np.testing.assert_allclose(on.mean(axis=0), [0, 0.25, 0.75], atol=0.015)
    short = draw(synthetic.exactly, 10, 3, w)
    np.testing.assert_array_equal(short.sum(axis=1), 2)

  def test_rows_may_have_numbers_of_their_own(self):
    def mixture(key):
      count = synthetic.mixed(key, ROWS, (3, 20))
      return count, synthetic.exactly(key, ROWS, count, jnp.ones(32))

    count, on = draw(mixture)
    np.testing.assert_array_equal(on.sum(axis=1), count)
    self.assertEqual(set(count.tolist()), {3, 20})
    self.assertAlmostEqual((count == 3).mean(), 0.5, delta=0.02)

  def test_groups_are_never_mixed_and_weights_decay_inside(self):
    # The sizes of the mfr paper, with a stronger decay.
    find = functools.partial(synthetic.grouped, groups=12, active=32, decay=0.9)
    on = draw(find, 2000, 512)
    np.testing.assert_array_equal(on.sum(axis=1), 32)
    self.assertFalse(on[:, 504:].any())  # 512 = 12 * 42 + 8
    group = on[:, :504].reshape(2000, 12, 42).any(axis=2)
    np.testing.assert_array_equal(group.sum(axis=1), 1)
    rate = on[:, :504].reshape(-1, 42).mean(axis=0)
    self.assertGreater(rate[:10].mean(), 1.3 * rate[-10:].mean())

  def test_a_group_that_is_too_small_is_refused(self):
    with self.assertRaisesRegex(InputError, "features per group"):
      synthetic.grouped(KEY, 3, 10, groups=3, active=4)

  def test_children_are_on_only_with_their_parent_and_one_at_a_time(self):
    on = draw(synthetic.tree, ROWS)
    parent = synthetic.parent_of()
    child = on[:, 4:].reshape(ROWS, 4, 3)
    np.testing.assert_array_equal(parent[:4], -1)
    np.testing.assert_array_equal(parent[4:].reshape(4, 3)[:, 0], range(4))
    self.assertTrue((child.sum(axis=2) <= on[:, :4]).all())
    np.testing.assert_allclose(on[:, :4].mean(axis=0), 0.15, atol=0.012)
    share = child.sum() / on[:, :4].sum()
    self.assertAlmostEqual(share, 0.6, delta=0.02)
    np.testing.assert_allclose(
      child.mean(axis=(0, 1)), 0.15 * 0.6 / 3, atol=0.004
    )

  def test_rare_rows_have_features_of_their_own_domain_only(self):
    def mixture(key):
      a, b, c = jax.random.split(key, 3)
      often = synthetic.bernoulli(a, ROWS, jnp.full((8,), 0.4))
      seldom = synthetic.bernoulli(b, ROWS, jnp.full((4,), 0.5))
      return synthetic.sometimes(c, often, seldom, 0.01)

    on, rare = draw(mixture)
    self.assertEqual(on.shape, (ROWS, 12))
    self.assertFalse(on[rare][:, :8].any())
    self.assertFalse(on[~rare][:, 8:].any())
    self.assertAlmostEqual(rare.mean(), 0.01, delta=0.003)

  @parameterized.parameters(False, True)
  def test_coefficients_lie_in_their_range(self, signed):
    on = jnp.ones((200, 20), bool).at[:, ::2].set(False)
    H = draw(synthetic.coefficients, on, low=0.5, high=0.75, signed=signed)
    np.testing.assert_array_equal(H != 0, on)
    size = np.abs(H[:, 1::2])
    self.assertBetween(size.min(), 0.5, 0.75)
    self.assertBetween(size.max(), 0.5, 0.75)
    self.assertAlmostEqual((H[:, 1::2] < 0).mean(), 0.5 * signed, delta=0.05)


class RowsTest(absltest.TestCase):
  def test_sparse_rows_are_codes_times_directions(self):
    V = jnp.eye(10)
    x = draw(synthetic.sparse, ROWS, V, 3.0, low=1.0, high=1.0)
    self.assertEqual(set(np.unique(x).tolist()), {0.0, 1.0})
    self.assertAlmostEqual(x.sum(axis=1).mean(), 3, delta=0.05)

  def test_scores_are_read_off_rows_linearly_and_tell_the_number_active(self):
    axes = synthetic.orthonormal(KEY, 31, 32)
    found = draw(synthetic.scored, 500, axes[:30], axes[30])
    np.testing.assert_allclose(
      found["x"] @ np.asarray(axes[30]), found["score"], atol=1e-4
    )
    active = (np.abs(found["x"] @ np.asarray(axes[:30]).T) > 0.4).sum(axis=1)
    np.testing.assert_array_equal(active, found["active"])
    np.testing.assert_array_equal(
      found["score"], np.where(found["active"] == 2, 2.0, 8.0)
    )

  def test_conditions_scale_and_shift(self):
    scale, shift = synthetic.affines(KEY, 5, 8)
    self.assertAlmostEqual(float(scale[-1] / scale[0]), 10, places=5)
    x = jax.random.normal(KEY, (400, 8))
    found = draw(synthetic.conditioned, x, scale, shift)
    t = found["cond"]
    self.assertEqual(set(t.tolist()), set(range(5)))
    back = (found["x"] - np.asarray(shift)[t]) / np.asarray(scale)[t, None]
    np.testing.assert_allclose(back, x, atol=1e-5)

  def test_pairs_share_one_part_and_not_the_others(self):
    u, v, w = synthetic.subspaces(KEY, 6, (3, 3, 3), 9)
    x = draw(synthetic.paired, 100, u, v, w)["x"]
    self.assertEqual(x.shape, (100, 2, 9))
    project = lambda V: np.linalg.pinv(V, 1e-3) @ np.asarray(V)
    difference = x[:, 0] - x[:, 1]
    np.testing.assert_allclose(difference @ project(u), 0, atol=1e-4)
    np.testing.assert_allclose(x[:, 0] @ project(w), 0, atol=1e-4)
    np.testing.assert_allclose(x[:, 1] @ project(v), 0, atol=1e-4)
    self.assertGreater(np.abs(difference).mean(), 0.1)

  def test_layers_of_a_group_differ_in_scale_only(self):
    V = synthetic.subspaces(KEY, 6, (4, 4), 8)
    x = draw(
      synthetic.layered, 50, V, (0, 0, 1, 1), scales=(1.0, 2.0, 1.0, 4.0)
    )["x"]
    self.assertEqual(x.shape, (50, 4, 8))
    np.testing.assert_allclose(2 * x[:, 0], x[:, 1], rtol=1e-5)
    np.testing.assert_allclose(4 * x[:, 2], x[:, 3], rtol=1e-5)
    np.testing.assert_allclose((x[:, 0] * x[:, 2]).sum(axis=1), 0, atol=1e-4)

  def test_noise_has_its_size(self):
    x = draw(synthetic.noisy, jnp.zeros((100, 100)), 0.1)
    self.assertAlmostEqual(x.std(), 0.1, delta=0.003)


if __name__ == "__main__":
  absltest.main()
