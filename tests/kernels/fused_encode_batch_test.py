"""Tests of kernels/fused_encode/batch.py on one device."""

from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax.experimental.pallas import tpu as pltpu

from saejax.kernels import dispatch
from saejax.kernels.fused_encode import batch, tpu, xla
from saejax.kernels.topk import select
from tests import toy

SHAPES = [  # rows, d, n, mean_k
  (6, 4, 40, 2),
  (7, 3, 33, 2.5),
  (5, 4, 9, 9),
  (3, 2, 300, 0.4),
  (16, 4, 700, 5),
]


def arrays(rows, d, n):
  shapes = [(rows, d), (d,), (n, d), (n,)]
  return [toy.rows(*s, seed=n + i) for i, s in enumerate(shapes)]


def dense(x, b_pre, W, b, count, *, magnitude=False, use=None):
  """The definition: [b, n] with what is not among the largest 0."""
  a = xla.pre_activations(x - b_pre, W, b)
  score = jnp.abs(a) if magnitude else a
  if use is not None:
    score = jnp.where(use[:, None], score, -jnp.inf)
  return jnp.where(select.largest(score, jnp.float32(count), (0, 1)), a, 0)


def spread(found, shape):
  z = jnp.zeros(shape).at[found.rows, found.indices].add(found.values)
  return z


class EncodeBatchTest(parameterized.TestCase):
  def check(self, shape, count=None, how=None, form=None, **where):
    rows, d, n, mean_k = shape
    inputs, how = arrays(rows, d, n), how or {}
    count = np.floor(rows * mean_k + 1e-4) if count is None else count
    weights = toy.rows(rows, n, seed=7)

    def sparse(*inputs):
      found = batch.encode_batch(
        *inputs, jnp.float32(count), mean_k=mean_k, **how, **where
      )
      z = spread(found, (rows, n))
      return jnp.sum(z * weights), (z, found)

    def definition(*inputs):
      z = dense(*inputs, count, **how, **where)
      return jnp.sum(z * weights), z

    with form or dispatch.kernels("auto"):
      run = jax.jit(jax.grad(sparse, (0, 1, 2, 3), has_aux=True))
      gradients, (z, found) = run(*inputs)
    run = jax.jit(jax.grad(definition, (0, 1, 2, 3), has_aux=True))
    want_gradients, want = run(*inputs)
    np.testing.assert_array_equal(z != 0, want != 0)
    np.testing.assert_allclose(z, want, atol=1e-5)
    for got, want in zip(gradients, want_gradients, strict=True):
      np.testing.assert_allclose(got, want, atol=1e-3, rtol=1e-4)
    return found

  @parameterized.product(shape=SHAPES, magnitude=[False, True])
  def test_equals_the_definition_and_its_gradients(self, shape, magnitude):
    found = self.check(shape, how={"magnitude": magnitude})
    self.assertIsNone(found.exact)

  @parameterized.parameters(0, 1, 5)
  def test_takes_a_traced_smaller_count(self, count):
    self.check((6, 4, 40, 2), count)

  def test_leaves_out_rows_that_take_no_part(self):
    use = jnp.asarray([True, False, True, True, False, True])
    found = self.check((6, 4, 40, 2), 8, use=use)
    held = np.asarray(found.rows)[np.asarray(found.values) != 0]
    self.assertEmpty({1, 4} & set(held.tolist()))

  def test_one_row_may_take_all(self):
    x = jnp.zeros((8, 3)).at[5].set(10.0)
    W, zeros = toy.rows(100, 3, seed=0), jnp.zeros(100)
    found = batch.encode_batch(
      x, jnp.zeros(3), W, zeros, jnp.float32(16), mean_k=2
    )
    self.assertEqual(set(np.asarray(found.rows).tolist()), {5})

  def test_equal_ones_are_taken_in_index_order(self):
    x, W = jnp.ones((4, 2)), jnp.ones((50, 2))
    found = batch.encode_batch(
      x, jnp.zeros(2), W, jnp.zeros(50), jnp.float32(8), mean_k=2
    )
    np.testing.assert_array_equal(found.rows, np.zeros(8))
    np.testing.assert_array_equal(found.indices, np.arange(8))

  def test_refuses_an_impossible_mean_k(self):
    for mean_k in (0, 41):
      with self.assertRaisesRegex(ValueError, "mean_k must be in"):
        batch.encode_batch(*arrays(6, 4, 40), jnp.float32(1), mean_k=mean_k)


class CandidatesTest(EncodeBatchTest):
  """The form that splits rows' candidates off first, as on a mesh."""

  def setUp(self):
    super().setUp()
    self.enter_context(mock.patch.object(batch, "BATCH_BYTES", 0))

  @parameterized.product(shape=SHAPES, magnitude=[False, True])
  def test_equals_the_definition_and_its_gradients(self, shape, magnitude):
    found = self.check(shape, how={"magnitude": magnitude})
    self.assertTrue(found.exact)

  def test_one_row_may_take_all(self):
    x = jnp.zeros((8, 3)).at[5].set(10.0)
    W, zeros = toy.rows(100, 3, seed=0), jnp.zeros(100)
    encode = partial(batch.encode_batch, x, jnp.zeros(3), W, zeros, mean_k=2)
    self.assertFalse(encode(jnp.float32(16)).exact)  # more than candidates
    self.assertTrue(encode(jnp.float32(7)).exact)


class KernelTest(parameterized.TestCase):
  """The Pallas form, interpreted."""

  @parameterized.parameters(
    (False, 5, "candidates"), (True, 5, "candidates"), (False, 1, "levels")
  )  # fmt: skip
  def test_equals_the_two_levels(self, magnitude, mean_k, form):
    x, b_pre, W, b = arrays(16, 4, 700)
    if form == "levels":  # one row takes all: more than its candidates
      x = (0.01 * x).at[5].set(10.0)
    encode = lambda: jax.jit(
      partial(
        batch.encode_batch, mean_k=mean_k, magnitude=magnitude
      )
    )(x, b_pre, W, b, jnp.float32(16 * mean_k))  # fmt: skip
    want = encode()
    interpret = pltpu.InterpretParams(uninitialized_memory="nan")
    kernel = mock.patch.object(
      tpu, "encode_select", side_effect=tpu.encode_select
    )
    with dispatch.kernels("pallas", interpret=interpret), kernel as called:
      got = encode()
    called.assert_called()
    self.assertIsNone(got.exact)
    np.testing.assert_array_equal(got.rows, want.rows)
    np.testing.assert_array_equal(got.indices, want.indices)
    np.testing.assert_allclose(got.values, want.values, atol=1e-5)


if __name__ == "__main__":
  absltest.main()
