"""Tests of saejax.evals.error.gradient_pursuit."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from saejax.errors import InputError
from saejax.evals.error import dark_matter, gradient_pursuit
from saejax.sae import activations, decoders, encoders, jumprelu, prep
from saejax.sae.sae import SAE
from tests import toy


def sae(W, k=5, scale=1.0, b=0.0):
  """TopK with these decoder rows, and a poor encoder."""
  n, d = W.shape
  noise = np.random.default_rng(9).standard_normal((n, d)).astype(np.float32)
  return SAE(
    prep=prep.Affine(centre=jnp.zeros((d,)), scale=jnp.float32(scale)),
    encoder=encoders.Affine(W=jnp.asarray(W + noise), b=jnp.zeros((n,))),
    activation=activations.TopK(k),
    decoder=decoders.Free(W=jnp.asarray(W), b=jnp.full((d,), b, jnp.float32)),
  )


def planted(n=16, rows=40, active=5):
  """An orthonormal dictionary and codes with a fixed number active."""
  rng = np.random.default_rng(0)
  D = np.linalg.qr(rng.standard_normal((n, n)))[0].astype(np.float32)
  z = np.zeros((rows, n), np.float32)
  for row in z:
    row[rng.choice(n, active, replace=False)] = rng.uniform(0.5, 2, active)
  return D, z


class PursuitTest(absltest.TestCase):
  def test_an_orthonormal_dictionary_is_recovered_in_l0_steps(self):
    D, z = planted()
    x = z @ D + 0.25
    found = gradient_pursuit.pursue(sae(D, b=0.25), x, steps=5)
    np.testing.assert_allclose(found.latents.dense(), z, atol=1e-5)
    np.testing.assert_allclose(found.x_hat, x, atol=1e-5)

  def test_the_residual_never_grows(self):
    D, z = planted()
    W = np.concatenate([D, toy.unit(toy.rows(24, 16))]).astype(np.float32)
    for rows, x in ((D, z @ D), (W, np.asarray(toy.rows(40, 16)))):
      before = np.linalg.norm(x, axis=1)
      for steps in (1, 3, 4, 5, 8):
        found = gradient_pursuit.pursue(sae(rows), x, steps=steps)
        after = np.linalg.norm(x - np.asarray(found.x_hat), axis=1)
        self.assertTrue((after <= before + 1e-5).all())
        before = after
      self.assertLess(after.mean(), 0.7 * np.linalg.norm(x, axis=1).mean())

  def test_each_row_takes_the_steps_of_its_own_l0(self):
    D, z = planted()
    few = jumprelu.JumpReLU(theta=jnp.full((16,), 0.8))
    made = sae(D).replace(activation=few)
    _, l0 = dark_matter.reconstructor(made)(z @ D)
    self.assertGreater(len(set(l0)), 3)
    found = gradient_pursuit.pursue(made, z @ D)
    count = np.asarray(found.latents.count())
    np.testing.assert_array_equal(count[l0 <= 5], l0[l0 <= 5])
    self.assertTrue((count <= l0).all())
    x_hat, counts = gradient_pursuit.reconstructor(made, batch_rows=16)(z @ D)
    np.testing.assert_allclose(x_hat, found.x_hat, atol=1e-6)
    np.testing.assert_array_equal(counts, found.latents.count())

  def test_it_improves_on_a_poor_encoder_with_as_many_latents(self):
    W = np.asarray(toy.unit(toy.rows(48, 16)))
    x = np.asarray(toy.rows(200, 16, seed=3))
    made = sae(W, k=4, scale=3.0)
    x_hat, _ = dark_matter.reconstructor(made)(x)
    own = np.square(x - x_hat).sum()
    found = gradient_pursuit.pursue(made, x)
    self.assertLess(np.square(x - np.asarray(found.x_hat)).sum(), 0.8 * own)
    self.assertLessEqual(int(found.latents.count().max()), 4)

  def test_one_step_is_that_of_the_definition(self):
    W = np.asarray(toy.rows(6, 3))  # not of unit norm
    x = np.asarray(toy.rows(5, 3, seed=2))
    found = gradient_pursuit.pursue(sae(W, k=2), x, steps=5)
    for row, z in zip(x, np.asarray(found.latents.dense()), strict=True):
      want = np.zeros(6)
      for _ in range(5):  # some latents are chosen again
        r = row - want @ W
        on = want != 0
        on[np.argmax(W @ r)] = True
        g = np.where(on, W @ r, 0)
        v = g @ W
        want = np.maximum(want + (v @ r) / (v @ v) * g, 0)
      np.testing.assert_allclose(z, want, atol=1e-5)

  def test_no_steps_and_negative_steps(self):
    D, z = planted()
    found = gradient_pursuit.pursue(sae(D), z @ D, steps=0)
    self.assertEqual(int(found.latents.count().sum()), 0)
    with self.assertRaisesRegex(InputError, "^steps=-1: must be at least 0"):
      gradient_pursuit.pursue(sae(D), z @ D, steps=-1)


if __name__ == "__main__":
  absltest.main()
