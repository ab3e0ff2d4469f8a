"""Tests of saejax.training.parts.orthogonality."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.training.parts import orthogonality
from tests import compiled, toy

penalty = jax.jit(
  orthogonality.penalty, static_argnames=("chunk", "signed", "block_rows")
)


def direct(W, chunks, *, signed=False):
  """The definition, chunk by chunk."""
  D = np.asarray(W, np.float64)
  D = D / np.linalg.norm(D, axis=1, keepdims=True)
  means = []
  for chunk in chunks:
    cosines = D[chunk] @ D[chunk].T
    np.fill_diagonal(cosines, -np.inf)
    s = cosines.max(axis=1)
    s = np.where(np.isfinite(s), s if signed else np.maximum(s, 0), 0)
    means.append(np.mean(s**2))
  return np.mean(means)


class PenaltyTest(parameterized.TestCase):
  def test_orthonormal_rows_give_0_and_pairs_of_equals_1(self):
    eye = 3 * jnp.eye(6)
    self.assertEqual(float(penalty(eye, chunk=8)), 0)
    twice = jnp.concatenate([toy.rows(5, 4)] * 2)
    got = penalty(twice, chunk=10)
    np.testing.assert_allclose(got, 1, rtol=1e-6)

  @parameterized.product(
    sizes=[(12, 12), (13, 40), (12, 5), (13, 2)], block_rows=[3, 64]
  )
  def test_equals_the_direct_computation(self, sizes, block_rows):
    n, chunk = sizes
    W, chunks = toy.rows(n, 4), np.array_split(np.arange(n), -(-n // chunk))
    for signed in (False, True):
      got = penalty(W, chunk=chunk, signed=signed, block_rows=block_rows)
      want = direct(W, chunks, signed=signed)
      np.testing.assert_allclose(got, want, rtol=1e-5)

  def test_a_chunk_of_one_row_gives_0(self):
    W = jnp.ones((3, 4))  # chunks of 2 and 1
    np.testing.assert_allclose(penalty(W, chunk=2), 0.5)
    self.assertEqual(float(penalty(W[:1], chunk=2)), 0)

  def test_rows_that_point_away_count_where_signs_do_not(self):
    W = jnp.asarray([[1.0, 0], [-1, 0]])
    self.assertEqual(float(penalty(W, chunk=2)), 0)
    signed = penalty(W, chunk=2, signed=True)
    self.assertEqual(float(signed), 1)

  @parameterized.parameters(False, True)
  def test_gradient_is_a_finite_difference(self, signed):
    W = toy.rows(9, 4)
    f = lambda W: penalty(W, chunk=5, signed=signed)
    got = jax.jit(jax.grad(f))(W)
    chunks = np.array_split(np.arange(9), 2)
    for where in np.ndindex(*W.shape):
      sides = []
      for h in (1e-5, -1e-5):
        moved = np.asarray(W, np.float64)
        moved[where] += h
        sides.append(direct(moved, chunks, signed=signed))
      slope = (sides[0] - sides[1]) / 2e-5
      np.testing.assert_allclose(got[where], slope, atol=1e-4)

  def test_gradient_is_across_the_rows(self):
    W = toy.rows(9, 4)
    g = jax.grad(lambda W: penalty(W, chunk=9))(W)
    np.testing.assert_allclose(jnp.sum(g * W, axis=-1), 0, atol=1e-6)

  @parameterized.parameters((4096, 0.19), (512, 0.14))
  def test_random_rows_in_64_dimensions(self, chunk, want):
    W = toy.rows(4096, 64)
    got = jax.jit(lambda W: penalty(W, chunk=chunk))(W)
    np.testing.assert_allclose(got, want, atol=0.005)

  def test_never_holds_all_cosines_at_once(self):
    W = jax.ShapeDtypeStruct((4096, 8), jnp.float32)
    f = jax.grad(lambda W: penalty(W, chunk=2048))
    text = jax.jit(f).lower(W).compile().as_text()
    sizes = {int(np.prod(shape)) for shape in compiled.arrays(text)}
    self.assertLessEqual(max(sizes), orthogonality.BLOCK_ROWS * 2048)


class NearestTest(parameterized.TestCase):
  def record(self, W, **around):
    x = jnp.zeros((1, W.shape[1]))
    return toy.record(jnp.zeros((1, len(W))), x=x, W=W, **around)

  def test_chunks_are_drawn_from_the_key(self):
    W, term = toy.rows(12, 4), orthogonality.nearest(chunk=4)
    values = [term(self.record(W, key=jax.random.key(i))) for i in (1, 1, 2)]
    self.assertEqual(float(values[0]), float(values[1]))
    self.assertNotEqual(float(values[0]), float(values[2]))
    key = jax.random.fold_in(jax.random.key(1), orthogonality.DRAW)
    order = np.asarray(jax.random.permutation(key, 12))
    want = direct(W, order.reshape(3, 4))
    np.testing.assert_allclose(values[0], want, rtol=1e-5)

  def test_one_chunk_needs_no_key_and_several_do(self):
    W = toy.rows(12, 4)
    want = direct(W, [np.arange(12)])
    got = orthogonality.nearest(chunk=12)(self.record(W))
    np.testing.assert_allclose(got, want, rtol=1e-5)
    with self.assertRaisesRegex(ValueError, "key"):
      orthogonality.nearest(chunk=11)(self.record(W))

  def test_is_0_between_its_steps(self):
    W, term = toy.rows(12, 4), orthogonality.nearest(chunk=12, every=3)
    on = [float(term(self.record(W, step=jnp.int32(i)))) != 0 for i in range(7)]
    self.assertEqual(on, [i % 3 == 0 for i in range(7)])


if __name__ == "__main__":
  absltest.main()
