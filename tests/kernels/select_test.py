"""Tests of kernels/topk/select.py."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.kernels.topk import select

B, N = 7, 12
COUNTS = {  # by axes: shapes that broadcast to the scores
  (-1,): [3, np.arange(B)[:, None] * 2 - 1, np.full((B, 1), N)],
  (0,): [2, np.arange(N) - 2, np.full((N,), B)],
  (0, 1): [0, 1, 25, B * N, B * N + 5],
}


def scores(kind):
  a = np.random.default_rng(3).standard_normal((B, N)).astype(np.float32)
  if kind == "ties":
    a = np.round(a) + 0.0
  if kind == "equal":
    a = np.full_like(a, -1.5)
  if kind == "infinite":
    a[:, ::3], a[:, 1::3] = -np.inf, np.inf
  return a


def largest(a, count, axes):
  """By a stable sort of each competition: ties lowest index first."""
  axes = tuple(axis % a.ndim for axis in axes)
  rest = [axis for axis in range(a.ndim) if axis not in axes]
  order = (*rest, *axes)
  moved = a.transpose(order)
  flat = moved.reshape(*moved.shape[: len(rest)], -1)
  ranks = np.argsort(np.argsort(-flat, -1, kind="stable"), -1)
  shape = tuple(1 if i in axes else size for i, size in enumerate(a.shape))
  each = (
    np.broadcast_to(count, shape).transpose(order).reshape(*flat.shape[:-1], 1)
  )
  return (ranks < each).reshape(moved.shape).transpose(np.argsort(order))


class LargestTest(parameterized.TestCase):
  @parameterized.product(
    kind=["normal", "ties", "equal", "infinite"], axes=list(COUNTS)
  )
  def test_equals_a_stable_sort_for_every_count(self, kind, axes):
    a = scores(kind)
    select_ = jax.jit(lambda a, c: select.largest(a, c, axes))
    for count in COUNTS[axes]:
      count = np.asarray(count, np.int32)
      np.testing.assert_array_equal(
        select_(a, count), largest(a, count, axes), err_msg=str(count)
      )

  def test_equal_scores_are_taken_lowest_index_first(self):
    a = jnp.zeros((2, 4))
    for count, axes, want in (
      (3, (-1,), [[1, 1, 1, 0], [1, 1, 1, 0]]),
      (1, (0,), [[1, 1, 1, 1], [0, 0, 0, 0]]),
      (5, (0, 1), [[1, 1, 1, 1], [1, 0, 0, 0]]),
    ):
      np.testing.assert_array_equal(select.largest(a, count, axes), want)

  @parameterized.parameters(*zip(COUNTS))
  def test_members_under_vmap_have_counts_of_their_own(self, axes):
    a = np.stack([scores("ties"), scores("normal"), scores("equal")])
    counts = np.asarray([0, 3, 200], np.int32)
    got = jax.jit(jax.vmap(lambda a, c: select.largest(a, c, axes)))(a, counts)
    for i, count in enumerate(counts):
      np.testing.assert_array_equal(got[i], largest(a[i], count, axes))

  def test_rows_may_have_two_axes(self):
    a = np.random.default_rng(0).integers(0, 3, (3, 4, 5)).astype(np.float32)
    for axes, count in (((0, 1), np.arange(5)), ((0, 1, 2), 17)):
      np.testing.assert_array_equal(
        select.largest(jnp.asarray(a), jnp.asarray(count), axes),
        largest(a, count, axes),
      )

  def test_no_gradient_passes(self):
    f = lambda a: jnp.sum(jnp.where(select.largest(a, 2, (0,)), a, 0))
    a = jnp.asarray(scores("normal"))
    np.testing.assert_array_equal(
      jax.grad(f)(a), largest(scores("normal"), 2, (0,))
    )

  def test_refuses_axes_that_are_not_neighbours(self):
    with self.assertRaisesRegex(ValueError, "neighbours"):
      select.largest(jnp.zeros((2, 3, 4)), 1, (0, 2))


if __name__ == "__main__":
  absltest.main()
