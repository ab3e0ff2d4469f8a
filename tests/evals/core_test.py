"""saejax/evals/core.py: measures of rows, controls, the record."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from saejax import errors
from saejax.evals import core, in_model, recovery
from saejax.interventions import operators
from saejax.models import model as model_lib
from saejax.models import taps
from saejax.sae import activations
from saejax.sae.prep import Affine
from tests import toy
from tests.evals import in_model_test
from tests.models import golden

SITE = "layers.0.resid_post"


class RowsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.x = rng.normal(1, 2, (5000, 8)).astype(np.float32)
    self.sae = toy.sae(prep_=Affine(centre=jnp.ones(8), scale=jnp.asarray(2.0)))

  def test_measures_are_those_written_out(self):
    mean = self.x.mean(axis=0) + 0.1
    window = np.repeat(np.arange(500), 10)
    got, latents = core.of_rows(self.sae, self.x, mean, window)
    x, z = self.x.astype(np.float64), np.asarray(self.sae.encode(self.x))
    x_hat = np.asarray(self.sae(self.x), np.float64)
    error = np.square(x - x_hat).sum(axis=1)
    out, norm = np.linalg.norm(x_hat, axis=1), np.linalg.norm(x, axis=1)
    active = z != 0
    density = active.mean(axis=0)
    windows = active.reshape(500, 10, -1).any(axis=1).sum(axis=0)
    dense = density > 0.1
    self.assertBetween(dense.sum(), 1, self.sae.n - 1)
    W = toy.unit(self.sae.W_enc)
    cosines = np.asarray(W @ W.T) - 9 * np.eye(self.sae.n)
    want = {
      "rows": 5000,
      "fvu": error.sum() / np.square(x - mean).sum(),
      "mse": error.mean() / 8,
      "cosine": ((x * x_hat).sum(axis=1) / out / norm).mean(),
      "l2_ratio": (out / norm).mean(),
      "relative_bias": np.square(out).sum() / (x * x_hat).sum(),
      "l0": (z != 0).sum(axis=1).mean(),
      "l1": np.abs(z).sum(axis=1).mean(),
      "alive": (density > 0).mean(),
      "dense_1": (density > 0.01).mean(),
      "dense_10": dense.mean(),
      "dense_10_activity": density[dense].sum() / density.sum(),
      "consistent_activation": (active.sum(axis=0) / windows).mean(),
      "max_encoder_cosine": cosines.max(axis=1).mean(),
      "l2_norm_out": out.mean(),
    }
    for name, value in want.items():
      np.testing.assert_allclose(got[name], value, rtol=1e-4, err_msg=name)
    self.assertEqual(got["explained_variance"], 1 - got["fvu"])
    self.assertEqual(sum(got["density_histogram"]["counts"]), self.sae.n)
    np.testing.assert_allclose(
      [one["consistent_activation_heuristic"] for one in latents],
      active.sum(axis=0) / windows,
      rtol=1e-6,
    )

  def test_principal_directions_are_those_of_most_variance(self):
    scales = np.arange(1.0, 9.0)
    x = np.random.default_rng(0).normal(3, scales, (20_000, 8))
    V = recovery.principal_directions(x.astype(np.float32), 2)
    np.testing.assert_allclose(
      np.abs(V @ np.eye(8)[:, [7, 6]]), np.eye(2), atol=0.1
    )
    np.testing.assert_allclose(V @ V.T, np.eye(2), atol=1e-5)

  def test_a_random_dictionary_has_the_shape_and_its_own_seed(self):
    a, b, c = (
      core.random_dictionary(self.x, n=24, k=4, seed=seed) for seed in (0, 0, 1)
    )
    self.assertEqual((a.n, a.d), (24, 8))
    np.testing.assert_array_equal(a.W_dec, b.W_dec)
    self.assertGreater(float(jnp.abs(a.W_dec - c.W_dec).max()), 0.1)
    np.testing.assert_allclose(jnp.linalg.norm(a.W_dec, axis=1), 1, rtol=1e-5)
    self.assertLessEqual(int((a.encode(self.x) != 0).sum(axis=1).max()), 4)


class ModelTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    case = "llama_gqa_tied"
    self.model = model_lib.load(golden.folder(self.create_tempdir(), case))
    rng = np.random.default_rng(0)
    ids = rng.integers(3, self.model.vocabulary, (6, 12)).astype(np.int32)
    real = np.ones(ids.shape, bool)
    self.batches = [in_model_test.tokens(ids, real, real, np.arange(6))]
    x = taps.read(self.model, ids, real, [SITE])[SITE]
    self.x = np.asarray(x).reshape(-1, self.model.d)

  def run_core(self, **saes):
    return core.evaluate(
      saes,
      self.model,
      SITE,
      self.batches,
      x=self.x,
      train=self.x,
      window=np.repeat(np.arange(6), 12),
    )

  def test_each_sae_has_its_controls(self):
    d = self.model.d
    records, found = self.run_core(
      a=toy.sae(d=d, n=2 * d, activation=activations.TopK(2)),
      b=toy.sae(d=d, n=2 * d, activation=activations.TopK(d)),
    )
    self.assertEqual(records.keys(), {"a", "b"})
    for name, record in records.items():
      controls = record["controls"]
      self.assertEqual(controls.keys(), {"zero", "mean", "pca", "random"})
      self.assertEqual(controls["zero"]["ce_recovered"], 0)
      self.assertEqual(record["model"]["ce"], found.mean(name))
      self.assertEqual(record["model"]["tokens"], 66)
      self.assertLen(record["latents"], 2 * d)
      metrics = core.saebench(record)
      self.assertEqual(
        metrics["model_performance_preservation"]["ce_loss_without_sae"],
        found.mean("clean"),
      )
      self.assertEqual(metrics["sparsity"]["l0"], record["rows"]["l0"])
    pca = [records[name]["controls"]["pca"]["kl"] for name in "ab"]
    self.assertLess(pca[1], pca[0])

  def test_all_principal_components_lose_nothing(self):
    d = self.model.d
    V = recovery.principal_directions(self.x, d)
    whole = operators.projection(self.x.mean(axis=0), V)
    edits = {"zero": operators.zero(), "all": whole}
    found = in_model.evaluate(self.model, SITE, edits, self.batches)
    self.assertLess(found.mean("all", "kl"), 1e-6)
    self.assertGreater(found.mean("zero", "kl"), 1e-3)

  def test_another_width_is_refused(self):
    with self.assertRaisesRegex(errors.InputError, "width"):
      self.run_core(a=toy.sae(d=self.model.d + 1))


if __name__ == "__main__":
  absltest.main()
