"""saejax/models/ops.py and the parts of the families with a closed form."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.models import bert, ops, rotary


def by_head(x):
  """Keys or values [B, S, K, h] as `attention` takes them."""
  return jnp.asarray(x).swapaxes(1, 2)


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
      jnp.asarray(q), by_head(k), by_head(v), jnp.asarray(visible), 0.7
    ).reshape(B, T, heads * shared, h)
    for i in range(heads * shared):
      scores = 0.7 * q[:, :, i] @ k[:, :, i // shared].swapaxes(1, 2)
      p = np.where(visible, np.exp(scores), 0)
      p /= p.sum(-1, keepdims=True)
      want = p @ v[:, :, i // shared]
      np.testing.assert_allclose(got[:, :, i], want, atol=1e-5)

  def test_a_query_that_sees_nothing_is_finite(self):
    q = jnp.full((1, 3, 2, 4), 1e3)
    out = ops.attention(
      q, by_head(q), by_head(q), jnp.zeros((1, 1, 3), bool), 1.0
    )
    np.testing.assert_allclose(out, 1e3)

  def test_large_scores_do_not_overflow(self):
    q = jnp.full((1, 3, 2, 4), 1e4)
    out = ops.attention(
      q, by_head(q), by_head(q), jnp.ones((1, 1, 3), bool), 1.0
    )
    np.testing.assert_allclose(out, 1e4)

  def test_soft_cap_bounds_scores(self):
    q = jax.random.normal(jax.random.key(0), (1, 3, 2, 4)) * 10
    k, v = q[:, ::-1], jnp.eye(12)[None, :3, :8].reshape(1, 3, 2, 4)
    seen = jnp.ones((1, 1, 3), bool)
    out = ops.attention(q, by_head(k), by_head(v), seen, 1.0, cap=2.0)
    scores = 2 * np.tanh(np.einsum("bthd,bshd->bhts", q, k) / 2)
    p = jax.nn.softmax(jnp.asarray(scores), axis=-1)
    want = np.einsum("bhts,bshd->bthd", p, v)
    np.testing.assert_allclose(out, want, atol=1e-5)


class ViewTest(absltest.TestCase):
  def test_a_window_counts_real_tokens_of_the_text(self):
    mask = jnp.array([[0, 1, 1, 1, 1, 0]], bool)
    segment = jnp.array([[0, 0, 0, 1, 1, 1]])
    seen = ops.whole(mask).within(2).visible[0]
    rows = [np.flatnonzero(seen[t]).tolist() for t in range(1, 5)]
    self.assertEqual(rows, [[1], [1, 2], [2, 3], [3, 4]])
    view = ops.segmented(mask, segment)
    seen = view.within(2).visible[0]
    rows = [np.flatnonzero(seen[t]).tolist() for t in range(1, 5)]
    self.assertEqual(rows, [[1], [1, 2], [3], [3, 4]])
    np.testing.assert_array_equal(view.lengths[0, 1:5], [2, 2, 2, 2])
    np.testing.assert_array_equal(ops.whole(mask).lengths, [[4] * 6])


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
    rope, one = rotary.Rope(10000.0, 16), jnp.ones((1, 1), jnp.int32)

    def score(i, j):
      turned = [
        rotary.rotate(x, rotary.cos_sin(rope, p * one, one))
        for x, p in ((q, i), (k, j))
      ]
      return float(jnp.sum(turned[0] * turned[1]))

    self.assertAlmostEqual(score(0, 0), float(jnp.sum(q * k)), places=5)
    self.assertAlmostEqual(score(7, 3), score(104, 100), places=3)
    self.assertNotAlmostEqual(score(7, 3), score(7, 4), places=2)

  def test_llama3_keeps_fast_and_divides_slow_frequencies(self):
    plain = rotary.Rope(10000.0, 64)
    scaled = dataclasses.replace(
      plain, kind="llama3", factor=8.0, low=1.0, high=4.0, original=512.0
    )
    omega = rotary.frequencies(plain)
    got = rotary.frequencies(scaled)
    wavelength = 2 * np.pi / omega
    fast, slow = wavelength < 512 / 4, wavelength > 512
    np.testing.assert_array_equal(got[fast], omega[fast])
    np.testing.assert_allclose(got[slow], omega[slow] / 8, rtol=1e-6)
    between = ~fast & ~slow
    self.assertTrue(fast.any() and slow.any() and between.any())
    self.assertTrue((got[between] < omega[between]).all())
    self.assertTrue((got[between] > omega[between] / 8).all())

  def test_linear_divides_all(self):
    plain = rotary.Rope(500.0, 8)
    halved = rotary.Rope(500.0, 8, "linear", 2.0)
    np.testing.assert_allclose(
      rotary.frequencies(halved) * 2, rotary.frequencies(plain)
    )

  def test_yarn_keeps_fast_and_divides_slow_frequencies(self):
    plain = rotary.Rope(10000.0, 64)
    scaled = dataclasses.replace(
      plain, kind="yarn", factor=8.0, low=1.0, high=32.0, original=512.0
    )
    omega, got = rotary.frequencies(plain), rotary.frequencies(scaled)
    rotations = 512 * omega / (2 * np.pi)
    fast, slow = rotations > 34, rotations < 0.7  # ends are rounded outwards
    self.assertTrue(fast.any() and slow.any() and (~fast & ~slow).any())
    np.testing.assert_array_equal(got[fast], omega[fast])
    np.testing.assert_allclose(got[slow], omega[slow] / 8, rtol=1e-6)
    self.assertTrue((np.diff(got / omega) <= 0).all())

  def test_dynamic_and_longrope_depend_on_the_length_of_each_text(self):
    plain = rotary.Rope(100.0, 8)
    dynamic = dataclasses.replace(
      plain, kind="dynamic", factor=2.0, original=16.0
    )
    short, long = (1.0, 1.0, 1.0, 1.0), (1.0, 2.0, 3.0, 4.0)
    divided = dataclasses.replace(
      plain, kind="longrope", short=short, long=long, original=16.0
    )
    omega, lengths = rotary.frequencies(plain), jnp.array([[9, 16, 17, 32]]).T
    got = rotary.frequencies(dynamic, lengths)
    for row in got[:2]:
      np.testing.assert_allclose(row, omega, rtol=1e-6)
    # A text twice as long: stretch = 2 * 2 - 1.
    np.testing.assert_allclose(got[3, 0], omega[0])
    np.testing.assert_allclose(got[3, -1], omega[-1] / 3, rtol=1e-6)
    got = rotary.frequencies(divided, lengths)
    for row, divisors in zip(got, (short, short, long, long), strict=True):
      np.testing.assert_allclose(row, omega / np.array(divisors), rtol=1e-6)

  def test_entries_beyond_the_width_are_not_rotated(self):
    x = jax.random.normal(jax.random.key(0), (1, 3, 2, 16))
    at = jnp.arange(3)[None]
    turned = rotary.rotate(x, rotary.cos_sin(rotary.Rope(10.0, 4), at, at))
    np.testing.assert_array_equal(turned[..., 4:], x[..., 4:])
    self.assertGreater(float(jnp.abs(turned - x)[:, 1:, :, :4].min()), 1e-4)


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
