"""Tests of saejax.evals.held_out: `saejax.evaluate`."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

import saejax
from saejax.errors import InputError
from saejax.sae import activations, prep
from saejax.sae.context import Batch

D, N = 12, 24
RNG = np.random.default_rng(0)
X = (RNG.normal(size=(5000, D)) + 3).astype(np.float32)
MEAN = X.mean(axis=0)
PREP = prep.Affine(centre=jnp.asarray(MEAN), scale=jnp.asarray(12.5))


def sae(activation=None, **parts):
  parts = {"prep": PREP, **parts}
  return saejax.init(
    jax.random.key(0),
    d=D,
    n=N,
    activation=activation or activations.TopK(3),
    **parts,
  )


def expected(model, x):
  x_hat = np.asarray(model(x))
  error = np.sum((x - x_hat) ** 2)
  return error / np.sum((x - x.mean(axis=0)) ** 2)


class EvaluateTest(parameterized.TestCase):
  def test_the_natural_mean_gives_the_share_of_variance(self):
    model = sae()
    found = saejax.evaluate(model, X, mean=MEAN)
    np.testing.assert_allclose(found.nmse, expected(model, X), rtol=1e-4)
    np.testing.assert_allclose(found.fvu, found.nmse, rtol=1e-4)
    framed = saejax.evaluate(model, X, mean=MEAN, units="prep")
    np.testing.assert_allclose(framed.nmse, found.nmse, rtol=1e-3)

  def test_without_a_mean_there_is_fvu_and_no_nmse(self):
    found = saejax.evaluate(sae(), X)
    self.assertTrue(np.isnan(found.nmse))
    np.testing.assert_allclose(found.fvu, expected(sae(), X), rtol=1e-4)

  def test_a_store_an_array_a_batch_a_list_and_an_iterator_agree(self):
    store = saejax.write_store(
      self.create_tempdir().full_path + "/store", {"x": X}
    )
    stored = np.concatenate([store.read(*rows) for rows in store.intervals])
    whole = saejax.evaluate(sae(), X, mean=store)
    for rows in (
      store,
      jnp.asarray(stored),
      Batch(x=X),
      iter([X[:3000], X[3000:]]),
    ):
      found = saejax.evaluate(sae(), rows, mean=MEAN)
      self.assertEqual(found.rows, 5000)
      np.testing.assert_allclose(found.fvu, whole.fvu, rtol=1e-5)
      np.testing.assert_allclose(found.nmse, whole.nmse, rtol=1e-4)
    few = saejax.evaluate(sae(), X[:3].tolist())
    self.assertEqual(few.rows, 3)

  def test_a_selection_over_the_batch_does_not_count_padding(self):
    model = sae(activations.BatchTopK(8), prep=prep.Identity())
    model = model.replace(encoder=model.encoder.replace(b=jnp.full(N, 9.0)))
    self.assertEqual(saejax.evaluate(model, X).l0, 8)

  def test_bad_arguments_are_refused(self):
    with self.assertRaisesRegex(InputError, "units=raw"):
      saejax.evaluate(sae(), X, units="raw")
    with self.assertRaisesRegex(ValueError, r"mean must be \[12\], got \[3\]"):
      saejax.evaluate(sae(), X, mean=np.zeros(3))
    model = sae(prep=prep.RowLayerNorm())
    with self.assertRaisesRegex(InputError, "RowLayerNorm.*training store"):
      saejax.evaluate(model, X, mean=MEAN, units="prep")
    with self.assertRaisesRegex(ValueError, r"\[..., 12\], got \[.*10\]"):
      saejax.evaluate(sae(), X[:, :10])


if __name__ == "__main__":
  absltest.main()
