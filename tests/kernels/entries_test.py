"""Tests of kernels/entries on one device."""

from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.kernels.entries import op, ref, xla
from tests import toy

SHAPES = [(5, 3, 7, 11), (1, 1, 1, 1), (4, 2, 9, 0), (6, 5, 8, 300)]


def code(rows, n, size):
  """Entries with zeros, repeated latents and rows without any."""
  rng = np.random.default_rng(size)
  values = np.where(rng.random(size) > 0.2, rng.standard_normal(size), 0)
  where = np.sort(rng.integers(0, max(1, rows - 1), size))
  latents = rng.integers(0, n, size)
  as_ints = lambda a: jnp.asarray(a, jnp.int32)
  return jnp.asarray(values, jnp.float32), as_ints(where), as_ints(latents)


def spread(values, rows, indices, shape):
  return jnp.zeros(shape).at[rows, indices].add(values)


class PackTest(parameterized.TestCase):
  @parameterized.parameters(
    (1, 1, 1.0), (5, 7, 0.5), (9, 40, 0.1), (3, 600, 0.3), (4, 17, 0.0),
  )  # fmt: skip
  def test_gives_the_set_entries_row_by_row(self, b, c, share):
    mask = np.random.default_rng(b).random((b, c)) < share
    rows, columns = np.nonzero(mask)
    got = jax.jit(partial(op.pack, entries=mask.sum() + 3))(jnp.asarray(mask))
    filled = np.asarray(got.filled)
    self.assertEqual(filled.sum(), len(rows))
    self.assertTrue(filled[: len(rows)].all())
    np.testing.assert_array_equal(got.rows[filled], rows)
    np.testing.assert_array_equal(got.columns[filled], columns)
    self.assertTrue(got.whole)
    self.assertTrue(((got.rows >= 0) & (got.rows < b)).all())
    self.assertTrue(((got.columns >= 0) & (got.columns < c)).all())

  def test_says_where_there_was_no_room(self):
    mask = jnp.ones((3, 5), bool)
    self.assertTrue(op.pack(mask, 15).whole)
    few = op.pack(mask, 14)
    self.assertFalse(few.whole)
    self.assertTrue(few.filled.all())


class ProductsTest(parameterized.TestCase):
  @parameterized.product(shape=SHAPES, most=[3, 1 << 20])
  def test_the_plain_form_equals_the_definition(self, shape, most):
    b, d, n, size = shape
    values, rows, indices = code(b, n, size)
    y, W = toy.rows(b, d, seed=1), toy.rows(n, d, seed=2)
    with mock.patch.object(xla, "CPU_CHUNK_ENTRIES", most):
      add = jax.jit(partial(xla.add_rows, size=n))(values, indices, rows, y)
      found = jax.jit(xla.products)(y, rows, W, indices)
    want = ref.add_rows(values, indices, rows, y, n)
    np.testing.assert_allclose(add, want, atol=1e-5)
    want = ref.products(y, rows, W, indices)
    np.testing.assert_allclose(found, want, atol=1e-5)

  def test_an_absent_entry_reads_nothing(self):
    W = jnp.full((4, 3), jnp.nan)
    values, where = jnp.zeros(2), jnp.zeros(2, jnp.int32)
    for form in ("ref", None):
      got = op.add_rows(values, where, where, W, 2, form)
      np.testing.assert_array_equal(got, jnp.zeros((2, 3)))


class DecodeTest(parameterized.TestCase):
  @parameterized.product(
    shape=SHAPES, ends=[lambda n: (n,), lambda n: (0, n // 2, n // 2, n)]
  )
  def test_equals_dense_products_and_their_gradients(self, shape, ends):
    b, d, n, size = shape
    ends = ends(n)
    values, rows, indices = code(b, n, size)
    W, weights = toy.rows(n, d, seed=2), toy.rows(len(ends), b, d, seed=3)

    def sparse(values, W):
      out = op.decode(values, rows, indices, W, size=b, ends=ends)
      return jnp.sum(out * weights), out

    def dense(values, W):
      z, start, out = spread(values, rows, indices, (b, n)), 0, []
      for end in ends:
        out.append(z[:, start:end] @ W[start:end])
        start = end
      out = jnp.stack(out)
      return jnp.sum(out * weights), out

    both = lambda f: jax.jit(jax.grad(f, (0, 1), has_aux=True))(values, W)
    (d_values, d_W), out = both(sparse)
    (want_values, want_W), want = both(dense)
    np.testing.assert_allclose(out, want, atol=1e-5)
    np.testing.assert_allclose(d_W, want_W, atol=1e-4)
    there = np.asarray(values) != 0
    np.testing.assert_allclose(d_values[there], want_values[there], atol=1e-5)
    np.testing.assert_array_equal(d_values[~there], 0)

  def test_latents_beyond_the_last_run_are_left_out(self):
    values, at = jnp.ones(2), jnp.zeros(2, jnp.int32)
    indices, W = jnp.asarray([1, 3]), jnp.eye(4)
    out = op.decode(values, at, indices, W, size=1, ends=(2, 3))
    np.testing.assert_array_equal(out, [[[0, 1, 0, 0]], [[0, 0, 0, 0]]])

  def test_bfloat16_rows_are_read_rounded_and_added_in_float32(self):
    values, rows, indices = code(6, 8, 300)
    W = toy.rows(8, 5, seed=2)
    got = op.decode(
      values, rows, indices, W, size=6, ends=(8,), dtype="bfloat16"
    )
    rounded = W.astype(jnp.bfloat16).astype(jnp.float32)
    want = spread(values, rows, indices, (6, 8)) @ rounded
    np.testing.assert_allclose(got[0], want, atol=1e-4)


class EncodedTest(parameterized.TestCase):
  @parameterized.parameters(*SHAPES)
  def test_gives_the_gradients_of_the_pre_activations(self, *shape):
    b, d, n, size = shape
    _, rows, indices = code(b, n, size)
    x, b_pre, W, b_enc = (
      toy.rows(*s, seed=i) for i, s in enumerate([(b, d), (d,), (n, d), (n,)])
    )
    weights = toy.rows(size, seed=9) if size else jnp.zeros(0)

    def sparse(x, b_pre, W, b_enc):
      a = (x - b_pre) @ W.T + b_enc
      values = jax.lax.stop_gradient(a[rows, indices])
      out = op.encoded(values, rows, indices, x, b_pre, W, b_enc)
      return jnp.sum(jnp.square(out) * weights)

    def dense(x, b_pre, W, b_enc):
      a = (x - b_pre) @ W.T + b_enc
      return jnp.sum(jnp.square(a[rows, indices]) * weights)

    inputs = (x, b_pre, W, b_enc)
    got = jax.jit(jax.grad(sparse, (0, 1, 2, 3)))(*inputs)
    want = jax.jit(jax.grad(dense, (0, 1, 2, 3)))(*inputs)
    for g, w in zip(got, want, strict=True):
      np.testing.assert_allclose(g, w, atol=2e-3, rtol=1e-4)


if __name__ == "__main__":
  absltest.main()
