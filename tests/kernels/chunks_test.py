"""Tests of rows in chunks."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.kernels import chunks


class ChunksTest(parameterized.TestCase):
  @parameterized.parameters(
    (2048, 128, 16, 128),
    (2039, 128, 16, 128),  # a prime
    (8191, 682, 13, 631),
    (131, 128, 2, 66),
    (5, 128, 1, 5),
    (3, 1, 3, 1),
  )
  def test_chunks_are_few_and_equal(self, rows, most, count, size):
    a, b = jnp.ones((rows, 3)), jnp.arange(rows)
    for part, whole in zip(chunks.split(most, a, b), (a, b), strict=True):
      self.assertEqual(part.shape, (count, size, *whole.shape[1:]))
      np.testing.assert_array_equal(chunks.join(part, rows), whole)
      np.testing.assert_array_equal(part.reshape(count * size, -1)[rows:], 0)


if __name__ == "__main__":
  absltest.main()
