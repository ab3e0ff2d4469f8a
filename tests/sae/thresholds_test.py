"""Tests of saejax.sae.thresholds."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax import errors
from saejax.sae import activations, thresholds
from saejax.sae.context import Batch
from tests import toy

N, D, ROWS = 24, 8, 50
X = Batch(x=3 * toy.rows(ROWS, D))
BLOCKS = (1 << 24, 5 * ROWS, 1)  # all latents at once, five, one


def scores(sae, score):
  """max(score, 0) of every row and latent."""
  a = np.asarray(sae.forward(X, engine="dense").pre.a)
  norms = np.linalg.norm(sae.W_dec, axis=-1)
  found = {"value": a, "magnitude": np.abs(a), "norm": a * norms}[score]
  return np.maximum(found, 0)


def bias(by):
  sae = toy.sae(n=N, d=D, prep_=toy.affine(D))
  b = sae.encoder.b + by
  return sae.replace(
    activation=activations.ReLU(), encoder=sae.encoder.replace(b=b)
  )


class BatchTest(parameterized.TestCase):
  @parameterized.product(
    score=["value", "magnitude", "norm"], count=[1, 2, 77, 300]
  )
  def test_is_the_order_statistic_over_rows_and_latents(self, score, count):
    sae = bias(0.3)
    sae = sae.replace(decoder=sae.decoder.replace(W=2 * sae.decoder.W))
    want = np.sort(scores(sae, score), axis=None)[-count]
    for entries in BLOCKS:
      got = thresholds.of_batch(sae, X, count, score=score, entries=entries)
      np.testing.assert_allclose(got, want, rtol=1e-5)

  def test_every_count_is_met_to_the_bit_with_equal_scores(self):
    # One row many times: every score comes seven times.
    sae = bias(0.0)
    many = Batch(x=jnp.tile(X.x[:3], (7, 1)))
    every = np.sort(np.tile(scores(sae, "value")[:3], (7, 1)), axis=None)[::-1]
    positive = int((every > 0).sum())
    for count in range(1, positive + 1, 5):
      got = thresholds.of_batch(sae, many, count, score="value")
      np.testing.assert_allclose(got, every[count - 1], rtol=1e-5)

  def test_fewer_positive_scores_than_asked_for_keep_all(self):
    positive = int((scores(bias(0), "value") > 0).sum())
    of = lambda c: thresholds.of_batch(bias(0), X, c, score="value")
    self.assertGreater(of(positive), 0)
    self.assertEqual(of(positive + 1), 0)

  def test_is_refused_where_no_score_is_positive(self):
    counts = np.full(N, 2)
    for estimate in (
      lambda sae: thresholds.of_batch(sae, X, 3, score="value"),
      lambda sae: thresholds.of_columns(sae, X, counts, score="value"),
    ):
      with self.assertRaisesRegex(errors.InputError, "threshold=none"):
        estimate(bias(-1e3))


class ColumnsTest(parameterized.TestCase):
  @parameterized.parameters("value", "magnitude")
  def test_is_the_order_statistic_of_each_latent(self, score):
    sae, counts = bias(-1.0), np.arange(N) % 13 + 1
    counts[-1] = ROWS
    ranked = -np.sort(-scores(sae, score), axis=0)
    want = ranked[counts - 1, np.arange(N)]
    if score == "value":
      self.assertGreater(np.sum(want == 0), 0)  # fewer are positive
    for entries in BLOCKS:
      got = thresholds.of_columns(sae, X, counts, score=score, entries=entries)
      np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
      self.assertEqual(got.dtype, np.float32)

  @parameterized.parameters("normal", "exponential")
  def test_the_share_of_further_rows_is_unbiased_for_rare_latents(self, kind):
    rows, columns = 256, 4000
    tail = {
      "normal": jax.scipy.stats.norm.sf,
      "exponential": lambda t: jnp.exp(-t),
    }[kind]
    a = getattr(jax.random, kind)(jax.random.key(0), (rows, columns))
    bits = jax.lax.bitcast_convert_type(jnp.maximum(a, 0), jnp.int32)
    for m in (1, 2, 8):
      kth = thresholds._kth_largest(bits, jnp.full(columns, m, jnp.int32))
      theta = jax.lax.bitcast_convert_type(kth, jnp.float32)
      share = np.asarray(tail(theta)) * (rows + 1) / m
      spread = 4 / np.sqrt(m * columns)
      self.assertAlmostEqual(share.mean(), 1, delta=spread)


class SpreadTest(parameterized.TestCase):
  @parameterized.parameters(512, 1000, 32_768)
  def test_whole_rows_keep_the_sum_of_the_shares(self, rows):
    m = np.repeat([1, 2, 9, 512], [30, 60, 5, 1])
    counts = thresholds.spread((m / 512).astype(np.float32), rows)
    self.assertAlmostEqual(counts.sum(), m.sum() * rows / 512, delta=0.5)
    np.testing.assert_array_less(np.abs(counts - m * rows / 512), 1.01)
    if rows == 32_768:
      np.testing.assert_array_equal(counts, m * 64)


if __name__ == "__main__":
  absltest.main()
