"""saejax/models/ops.py and the parts of the families with a closed form."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.models import bert, llama, ops


class AttentionTest(parameterized.TestCase):
  @parameterized.product(heads=[1, 4, 6], shared=[1, 2])
  def test_equals_the_definition_head_by_head(self, heads, shared):
    B, T, h = 2, 5, 4
    q, k, v = (
      np.random.default_rng(i).normal(size=(B, T, n, h)).astype(np.float32)
      for i, n in enumerate((heads * shared, heads, heads))
    )
    visible = np.random.default_rng(3).random((B, T, T)) < 0.6
    visible[:, :, 0] = True
    got = ops.attention(
      jnp.asarray(q), jnp.asarray(k), jnp.asarray(v), jnp.asarray(visible), 0.7
    ).reshape(B, T, heads * shared, h)
    for i in range(heads * shared):
      scores = 0.7 * q[:, :, i] @ k[:, :, i // shared].swapaxes(1, 2)
      p = np.where(visible, np.exp(scores), 0)
      p /= p.sum(-1, keepdims=True)
      want = p @ v[:, :, i // shared]
      np.testing.assert_allclose(got[:, :, i], want, atol=1e-5)

  def test_a_query_that_sees_nothing_is_finite(self):
    q = jnp.full((1, 3, 2, 4), 1e3)
    out = ops.attention(q, q, q, jnp.zeros((1, 1, 3), bool), 1.0)
    np.testing.assert_allclose(out, 1e3)

  def test_large_scores_do_not_overflow(self):
    q = jnp.full((1, 3, 2, 4), 1e4)
    out = ops.attention(q, q, q, jnp.ones((1, 1, 3), bool), 1.0)
    np.testing.assert_allclose(out, 1e4)


class PositionsTest(absltest.TestCase):
  def test_count_real_tokens(self):
    mask = jnp.array([[1, 1, 1, 0], [0, 0, 1, 1], [0, 1, 0, 1], [0] * 4], bool)
    want = [[0, 1, 2, 2], [0, 0, 0, 1], [0, 0, 0, 1], [0] * 4]
    self.assertEqual(ops.positions(mask).tolist(), want)

  def test_causal_mask_hides_what_comes_later_and_padding(self):
    got = ops.causal(jnp.array([[False, True, True]]))
    want = [[[False] * 3, [False, True, False], [False, True, True]]]
    self.assertEqual(got.tolist(), want)


class ActivationsTest(absltest.TestCase):
  def test_gelu_is_x_times_the_normal_distribution_function(self):
    x = np.linspace(-8, 8, 1001, dtype=np.float32)
    want = [0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x.tolist()]
    got = ops.ACTIVATIONS["gelu"](jnp.asarray(x))
    np.testing.assert_allclose(got, want, atol=1e-6)


class NormTest(absltest.TestCase):
  def test_rms_norm_has_unit_mean_square(self):
    x = jax.random.normal(jax.random.key(0), (2, 3, 64)) * 5 + 1
    h = ops.rms_norm(x, jnp.ones(64), 1e-12)
    np.testing.assert_allclose(jnp.mean(h * h, axis=-1), 1, rtol=1e-5)


class RopeTest(parameterized.TestCase):
  def test_scores_depend_on_the_distance_alone(self):
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 16))
    omega = jnp.asarray(llama.frequencies(llama.Rope(10000.0), 16))

    def score(i, j):
      turned = [
        llama.rotate(x, jnp.full((1, 1, 1), p, jnp.float32) * omega[None, None])
        for x, p in ((q, i), (k, j))
      ]
      return float(jnp.sum(turned[0] * turned[1]))

    self.assertAlmostEqual(score(0, 0), float(jnp.sum(q * k)), places=5)
    self.assertAlmostEqual(score(7, 3), score(104, 100), places=3)
    self.assertNotAlmostEqual(score(7, 3), score(7, 4), places=2)

  def test_llama3_keeps_fast_and_divides_slow_frequencies(self):
    plain = llama.Rope(10000.0)
    scaled = dataclasses.replace(
      plain, kind="llama3", factor=8.0, low=1.0, high=4.0, original=512.0
    )
    omega = llama.frequencies(plain, 64)
    got = llama.frequencies(scaled, 64)
    wavelength = 2 * np.pi / omega
    fast, slow = wavelength < 512 / 4, wavelength > 512
    np.testing.assert_array_equal(got[fast], omega[fast])
    np.testing.assert_allclose(got[slow], omega[slow] / 8, rtol=1e-6)
    between = ~fast & ~slow
    self.assertTrue(fast.any() and slow.any() and between.any())
    self.assertTrue((got[between] < omega[between]).all())
    self.assertTrue((got[between] > omega[between] / 8).all())

  def test_linear_divides_all(self):
    plain = llama.Rope(500.0)
    halved = llama.Rope(500.0, "linear", 2.0)
    np.testing.assert_allclose(
      llama.frequencies(halved, 8) * 2, llama.frequencies(plain, 8)
    )


class SentenceEmbeddingTest(absltest.TestCase):
  def test_is_the_unit_mean_of_real_tokens(self):
    h = jnp.array([[[3.0, 0.0], [0.0, 4.0], [jnp.nan, 9.0]]])
    mask = jnp.array([[True, True, False]])
    got = bert.sentence_embedding(h, mask)
    np.testing.assert_allclose(got, [[0.6, 0.8]], rtol=1e-6)

  def test_an_empty_row_gives_zero(self):
    h, mask = jnp.ones((1, 3, 2)), jnp.zeros((1, 3), bool)
    np.testing.assert_array_equal(bert.sentence_embedding(h, mask), [[0, 0]])


if __name__ == "__main__":
  absltest.main()
