"""Tests of kernels/sparse_decode on one device."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.kernels.sparse_decode import op, xla
from tests import compiled

SHAPES = [  # b, k, d, n: one entry, groups of 8 ragged and full, odd rows
  (1, 1, 1, 1),
  (5, 3, 7, 11),
  (131, 8, 5, 40),
  (256, 19, 12, 33),
]


def code(b, k, n, seed=0):
  """Values with zeros and negatives; indices that repeat within rows."""
  rng = np.random.default_rng(seed)
  values = rng.standard_normal((b, k)).astype(np.float32)
  values[rng.random(values.shape) < 0.2] = 0
  return values, rng.integers(0, n, (b, k), dtype=np.int32)


def normal(*shape, seed=1):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def dense(values, indices, n):
  z = np.zeros((len(values), n))
  np.add.at(z, (np.arange(len(values))[:, None], indices), values)
  return z


class ProductsTest(parameterized.TestCase):
  @parameterized.product(shape=SHAPES, implementation=["ref", "xla"])
  def test_decode_equals_the_dense_product(self, shape, implementation):
    b, k, d, n = shape
    values, indices = code(b, k, n)
    W = normal(n, d)
    got = op.decode_rows(
      *map(jnp.asarray, (values, indices, W)), implementation
    )
    np.testing.assert_allclose(got, dense(values, indices, n) @ W, atol=2e-5)

  @parameterized.product(shape=SHAPES, implementation=["ref", "xla"])
  def test_sampled_product_equals_the_gathered_dense(
    self, shape, implementation
  ):
    b, k, d, n = shape
    _, indices = code(b, k, n)
    g, W = normal(b, d), normal(n, d, seed=2)
    got = op.sampled_product(*map(jnp.asarray, (g, W, indices)), implementation)
    want = np.take_along_axis(g @ W.T, indices, axis=1)
    np.testing.assert_allclose(got, want, atol=2e-5)

  @parameterized.product(
    shape=SHAPES, scatter=[xla.scatter_scalars, xla._scatter_quads]
  )
  def test_scalars_are_summed_by_index(self, shape, scatter):
    b, k, _, n = shape
    values, indices = code(b, k, n)
    got = jax.jit(scatter, static_argnums=2)(values, indices, n)
    want = dense(values, indices, n).sum(axis=0)
    np.testing.assert_allclose(got, want, atol=2e-5)

  @parameterized.product(shape=SHAPES, implementation=["ref", "xla"])
  def test_scatter_rows_equals_the_transposed_dense(
    self, shape, implementation
  ):
    b, k, d, n = shape
    values, indices = code(b, k, n)
    y = normal(b, d)
    got = op.scatter_rows(
      *map(jnp.asarray, (values, indices, y)), n, implementation
    )
    self.assertEqual(got.shape, (n, d))
    np.testing.assert_allclose(got, dense(values, indices, n).T @ y, atol=5e-5)

  @parameterized.parameters("ref", "xla")
  def test_scatter_of_one_latent_on_every_row(self, implementation):
    y = normal(300, 4)
    values, indices = np.ones((300, 1), np.float32), np.full((300, 1), 3)
    got = op.scatter_rows(
      *map(jnp.asarray, (values, indices, y)), 5, implementation
    )
    want = np.zeros((5, 4))
    want[3] = y.sum(axis=0)
    np.testing.assert_allclose(got, want, atol=1e-4)


class DecodeTest(parameterized.TestCase):
  def gradients(self, decode, values, indices, W, g):
    loss = lambda v, W: jnp.sum(decode(v, indices, W) * g)
    return jax.jit(jax.grad(loss, (0, 1)))(values, W)

  @parameterized.parameters(*SHAPES)
  def test_gradients_are_those_of_the_dense_product(self, b, k, d, n):
    values, indices = code(b, k, n)
    W, g = normal(n, d), normal(b, d, seed=3)
    d_values, d_W = self.gradients(op.decode, values, indices, W, g)
    want = np.take_along_axis(g @ W.T, indices, axis=1)
    # A value of 0 is padding: absent, and so without a gradient.
    np.testing.assert_allclose(
      d_values, np.where(values != 0, want, 0), atol=2e-5
    )
    np.testing.assert_allclose(d_W, dense(values, indices, n).T @ g, atol=5e-5)

  def test_takes_any_batch_shape(self):
    values, indices = code(6, 3, 10)
    W = jnp.asarray(normal(10, 4))
    flat = op.decode(jnp.asarray(values), jnp.asarray(indices), W)
    for batch in ((2, 3), (1, 6, 1)):
      shape = (*batch, 3)
      got = op.decode(values.reshape(shape), indices.reshape(shape), W)
      np.testing.assert_array_equal(got, flat.reshape(*batch, 4))
    np.testing.assert_array_equal(op.decode(values[0], indices[0], W), flat[0])

  @parameterized.parameters(np.nan, np.inf, -np.inf)
  def test_padding_contributes_nothing_whatever_its_row_holds(self, bad):
    values, indices = code(9, 5, 10)
    values[:, 2], indices[:, 2] = 0, 0
    indices[values != 0] = np.maximum(indices[values != 0], 1)
    indices[values == 0] = 0
    W, g = normal(10, 4), normal(9, 4, seed=3)
    poisoned = W.copy()
    poisoned[0] = bad
    for decode in (op.decode, lambda *a: op.decode_rows(*a, "ref")):
      np.testing.assert_array_equal(
        decode(*map(jnp.asarray, (values, indices, poisoned))),
        decode(*map(jnp.asarray, (values, indices, W))),
      )
    want = self.gradients(op.decode, values, indices, W, g)
    got = self.gradients(op.decode, values, indices, poisoned, g)
    for a, b in zip(got, want, strict=True):
      np.testing.assert_array_equal(a, b)

  def test_bfloat16_rounds_operands_and_nothing_else(self):
    values, indices = code(40, 6, 30)
    W, g = normal(30, 16), normal(40, 16, seed=3)
    got = op.decode(*map(jnp.asarray, (values, indices, W)), "bfloat16")
    rounded = np.asarray(jnp.asarray(W, jnp.bfloat16), np.float64)
    self.assertEqual(got.dtype, jnp.float32)
    np.testing.assert_allclose(
      got, dense(values, indices, 30) @ rounded, atol=1e-5
    )
    decode = lambda *a: op.decode(*a, "bfloat16")
    d_values, d_W = self.gradients(decode, values, indices, W, g)
    self.assertEqual((d_values.dtype, d_W.dtype), (jnp.float32, jnp.float32))
    want = np.where(
      values != 0, np.take_along_axis(g @ W.T, indices, axis=1), 0
    )
    np.testing.assert_allclose(d_values, want, atol=0.1)
    np.testing.assert_allclose(d_W, dense(values, indices, 30).T @ g, atol=1e-4)

  def test_vmapped_over_members_equals_each(self):
    stack = lambda f: jnp.stack([jnp.asarray(f(i)) for i in range(3)])
    values = stack(lambda i: code(7, 3, 9, seed=i)[0])
    indices = stack(lambda i: code(7, 3, 9, seed=i)[1])
    W = stack(lambda i: normal(9, 4, seed=i))
    g = jnp.asarray(normal(7, 4))
    loss = lambda v, i, W: jnp.sum(op.decode(v, i, W) * g)
    both = jax.value_and_grad(loss, (0, 2))
    got = jax.jit(jax.vmap(both))(values, indices, W)
    both = jax.jit(both)
    each = [both(*a) for a in zip(values, indices, W, strict=True)]
    want = jax.tree.map(lambda *a: jnp.stack(a), *each)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want
    )

  # The chunks of a CPU; 8 rows, far below them; and one row, for which there
  # is no room.
  @parameterized.parameters((1 << 28, 128), (8 * 2560, 8), (1, 1))
  def test_no_array_of_more_gathered_rows_than_a_chunk(self, limit, rows):
    b, k, d, n = 256, 16, 40, 50
    shapes = [(b, k), (b, k), (n, d), (b, d)]
    types = [jnp.float32, jnp.int32, jnp.float32, jnp.float32]
    loss = lambda v, i, W, x: jnp.sum((op.decode(v, i, W) - x) ** 2)
    with mock.patch.object(xla, "CHUNK_BYTES", limit):
      text = (
        jax.jit(jax.grad(loss, (0, 2)))
        .lower(*map(jax.ShapeDtypeStruct, shapes, types))
        .compile()
        .as_text()
      )
    sizes = {int(np.prod(shape)) for shape in compiled.arrays(text)}
    self.assertIn(n * d, sizes)
    self.assertLessEqual(max(sizes), max(rows * k * d, 2 * b * d))


if __name__ == "__main__":
  absltest.main()
