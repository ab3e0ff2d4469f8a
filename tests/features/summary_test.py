"""saejax/features/summary.py: what latents do, in one pass."""

import numpy as np
from absl.testing import absltest, parameterized

from saejax import errors
from saejax.data.store import create
from saejax.features import summary
from saejax.sae import activations
from tests import toy


class SummaryTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = self.create_tempdir().full_path
    rng = np.random.default_rng(0)
    self.x = rng.standard_normal((500, 8)).astype(np.float32)
    self.x[100:110] = self.x[:10]  # ties
    self.store = self.written("s", self.x)

  def written(self, name, x):
    return create.write_store(
      f"{self.folder}/{name}",
      x,
      bucket_rows=128,
      shard_rows=64,
      chunk_rows=32,
      shuffle_seed=None,
    )

  def of(self, activation, **options):
    sae = toy.sae(activation=activation)
    return summary.summarise(sae, self.store, **options)

  @parameterized.named_parameters(
    ("sparse", activations.TopK(3)),
    ("dense", activations.ReLU()),
    ("signed", activations.TopK(3, score="magnitude", keep="signed")),
  )
  def test_it_is_that_of_all_latents_at_once(self, activation):
    z = np.asarray(toy.sae(activation=activation).encode(self.x))
    wide = z.astype(np.float64)
    for batch_rows in (48, 4096):
      got = self.of(activation, top=6, batch_rows=batch_rows)
      self.assertEqual(got.rows, 500)
      np.testing.assert_array_equal(got.count, (z != 0).sum(axis=0))
      np.testing.assert_allclose(got.density, (z != 0).mean(axis=0))
      np.testing.assert_allclose(got.sum, wide.sum(axis=0), rtol=1e-5)
      np.testing.assert_allclose(
        got.square, np.square(wide).sum(axis=0), rtol=1e-5
      )
      for latent in range(z.shape[1]):
        order = np.argsort(-z[:, latent], kind="stable")[:6]
        want = order[z[order, latent] > 0]
        values, rows = got.top(latent)
        self.assertEqual(rows.tolist(), want.tolist())
        np.testing.assert_allclose(values, z[want, latent], rtol=1e-5)

  def test_cuts_of_the_rows_change_no_sum(self):
    whole = self.of(activations.TopK(3), batch_rows=500)
    for batch_rows in (7, 64):
      got = self.of(activations.TopK(3), batch_rows=batch_rows)
      np.testing.assert_allclose(got.sum, whole.sum, rtol=1e-6)
      np.testing.assert_array_equal(got.count, whole.count)
      np.testing.assert_array_equal(got.top_rows, whole.top_rows)

  def test_some_latents_are_those_of_all(self):
    whole = self.of(activations.TopK(3))
    some = self.of(activations.TopK(3), latents=[7, 2, 23])
    self.assertEqual(some.latents.tolist(), [2, 7, 23])
    for name in ("count", "sum", "top_values", "top_rows"):
      np.testing.assert_array_equal(
        getattr(some, name), getattr(whole, name)[[2, 7, 23]]
      )
    with self.assertRaisesRegex(ValueError, "latent 3 is not"):
      some.top(3)

  def test_rows_that_are_not_finite_are_left_out(self):
    x = self.x.copy()
    x[5, 0], x[200, 3] = np.nan, np.inf
    self.store = self.written("bad", x)
    got = self.of(activations.TopK(3), top=500)
    self.assertEqual(got.rows, 498)
    self.assertFalse(np.isin([5, 200], got.top_rows).any())
    self.assertTrue(np.isfinite(got.sum).all())

  def test_unknown_latents_and_a_negative_count_are_refused(self):
    with self.assertRaisesRegex(errors.InputError, "latent=24: .*24"):
      self.of(activations.TopK(3), latents=[1, 24])
    with self.assertRaisesRegex(errors.InputError, "top=-1"):
      self.of(activations.TopK(3), top=-1)

  def test_summaries_of_other_latents_do_not_merge(self):
    a = self.of(activations.TopK(3), latents=[1])
    with self.assertRaisesRegex(ValueError, "same latents"):
      a.merged(self.of(activations.TopK(3), latents=[2]))
    with self.assertRaisesRegex(ValueError, "20 rows"):
      a.merged(self.of(activations.TopK(3), latents=[1], top=3))


if __name__ == "__main__":
  absltest.main()
