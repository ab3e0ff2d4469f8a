"""Tests of kernels/topk/select.py."""

from unittest import mock

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

  def test_counts_with_carries_equal_a_stable_sort(self):
    # Words of 2 bits carry at 4 entries, as those of a large batch at 2^17.
    for axes in ((0, 1), (0,)):
      with mock.patch.multiple(select, word_bits=lambda shape: 2, ONE_WORD=0):
        select_ = jax.jit(lambda a, c, axes=axes: select.largest(a, c, axes))
        for kind in ("normal", "ties", "equal"):
          for count in COUNTS[axes]:
            got = select_(scores(kind), np.asarray(count, np.float32))
            want = largest(scores(kind), np.asarray(count), axes)
            np.testing.assert_array_equal(got, want, err_msg=f"{kind} {count}")


class CountTest(parameterized.TestCase):
  """Batches of more than 2^31 entries, by the counts of their lines."""

  ROWS, WIDTH = 8192, 2**20

  def lines(self):
    drawn = np.random.default_rng(0).integers(0, self.WIDTH + 1, self.ROWS)
    drawn[: self.ROWS // 2] = self.WIDTH  # 2^32 entries and more
    return drawn

  def value(self, count, bits):
    self.assertTrue(((count.low >= 0) & (count.low < 2**bits)).all())
    return np.asarray(count.high, np.int64) * 2**bits + np.asarray(count.low)

  def test_a_batch_of_two_to_the_33_entries_is_traced(self):
    shape = (self.ROWS, self.WIDTH)
    got = jax.eval_shape(
      lambda a, c: select.largest(a, c, (0, 1)),
      jax.ShapeDtypeStruct(shape, np.float32),
      jax.ShapeDtypeStruct((), np.float32),
    )
    self.assertEqual((got.shape, got.dtype), (shape, np.bool_))
    self.assertEqual(select.word_bits(shape), 17)

  def test_sums_of_lines_are_those_of_whole_numbers(self):
    bits = select.word_bits((self.ROWS, self.WIDTH))
    for lines in (self.lines(), np.full(self.ROWS, self.WIDTH)):
      device = jnp.asarray(lines, jnp.int32)
      total = select.add(device, (0,), bits)
      self.assertEqual(self.value(total, bits), [lines.sum()])
      taken = self.value(select.before(device, 0, bits), bits)
      np.testing.assert_array_equal(taken, np.cumsum(lines) - lines)

  def test_what_is_left_for_a_line_is_clipped_to_its_length(self):
    bits = select.word_bits((self.ROWS, self.WIDTH))
    lines = self.lines()
    taken = select.before(jnp.asarray(lines, jnp.int32), 0, bits)
    for wanted in (0, 5, 2**31, 3 * 2**31, 2**32 + 2**20, 2**33):
      count = select.words(jnp.float32(wanted), bits)
      self.assertEqual(self.value(count, bits), wanted)
      got = select.left(count, taken, self.WIDTH, bits)
      want = np.clip(wanted - np.cumsum(lines) + lines, 0, self.WIDTH)
      np.testing.assert_array_equal(got, want)

  @parameterized.parameters(0, 1, 2**17 - 1, 2**17, 2**30 + 5, 2**31 - 1, -1)
  def test_whole_numbers_are_split_exactly(self, count):
    for bits in (2, 17, 30):
      got = select.words(jnp.int32(count), bits)
      self.assertEqual(self.value(got, bits), count)

  @parameterized.parameters(
    (2.0**31, 2**31), (2.0**33 + 2**10, 2**33 + 2**10), (2.75, 2), (-1.5, 0)
  )
  def test_floats_are_rounded_down(self, count, want):
    for bits in (17, 24):
      got = select.words(jnp.float32(count), bits)
      self.assertEqual(self.value(got, bits), want)

  @parameterized.parameters((2**20, 2**29), (2, 2**30), (2**30, 8))
  def test_what_two_words_cannot_count_is_refused(self, *shape):
    with self.assertRaisesRegex(NotImplementedError, "too many"):
      select.word_bits(shape)


if __name__ == "__main__":
  absltest.main()
