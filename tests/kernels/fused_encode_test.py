"""Tests of kernels/fused_encode on one device."""

from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.kernels.fused_encode import op, ref, xla
from tests import compiled, toy

SHAPES = [  # rows, d, n, k
  (7, 3, 5, 1),
  (6, 4, 9, 9),
  (13, 6, 301, 4),
]


def arrays(rows, d, n):
  shapes = [(rows, d), (d,), (n, d), (n,), (rows, n)]
  return [toy.rows(*s, seed=n + i) for i, s in enumerate(shapes)]


def with_gradients(encode, x, b_pre, W, b, weights):
  """Values, indices and the gradients of a weighted sum of the values."""

  def loss(x, b_pre, W, b):
    values, indices = encode(x, b_pre, W, b)
    return jnp.sum(values * weights), (values, indices)

  return jax.jit(jax.grad(loss, (0, 1, 2, 3), has_aux=True))(x, b_pre, W, b)


class EncodeTest(parameterized.TestCase):
  def check(self, shape, how=None, **tolerance):
    rows, d, n, k = shape
    *inputs, weights = arrays(rows, d, n)
    weights = weights[:, :k]
    how = {"k": k, **(how or {})}
    got = with_gradients(partial(op.encode_topk, **how), *inputs, weights)
    want = with_gradients(partial(ref.encode_topk, **how), *inputs, weights)
    np.testing.assert_array_equal(got[1][1], want[1][1])
    jax.tree.map(partial(np.testing.assert_allclose, **tolerance), got, want)

  @parameterized.parameters(*SHAPES)
  def test_equals_the_definition_and_its_gradients(self, *shape):
    self.check(shape, atol=2e-5, rtol=1e-5)

  @parameterized.parameters(*SHAPES)
  def test_by_magnitude_equals_the_definition_with_signs(self, *shape):
    how = {"magnitude": True}
    self.check(shape, how, atol=2e-5, rtol=1e-5)
    x, b_pre, W, b, _ = arrays(*shape[:3])
    encode = partial(op.encode_topk, k=shape[3], **how)
    values, indices = jax.jit(encode)(x, b_pre, W, b)
    self.assertLess(jnp.min(values), 0)
    free = jax.jit(partial(encode, ordered=False))(x, b_pre, W, b)
    np.testing.assert_array_equal(free[1], np.sort(indices, axis=1))
    np.testing.assert_allclose(
      free[0],
      np.take_along_axis(values, np.argsort(indices, axis=1), axis=1),
      atol=1e-6,
    )

  @parameterized.parameters((12, 1), (13, 4 * 301 * 3), (12, 4 * 301 * 5))
  def test_chunks_of_rows_change_nothing(self, rows, chunk_bytes):
    sizes = dict.fromkeys(("CHUNK_BYTES", "CPU_CHUNK_BYTES"), chunk_bytes)
    with mock.patch.multiple(xla, **sizes):
      self.check((rows, 6, 301, 4), atol=2e-5, rtol=1e-5)

  def test_gradient_of_the_pre_bias_is_minus_the_summed_one_by_W(self):
    x, b_pre, W, b, weights = arrays(13, 6, 40)
    (_, got, _, d_b), _ = with_gradients(
      partial(op.encode_topk, k=5), x, b_pre, W, b, weights[:, :5]
    )
    np.testing.assert_allclose(got, -(d_b @ W), atol=1e-5)

  def test_takes_any_batch_shape(self):
    x, b_pre, W, b, _ = arrays(12, 6, 50)
    encode = jax.jit(partial(op.encode_topk, k=3))
    values, indices = encode(x, b_pre, W, b)
    for batch in ((3, 4), (2, 1, 6)):
      got = encode(x.reshape(*batch, 6), b_pre, W, b)
      np.testing.assert_allclose(got[0], values.reshape(*batch, 3), atol=1e-5)
      np.testing.assert_array_equal(got[1], indices.reshape(*batch, 3))
    np.testing.assert_array_equal(encode(x[4], b_pre, W, b)[1], indices[4])

  def test_bfloat16_selects_on_float32_sums_of_rounded_operands(self):
    x, b_pre, W, b, weights = arrays(13, 6, 301)
    round_ = lambda a: a.astype(jnp.bfloat16).astype(jnp.float32)
    encode = partial(op.encode_topk, k=4, dtype="bfloat16")
    gradients, (values, indices) = with_gradients(
      encode, x, b_pre, W, b, weights[:, :4]
    )
    zero = jnp.zeros_like(b_pre)
    want = ref.encode_topk(round_(x - b_pre), zero, round_(W), b, 4)
    self.assertEqual(values.dtype, jnp.float32)
    np.testing.assert_allclose(values, want[0], atol=1e-5)
    np.testing.assert_array_equal(indices, want[1])
    for leaf in gradients:
      self.assertEqual(leaf.dtype, jnp.float32)

  def test_vmapped_over_members_equals_each(self):
    members = [arrays(9, 4, 60)[1:4], [2 * a for a in arrays(9, 4, 60)[1:4]]]
    x = arrays(9, 4, 60)[0]
    stack = jax.tree.map(lambda *a: jnp.stack(a), *members)
    encode = lambda p, W, b: op.encode_topk(x, p, W, b, 3)
    got = jax.jit(jax.vmap(encode))(*stack)
    one = jax.jit(encode)
    for i, member in enumerate(members):
      values, indices = one(*member)
      np.testing.assert_allclose(got[0][i], values, atol=1e-5)
      np.testing.assert_array_equal(got[1][i], indices)

  @parameterized.parameters(0, 8)
  def test_refuses_k_outside_one_to_n(self, k):
    x, b_pre, W, b, _ = arrays(2, 3, 7)
    with self.assertRaisesRegex(ValueError, rf"\[1, n=7\], got {k}"):
      op.encode_topk(x, b_pre, W, b, k)


class CompiledTest(absltest.TestCase):
  def compile(self, encode, rows, d, n, k):
    shapes = [(rows, d), (d,), (n, d), (n,)]
    args = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
    loss = lambda *a: jnp.sum(encode(*a, k)[0] ** 2)
    return jax.jit(jax.grad(loss, (1, 2, 3))).lower(*args).compile()

  def test_no_array_of_rows_by_latents_outlives_a_chunk(self):
    rows, n = 8192, 8192
    whole = 4 * rows * n
    ours = self.compile(op.encode_topk, rows, 16, n, 8).memory_analysis()
    plain = self.compile(ref.encode_topk, rows, 16, n, 8).memory_analysis()
    self.assertGreaterEqual(plain.temp_size_in_bytes, whole)
    self.assertLess(ours.temp_size_in_bytes, 0.75 * whole)

  def test_holds_no_full_sort_and_no_rows_by_entries_by_width(self):
    rows, d, n, k = 256, 40, 2048, 16
    text = self.compile(op.encode_topk, rows, d, n, k).as_text()
    self.assertEmpty([s for s in compiled.sorts(text) if s[-1] > k])
    found = compiled.arrays(text)
    self.assertIn((n, d), found)
    for shape in ((rows, k, d), (rows * k, d), (rows * k * d,)):
      self.assertNotIn(shape, found)


if __name__ == "__main__":
  absltest.main()
