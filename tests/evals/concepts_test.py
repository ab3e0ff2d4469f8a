"""Tests of saejax.evals.concepts: two sets of rows, one concept gone."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from saejax.errors import InputError
from saejax.evals import concepts
from saejax.sae import activations, decoders, encoders, prep
from saejax.sae.sae import SAE

N, GONE = 20, 7


def sae():
  """Latents that are the coordinates of x where they are positive."""
  eye = np.eye(N, dtype=np.float32)
  return SAE(
    prep=prep.Identity(),
    encoder=encoders.Affine(W=jnp.asarray(eye), b=jnp.zeros((N,))),
    activation=activations.ReLU(),
    decoder=decoders.Free(W=jnp.asarray(2 * eye), b=jnp.zeros((N,))),
  )


def images():
  """[50, 30, 20]: each concept on at a rate of its own, with mean size 1."""
  rng = np.random.default_rng(0)
  on = rng.random((50, 30, N)) < np.linspace(0.1, 0.5, N)
  return (on * rng.uniform(0.5, 1.5, on.shape)).astype(np.float32)


class ConceptsTest(absltest.TestCase):
  def test_means_and_rates_are_those_of_all_patches(self):
    x = images()
    found = concepts.concepts(sae(), x, batch_rows=400)  # and a rest of 300
    np.testing.assert_allclose(found.mean, x.mean(axis=(0, 1)), rtol=1e-5)
    np.testing.assert_array_equal(found.rate, (x != 0).mean(axis=(0, 1)))
    np.testing.assert_allclose(
      found.energy(np.asarray(sae().W_dec)), 2 * found.mean, rtol=1e-6
    )

  def test_of_one_distribution_every_concept_is_at_one_half(self):
    real = concepts.concepts(sae(), images())
    found = concepts.shift(real, real)
    np.testing.assert_array_equal(found.delta, 0.5)
    self.assertEqual(found.skewness, 0.0)
    self.assertTrue(np.isnan(found.frequency_correlation))
    self.assertEmpty(found.suppressed)
    self.assertEmpty(found.exaggerated)

  def test_a_concept_that_is_left_out_alone_falls(self):
    x = images()
    without, more = x.copy(), x.copy()
    without[..., GONE] = 0
    more[..., GONE] += 3
    real = concepts.concepts(sae(), x)
    fallen = concepts.shift(real, concepts.concepts(sae(), without))
    others = np.delete(fallen.delta, GONE)
    np.testing.assert_array_equal(others, 0.5)
    self.assertLess(fallen.delta[GONE], 0.3)  # a mean of about 0.7 s is gone
    self.assertEqual(np.argmin(fallen.delta), GONE)
    self.assertLess(fallen.skewness, -1)
    risen = concepts.shift(real, concepts.concepts(sae(), more))
    self.assertEqual(list(risen.exaggerated), [GONE])
    self.assertEmpty(risen.suppressed)
    self.assertGreater(risen.skewness, 1)

  def test_the_scale_of_the_latents_does_not_matter(self):
    x = images()
    two = [concepts.concepts(sae(), part) for part in (x[:25], x[25:])]
    ten = [concepts.concepts(sae(), 10 * part) for part in (x[:25], x[25:])]
    np.testing.assert_allclose(
      concepts.shift(*two).delta, concepts.shift(*ten).delta, rtol=1e-5
    )

  def test_refuses_sets_that_cannot_be_compared(self):
    real = concepts.concepts(sae(), images())
    other = concepts.Concepts(real.mean[:5], real.rate[:5])
    with self.assertRaisesRegex(InputError, "^generated="):
      concepts.shift(real, other)
    silent = concepts.Concepts(0 * real.mean, 0 * real.rate)
    with self.assertRaisesRegex(InputError, "^real="):
      concepts.shift(silent, real)
    with self.assertRaisesRegex(InputError, "^x="):
      concepts.concepts(sae(), np.zeros((0, N), np.float32))


if __name__ == "__main__":
  absltest.main()
