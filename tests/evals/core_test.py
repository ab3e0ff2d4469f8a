"""saejax/evals/core.py: measures of rows, controls, the record."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from saejax import errors
from saejax.evals import (
  core,
  core_controls,
  core_rows,
  in_model,
  reconstruction,
  recovery,
)
from saejax.interventions import operators
from saejax.models import model as model_lib
from saejax.models import taps
from saejax.sae import activations, condition_preps, initial
from saejax.sae.prep import Affine, Skip
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
    x = self.x.reshape(5, 100, 10, 8)
    # Tokens that are no rows are in no sum.
    x = np.concatenate([x, np.full_like(x, 9)[:, :, :2]], axis=2)
    rows = np.broadcast_to(np.arange(12) < 10, x.shape[:3])
    sums = core_rows.nothing(self.sae)
    for one, use in zip(x, rows, strict=True):
      found = core_rows.batch(self.sae, one, one, use, mean)
      sums = reconstruction.merge(sums, found)
    got, latents = core_rows.measures(self.sae, sums)
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
    facts = core_controls.training({}, self.x)
    a, b, c = (
      core_controls.random_dictionary(facts, n=24, k=4, seed=seed)
      for seed in (0, 0, 1)
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
      train=self.x,
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
      kinds = {"identity", "zero", "mean", "pca", "random"}
      self.assertEqual(controls.keys(), kinds)
      self.assertEqual(controls["identity"]["ce"], found.mean("clean"))
      np.testing.assert_allclose(controls["mean"]["fvu"], 1, rtol=1e-4)
      self.assertLess(controls["pca"]["fvu"], 1)
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

  def test_controls_of_equal_shape_and_k_are_computed_once(self):
    d = self.model.d
    sae = toy.sae(d=d, n=2 * d, activation=activations.TopK(2))
    other = toy.sae(d=d, n=2 * d, activation=activations.TopK(2), seed=1)
    _, found = self.run_core(a=sae, b=other)
    self.assertLen(found.names, 6)  # zero, mean, pca, random, a, b

  def test_what_cannot_be_evaluated_is_refused_by_name(self):
    d = self.model.d
    cond = condition_preps.scaled(jnp.ones(2), d)
    target = initial.init(
      jax.random.key(0),
      d=d,
      n=8,
      activation=activations.TopK(2),
      d_target=d,
    )
    for sae, rule in (
      (toy.sae(d=d + 1), "width"),
      (toy.sae(d=d, prep_=cond), "condition of each row"),
      (target, "a transcoder.*harvest.target_point"),
    ):
      with self.assertRaisesRegex(errors.InputError, rf"(?s)sae=one: .*{rule}"):
        self.run_core(one=sae)
    with self.assertRaisesRegex(errors.InputError, "name of a control"):
      self.run_core(zero=toy.sae(d=d))


class TranscoderTest(absltest.TestCase):
  """mlp_in of a layer to its mlp_out."""

  SOURCE, TARGET = "layers.0.mlp_in", "layers.0.mlp_out"

  def setUp(self):
    super().setUp()
    case = "llama_gqa_tied"
    self.model = model_lib.load(golden.folder(self.create_tempdir(), case))
    rng = np.random.default_rng(0)
    self.ids = rng.integers(3, self.model.vocabulary, (6, 12)).astype(np.int32)
    self.real = np.ones(self.ids.shape, bool)
    self.keep = self.real & (np.arange(12) > 0)
    self.found = taps.read(
      self.model, self.ids, self.real, [self.SOURCE, self.TARGET]
    )
    self.x, self.y = (
      np.asarray(self.found[s])[self.keep] for s in (self.SOURCE, self.TARGET)
    )

  def evaluate(self, sae):
    tokens = in_model_test.tokens(self.ids, self.real, self.keep, np.arange(6))
    records, found = core.evaluate(
      {"t": sae},
      self.model,
      self.TARGET,
      [tokens],
      train=self.x,
      target=self.y,
      source=self.SOURCE,
    )
    return records["t"], found

  def transcoder(self, **more):
    d = self.model.d
    return initial.init(
      jax.random.key(0),
      d=d,
      n=4 * d,
      activation=activations.TopK(4),
      d_target=d,
      **more,
    )

  def test_its_output_replaces_the_target_and_controls_are_of_the_target(self):
    sae = self.transcoder()
    record, found = self.evaluate(sae)
    y_hat = np.asarray(sae(self.x))
    fvu = np.square(self.y - y_hat).sum()
    fvu /= np.square(self.y - self.y.mean(axis=0)).sum()
    np.testing.assert_allclose(record["rows"]["fvu"], fvu, rtol=1e-4)
    kinds = {"identity", "zero", "mean", "random"}
    self.assertEqual(record["controls"].keys(), kinds)
    np.testing.assert_allclose(record["controls"]["mean"]["fvu"], 1, rtol=1e-4)
    put = jnp.where(
      self.keep[..., None],
      sae(self.found[self.SOURCE]),
      self.found[self.TARGET],
    )
    logits = taps.write(
      self.model, self.ids, self.real, {self.TARGET: lambda h: put}
    )
    log_q = jax.nn.log_softmax(logits)[:, :-1]
    ce = -jnp.take_along_axis(log_q, self.ids[:, 1:, None], 2)[..., 0]
    want = np.asarray(ce)[self.keep[:, :-1]].mean()
    np.testing.assert_allclose(found.mean("t"), want, rtol=1e-5)
    self.assertGreater(abs(found.mean("t") - found.mean("clean")), 1e-4)

  def test_it_reads_what_earlier_edits_leave(self):
    sae = self.transcoder()
    edits = operators.transcode(sae, self.SOURCE, self.TARGET)
    half = {"layers.0.resid_mid": lambda h: h / 2}
    found = {}

    def keep(h):
      found["out"] = h
      return h

    after = {"layers.0.resid_post": lambda h: h, "layers.1.resid_pre": keep}
    taps.write(self.model, self.ids, self.real, half | edits | after)
    x = taps.read(self.model, self.ids, self.real, ["layers.0.resid_mid"])
    mid = x["layers.0.resid_mid"] / 2
    seen = {}
    taps.write(
      self.model,
      self.ids,
      self.real,
      half | {self.SOURCE: lambda h: seen.setdefault("x", h)},
    )
    want = mid + sae(seen["x"])
    np.testing.assert_allclose(found["out"], want, rtol=1e-4, atol=1e-5)

  def test_a_skip_connection_that_is_the_target_loses_nothing(self):
    d = self.model.d
    W, *_ = np.linalg.lstsq(self.x, self.y, rcond=None)
    sae = self.transcoder(target_prep=Skip(W=jnp.asarray(W.T)))
    dead = sae.replace(decoder=sae.decoder.replace(W=jnp.zeros((4 * d, d))))
    record, _ = self.evaluate(dead)
    fvu = np.square(self.y - self.x @ W).sum()
    fvu /= np.square(self.y - self.y.mean(axis=0)).sum()
    np.testing.assert_allclose(record["rows"]["fvu"], fvu, rtol=1e-3)
    self.assertGreater(record["model"]["kl_recovered"], 0)


if __name__ == "__main__":
  absltest.main()
