"""Tests of saejax.evals.geometry, shrinkage, cost and truncation."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from saejax.evals import cost, geometry, shrinkage, truncation
from saejax.sae import activations, initial

D, N = 6, 6


def identity(scale=1.0, activation=None):
  """An SAE whose latents are the coordinates, decoded `scale` times as long."""
  sae = initial.init(
    jax.random.key(0),
    n=N,
    d=D,
    activation=activation or activations.ReLU(),
    centre=False,
  )
  eye = jnp.eye(D)
  return sae.replace(
    encoder=sae.encoder.replace(W=eye),
    decoder=sae.decoder.replace(W=scale * eye),
  )


class GeometryTest(absltest.TestCase):
  def test_mean_max_cosine(self):
    W = np.array([[1, 0], [0, 2], [3, 3]], np.float32)
    self.assertAlmostEqual(geometry.mean_max_cosine(W), 0.5**0.5, places=6)
    with self.assertRaisesRegex(ValueError, "2 rows"):
      geometry.mean_max_cosine(W[:1])

  def test_latents_that_fire_together_depend_on_each_other(self):
    on = np.zeros((8, D), np.float32)
    on[::2, 0] = on[::2, 1] = 1  # always together
    found = geometry.dependence(identity(), on)
    self.assertAlmostEqual(found["dependence"], 1, places=5)
    self.assertAlmostEqual(found["mean_square"], 1, places=6)
    on[:, 1] = [1, 1, 0, 0, 1, 1, 0, 0]  # independent of the first
    self.assertAlmostEqual(
      geometry.dependence(identity(), on)["dependence"], 0, places=6
    )

  def test_shrinkage_is_how_far_the_best_stretch_is_from_one(self):
    x = np.abs(np.random.default_rng(0).normal(size=(16, D))).astype("float32")
    self.assertAlmostEqual(shrinkage.shrinkage(identity(), x), 0, places=6)
    short = shrinkage.shrinkage(identity(0.8), x)
    self.assertAlmostEqual(short, 0.25, places=5)

  def test_cost_counts_parameters_and_the_encoders_operations(self):
    found = cost.cost(identity(), np.ones((4, D), np.float32))
    self.assertEqual(found["parameters"], 2 * N * D + N + D)
    self.assertGreaterEqual(found["encode_flops"], 2 * N * D)
    self.assertLess(found["encode_flops"], 4 * N * D)

  def test_fvu_with_fewer_latents(self):
    x = np.diag(np.arange(1, D + 1)).astype(np.float32) + 0.5 * np.eye(D)[::-1]
    x = x.astype(np.float32)
    at = lambda sae, ks: truncation.fvu_at(
      sae, lambda: [x], ks, mean=x.mean(axis=0)
    )
    found = at(identity(activation=activations.TopK(3)), (1, 2, 4))
    self.assertEqual(list(found), [1, 2])  # 4 is above its k
    self.assertAlmostEqual(found[2], 0, places=6)
    spread = np.sum((x - x.mean(axis=0)) ** 2)
    self.assertAlmostEqual(found[1], D * 0.25 / spread, places=5)
    self.assertEqual(at(identity(), (2,)), {2: found[2]})
    theta = activations.Threshold(jnp.zeros(()))
    self.assertEqual(at(identity(activation=theta), (2,)), {})


if __name__ == "__main__":
  absltest.main()
