"""Tests of saejax.evals.reconstruction."""

import tempfile

import flax.struct
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from absl.testing import absltest, parameterized

from saejax import errors
from saejax.data.store import create
from saejax.evals import reconstruction
from saejax.sae import activations, budgets, initial
from saejax.sae.context import Batch
from saejax.sae.latents import SparseLatents
from saejax.sae.prep import Affine, Identity, RowLayerNorm
from tests import toy


def make_sae(activation, n=24, d=12, seed=0, **kwargs):
  return initial.init(
    jax.random.key(seed), n=n, d=d, activation=activation, **kwargs
  )


def rows(count=100, d=12, seed=1):
  rng = np.random.default_rng(seed)
  return (rng.standard_normal((count, d)) + 0.5).astype(np.float32)


def definition(sae, x, mean):
  """The metrics by their definitions, in float64 and with dense latents."""
  out = sae.forward(x)
  z = np.asarray(out.latents.dense())
  frame = np.asarray(out.x, np.float64)
  x_hat = np.asarray(out.x_hat, np.float64)
  error = np.sum((frame - x_hat) ** 2)
  norms = np.linalg.norm(frame, axis=1) * np.linalg.norm(x_hat, axis=1)
  return {
    "nmse": error / np.sum((frame - mean) ** 2),
    "fvu": error / np.sum((frame - frame.mean(0)) ** 2),
    "l0": np.mean(np.sum(z != 0, axis=1)),
    "dead": np.mean(np.all(z == 0, axis=0)),
    "cosine": np.mean(np.sum(frame * x_hat, axis=1) / norms),
    "density": np.mean(z != 0, axis=0),
  }


def evaluate(sae, batches, mean):
  """The metrics of one SAE, the mean being in the frame of its prep."""
  return reconstruction.evaluate_many([sae], batches, means=[mean])[0]


class Shift(flax.struct.PyTreeNode):
  """Stands in for an SAE: x_hat = x + shift, latent `first` always fires."""

  shift: jax.Array
  n: int = flax.struct.field(pytree_node=False, default=4)
  d: int = flax.struct.field(pytree_node=False, default=12)

  def forward(self, batch, stats=None):
    x = batch.x
    latents = SparseLatents(
      values=jnp.stack([x[:, 0], jnp.zeros_like(x[:, 0])], axis=-1),
      indices=jnp.zeros((len(x), 2), jnp.int32),
      n=self.n,
    )
    x_hat = x + self.shift
    return toy.record(latents, x=x).forward.replace(x_hat=x_hat)


class ReconstructionTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("sparse", activations.TopK(3), None),
    ("dense", activations.ReLU(), None),
    (
      "affine_frame",
      activations.TopK(3),
      Affine(centre=jnp.full((12,), 0.4), scale=jnp.asarray(3.0)),
    ),
    ("row_layer_norm", activations.TopK(3), RowLayerNorm()),
  )
  def test_equals_the_definitions(self, activation, prep):
    kwargs = {} if prep is None else {"prep": prep}
    sae = make_sae(activation, **kwargs)
    x, mean = rows(), np.full(12, 0.1, np.float32)
    got = evaluate(sae, [x[:64], x[64:]], mean=mean)
    for name, value in definition(sae, x, mean).items():
      np.testing.assert_allclose(
        getattr(got, name), value, rtol=1e-5, err_msg=name
      )
    self.assertEqual(got.rows, 100)

  def test_batches_do_not_change_the_result(self):
    sae, x = make_sae(activations.TopK(3)), rows(90)
    mean = x.mean(0)
    whole = evaluate(sae, [x], mean=mean)
    for sizes in ((40, 40, 10), (7,) * 12 + (6,), (20, 60, 10)):
      parts = np.split(x, np.cumsum(sizes)[:-1])
      got = evaluate(sae, parts, mean=mean)
      self.assertEqual(got.rows, 90)
      self.assertEqual(got.l0, whole.l0)
      np.testing.assert_array_equal(got.density, whole.density)
      np.testing.assert_allclose(got.nmse, whole.nmse, rtol=1e-5)
      np.testing.assert_allclose(got.fvu, whole.fvu, rtol=1e-5)
      np.testing.assert_allclose(got.cosine, whole.cosine, rtol=1e-5)

  def test_ragged_batches_compile_once(self):
    sae = make_sae(activations.TopK(2), n=20)
    x = rows(130)
    before = reconstruction.batch_sums._cache_size()
    parts = [x[:50], x[50:100], x[100:]]
    evaluate(sae, parts, mean=np.zeros(12, np.float32))
    self.assertEqual(reconstruction.batch_sums._cache_size() - before, 1)

  @parameterized.named_parameters(
    ("batch", activations.Ranked(budgets.Constant(3), "batch"), None),
    ("half", activations.Ranked(budgets.Constant(2.5), "batch"), None),
    ("column", activations.Ranked(budgets.Zipf(3), "column"), 1),
    ("row", activations.Ranked(budgets.Constant(3)), None),
    ("topk", activations.TopK(3), None),
  )
  def test_rows_that_pad_a_batch_take_no_part_in_a_selection(
    self, activation, seed
  ):
    # 50 rows in batches of 40: 30 of the second batch are padding.
    sae = make_sae(activation)
    sae = sae.replace(encoder=sae.encoder.replace(b=jnp.full(24, 9.0)))
    k = getattr(getattr(activation, "budget", activation), "k", None)
    stats = {} if seed is None else {budgets.RANK: jnp.arange(24)[::-1]}
    x, mean = rows(50), np.zeros(12, np.float32)
    evaluated = lambda parts, **kwargs: reconstruction.evaluate_many(
      [sae], parts, means=[mean], stats=[stats], **kwargs
    )[0]
    got = evaluated([x], batch_rows=40)
    self.assertEqual(got.l0, k)
    whole = [evaluated([x[:40]]), evaluated([x[40:]])]
    self.assertEqual(got.l0, (40 * whole[0].l0 + 10 * whole[1].l0) / 50)
    np.testing.assert_allclose(
      got.density, (40 * whole[0].density + 10 * whole[1].density) / 50
    )

  def test_fewer_rows_than_a_budget_of_columns_needs_keep_k_a_row(self):
    sae = make_sae(activations.Ranked(budgets.Zipf(3), "column"))
    sae = sae.replace(encoder=sae.encoder.replace(b=jnp.full(24, 9.0)))
    got = evaluate(
      sae, [rows(44)[:40], rows(44)[40:]], mean=np.zeros(12, np.float32)
    )
    self.assertEqual(got.l0, 3)

  def test_outliers_move_nmse_and_not_fvu(self):
    sae, x = make_sae(activations.TopK(3)), rows(200)
    moved = np.concatenate([x, 2000 * rows(2, seed=5)]).mean(0)
    near, far = (evaluate(sae, [x], mean=m) for m in (x.mean(0), moved))
    np.testing.assert_allclose(near.fvu, far.fvu, rtol=1e-4)
    self.assertLess(far.nmse, 0.5 * near.nmse)

  def test_targets_that_are_not_finite_leave_their_row_out(self):
    sae = make_sae(activations.TopK(3), target_prep=Identity(), d_target=12)
    x, y = rows(30), rows(30, seed=7)
    y[4, 2] = np.nan
    got = evaluate(sae, [Batch(x=x, target=y)], mean=np.zeros(12, np.float32))
    self.assertEqual((got.rows, got.nonfinite_rows), (29, 1))
    self.assertTrue(np.isfinite(got.fvu))

  def test_predicting_the_mean_has_nmse_one(self):
    x = rows()
    sae = make_sae(activations.TopK(1))
    sae = sae.replace(
      decoder=sae.decoder.replace(
        W=jnp.zeros_like(sae.decoder.W), b=jnp.asarray(x.mean(0))
      )
    )
    got = evaluate(sae, [x], mean=x.mean(0))
    self.assertAlmostEqual(got.nmse, 1.0, places=5)
    self.assertAlmostEqual(got.fvu, 1.0, places=5)

  def test_fvu_is_about_the_rows_own_mean_whatever_the_mean_given(self):
    sae, x = make_sae(activations.TopK(3)), rows()
    near = evaluate(sae, [x], mean=x.mean(0))
    far = evaluate(sae, [x], mean=x.mean(0) + 3)
    np.testing.assert_allclose(near.fvu, far.fvu, rtol=1e-5)
    self.assertLess(far.nmse, 0.2 * near.nmse)

  def test_padding_values_do_not_fire(self):
    x = np.abs(rows()) + 0.1
    got = evaluate(Shift(jnp.zeros(12)), [x], mean=np.zeros(12, np.float32))
    np.testing.assert_array_equal(got.density, [1, 0, 0, 0])
    self.assertEqual(got.dead, 0.75)
    self.assertEqual(got.l0, 1.0)
    self.assertEqual(got.nmse, 0.0)

  def test_counts_are_exact_beyond_2_to_the_24(self):
    x = rows(10)
    sae = Shift(jnp.zeros(12))
    one = reconstruction.batch_sums(
      sae, x, np.ones(10, bool), np.zeros(12, np.float32)
    )
    many = reconstruction.init(4, 12).replace(
      rows=np.int64(2**40), fired=np.full(4, 2**40)
    )
    got = reconstruction.merge(many, one)
    self.assertEqual(int(got.rows), 2**40 + 10)
    self.assertEqual(int(got.fired[0]), 2**40 + 10)
    self.assertEqual(got.fired.dtype, np.int64)
    self.assertEqual(np.asarray(got.error).dtype, np.float64)

  def test_merge_of_two_halves_is_the_whole(self):
    sae, x = make_sae(activations.TopK(3)), rows(80)
    real, mean = np.ones(40, bool), np.zeros(12, np.float32)
    half = [
      reconstruction.update(reconstruction.init(24, 12), sae, part, real, mean)
      for part in (x[:40], x[40:])
    ]
    merged = reconstruction.compute(reconstruction.merge(*half))
    whole = evaluate(sae, [x[:40], x[40:]], mean=mean)
    self.assertEqual(merged.nmse, whole.nmse)
    np.testing.assert_array_equal(merged.density, whole.density)

  def test_one_reading_serves_members_of_any_shape(self):
    saes = [
      make_sae(activations.TopK(2)),
      make_sae(activations.TopK(4), n=40, seed=3),
      make_sae(activations.ReLU()),
    ]
    x = rows()
    means = [np.zeros(12, np.float32), x.mean(0), x.mean(0)]
    read = iter([x[:60], x[60:]])  # cannot be read twice
    together = reconstruction.evaluate_many(saes, read, means=means)
    for sae, mean, got in zip(saes, means, together, strict=True):
      alone = evaluate(sae, [x[:60], x[60:]], mean=mean)
      self.assertEqual(got.record(), alone.record())

  def test_stored_bfloat16_rows_are_taken(self):
    sae, x = make_sae(activations.TopK(3)), rows()
    low = x.astype(ml_dtypes.bfloat16)
    got = evaluate(sae, [low], mean=x.mean(0))
    same = evaluate(sae, [low.astype(np.float32)], mean=x.mean(0))
    self.assertEqual(got.nmse, same.nmse)

  def test_rows_that_are_not_finite_are_counted_and_left_out(self):
    sae, x = make_sae(activations.TopK(3)), rows()
    broken = np.concatenate([x, np.full((3, 12), np.nan, np.float32)])
    broken[-1] = 1
    broken[-1, 4] = np.inf
    got = evaluate(sae, [broken], mean=x.mean(0))
    want = evaluate(sae, [x], mean=x.mean(0))
    self.assertEqual((got.rows, got.nonfinite_rows), (100, 3))
    np.testing.assert_allclose(got.nmse, want.nmse, rtol=1e-6)
    np.testing.assert_array_equal(got.density, want.density)

  def test_weights_that_are_not_finite_show(self):
    got = evaluate(
      Shift(jnp.full(12, jnp.nan)), [rows()], mean=np.zeros(12, np.float32)
    )
    self.assertTrue(np.isnan(got.nmse) and np.isnan(got.cosine))

  def test_no_rows_is_refused(self):
    sae = make_sae(activations.TopK(3))
    for batches in ([], [np.full((4, 12), np.nan, np.float32)]):
      with self.assertRaisesRegex(errors.InputError, "held_out_rows=0"):
        evaluate(sae, batches, mean=np.zeros(12, np.float32))

  def test_no_dense_latents_on_the_sparse_path(self):
    B, n = 33, 4099
    sae = make_sae(activations.TopK(3), n=n)
    text = str(
      jax.make_jaxpr(reconstruction._fired)(
        SparseLatents(jnp.ones((B, 3)), jnp.zeros((B, 3), jnp.int32), sae.n),
        jnp.ones(B, bool),
      )
    )
    self.assertIn(f"[{n}]", text)
    self.assertNotIn(f"[{B},{n}]", text)

  def test_histogram_counts_every_live_latent(self):
    got = reconstruction.Reconstruction(
      rows=10,
      nonfinite_rows=0,
      nmse=0.1,
      fvu=0.1,
      l0=1.0,
      dead=0.2,
      cosine=0.9,
      density=np.array([0.0, 1e-9, 1e-3, 0.5, 1.0]),
    )
    histogram = got.histogram()
    self.assertEqual(sum(histogram["counts"]), 4)
    self.assertEqual(histogram["counts"][0], 1)
    self.assertLen(histogram["log10_edges"], len(histogram["counts"]) + 1)


class FrameMeanTest(parameterized.TestCase):
  def test_linear_preps_map_the_mean_and_layer_norm_averages_rows(self):
    x = rows(700)
    folder = self.enter_context(tempfile.TemporaryDirectory())
    store = create.write_store(
      f"{folder}/s", x, bucket_rows=256, shard_rows=128, chunk_rows=64
    )
    affine = Affine(centre=jnp.full((12,), 0.4), scale=jnp.asarray(3.0))
    for prep in (affine, RowLayerNorm()):
      want = np.asarray(prep.apply(x)[0], np.float64).mean(0)
      got = reconstruction.frame_mean(prep, store)
      np.testing.assert_allclose(got, want, atol=1e-6)
    part = reconstruction.frame_mean(RowLayerNorm(), store, max_rows=100)
    first = store.read(0, 100)
    want = np.asarray(RowLayerNorm().apply(first)[0]).mean(0)
    np.testing.assert_allclose(part, want, atol=1e-6)


if __name__ == "__main__":
  absltest.main()
