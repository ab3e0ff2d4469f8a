"""Tests of saejax.sae.archetypal."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy import optimize

from saejax.errors import InputError
from saejax.sae import activations, archetypal, files
from tests import toy

N, P, D = 5, 8, 4


def decoder(delta=0.5, seed=0, **changes):
  """A decoder off its constraints."""
  parts = {
    "A": toy.rows(N, P, seed=seed),
    "relaxation": toy.rows(N, D, seed=seed + 1),
    "log_multiplier": jnp.float32(0.0),
    "b": jnp.zeros((D,)),
    "points": toy.rows(P, D, seed=seed + 2),
  }
  return archetypal.Archetypal(**{**parts, **changes}, delta=delta)


def distance_to_hull(row, points) -> float:
  """Of a row from the convex combinations of points."""
  large = 100.0  # holds the weights to a sum of 1
  A = np.vstack([np.asarray(points).T, np.full((1, len(points)), large)])
  return optimize.nnls(A, np.append(row, large))[1]


class ArchetypalTest(parameterized.TestCase):
  def test_projection_puts_rows_on_the_simplex_and_in_the_ball(self):
    got = jax.jit(lambda d: d.projected())(decoder())
    A = np.asarray(got.A)
    self.assertGreaterEqual(A.min(), 0)
    np.testing.assert_allclose(A.sum(axis=1), 1, rtol=1e-6)
    self.assertLessEqual(
      np.linalg.norm(got.relaxation, axis=1).max(), 0.5 + 1e-6
    )

  def test_projection_leaves_what_holds_already(self):
    once = decoder().projected()
    toy.assert_trees_close(once.projected(), once, rtol=1e-6, atol=1e-7)

  def test_projection_shortens_relaxations_and_no_others(self):
    relaxation = jnp.asarray([[3.0, 4], [0.3, 0.4], [0, 0]])
    got = decoder(
      delta=1.0, A=jnp.eye(3), relaxation=relaxation, points=jnp.zeros((3, 2))
    ).projected()
    want = [[0.6, 0.8], [0.3, 0.4], [0, 0]]
    np.testing.assert_allclose(got.relaxation, want, rtol=1e-6)

  def test_a_row_without_a_positive_entry_starts_anew(self):
    A = jnp.asarray([[-3.0, -1, -2], [0, 0, 0], [2, -1, 2]])
    got = decoder(
      A=A, relaxation=jnp.zeros((3, D)), points=toy.rows(3, D)
    ).projected()
    want = [[0, 1, 0], [1, 0, 0], [0.5, 0, 0.5]]
    np.testing.assert_allclose(got.A, want)

  def test_rows_without_relaxation_lie_in_the_hull(self):
    got = decoder(delta=0.0).projected()
    for row in np.asarray(got.rows()):
      self.assertLess(distance_to_hull(row, got.points), 1e-5)
    outside = 5 + np.asarray(got.points).max(axis=0)
    self.assertGreater(distance_to_hull(outside, got.points), 1)

  def test_the_identity_gives_the_points(self):
    got = decoder(
      A=jnp.eye(P), relaxation=jnp.zeros((P, D)), log_multiplier=jnp.log(2.0)
    )
    np.testing.assert_allclose(got.rows(), 2 * got.points, rtol=1e-6)

  def test_gradients_reach_what_is_learned(self):
    for multiplied in (False, True):
      d = decoder().replace(multiplied=multiplied)
      g = jax.grad(lambda d: jnp.sum(d.rows() ** 2))(d)
      np.testing.assert_array_equal(g.points, 0)
      self.assertEqual(bool(g.log_multiplier != 0), multiplied)
      self.assertGreater(np.abs(g.A).min(), 0)
      np.testing.assert_allclose(g.relaxation, 2 * d.rows(), rtol=1e-5)


class InitTest(parameterized.TestCase):
  def init(self, **changes):
    settings = {
      "n": N,
      "d": D,
      "points": toy.rows(P, D),
      "activation": activations.TopK(2),
      "delta": 1.0,
    }
    return archetypal.init(jax.random.key(0), **{**settings, **changes})

  def test_latent_i_is_point_i_and_reads_how_much_of_it_there_is(self):
    sae = self.init()
    np.testing.assert_allclose(sae.W_dec, toy.rows(P, D)[:N], rtol=1e-6)
    np.testing.assert_allclose(jnp.sum(sae.W_enc * sae.W_dec, -1), 1, rtol=1e-5)
    np.testing.assert_array_equal(sae.b_dec, 0)

  def test_points_are_prepared_as_the_data(self):
    prep = toy.affine(D)
    sae = self.init(prep=prep)
    want = (toy.rows(P, D) - prep.centre) / prep.scale
    np.testing.assert_allclose(sae.decoder.points, want, rtol=1e-5)
    np.testing.assert_allclose(sae.W_dec, want[:N], rtol=1e-5)

  def test_survives_a_file(self):
    sae = self.init()
    folder = self.create_tempdir().full_path
    files.save(sae, f"{folder}/sae")
    toy.assert_trees_equal(files.load(f"{folder}/sae"), sae)

  @parameterized.parameters(
    ("points", (P, D + 1), 1.0),
    ("points", (P,), 1.0),
    ("points", (N - 1, D), 1.0),
    ("delta", (P, D), -0.1),
    ("delta", (P, D), float("nan")),
  )
  def test_refuses(self, field, shape, delta):
    with self.assertRaises(InputError) as caught:
      archetypal.check_points(jnp.zeros(shape), D, N, delta)
    self.assertEqual(caught.exception.field, field)


class KMeansTest(parameterized.TestCase):
  def test_finds_clusters_that_lie_apart(self):
    centres = 10 * np.asarray(toy.rows(6, 3))
    which = np.random.default_rng(0).integers(0, 6, 600)
    x = centres[which] + 0.1 * np.asarray(toy.rows(600, 3, seed=4))
    got = np.asarray(archetypal.kmeans(jax.random.key(0), jnp.asarray(x), 6))
    far = np.linalg.norm(centres[:, None] - got, axis=-1)
    self.assertLess(far.min(axis=1).max(), 0.1)
    rows = [x[which == i].mean(axis=0) for i in range(6)]
    near = np.linalg.norm(np.asarray(rows)[:, None] - got, axis=-1)
    self.assertLess(near.min(axis=1).max(), 1e-4)

  def test_as_many_centroids_as_rows_are_the_rows(self):
    x = toy.rows(7, 3)
    got = archetypal.kmeans(jax.random.key(1), x, 7)
    order = lambda a: np.asarray(a)[np.argsort(np.asarray(a)[:, 0])]
    np.testing.assert_allclose(order(got), order(x), atol=1e-6)

  def test_centroids_without_rows_stay_finite(self):
    x = jnp.tile(toy.rows(2, 3), (4, 1))  # two different rows, five centroids
    got = archetypal.kmeans(jax.random.key(2), x, 5)
    self.assertTrue(np.isfinite(got).all())


if __name__ == "__main__":
  absltest.main()
