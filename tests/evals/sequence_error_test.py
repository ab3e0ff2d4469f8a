"""saejax/evals/sequence_error.py: each sequence weighs the same."""

import numpy as np
from absl.testing import absltest

from saejax.errors import InputError
from saejax.evals import sequence_error


class SequenceErrorTest(absltest.TestCase):
  def test_sequences_of_1_and_100_tokens_weigh_the_same(self):
    # fast, check 4.
    doc = np.array([7] + [3] * 100)
    x = np.zeros((101, 4))
    x_hat = np.where(doc == 7, 3.0, 1.0)[:, None] * np.ones((1, 4))
    found = sequence_error.sequence_mse(x, x_hat, doc)
    self.assertAlmostEqual(found, (9 + 1) / 2)
    self.assertNotAlmostEqual(found, np.mean((x - x_hat) ** 2), places=1)

  def test_special_tokens_alone(self):
    doc = np.array([0, 0, 0, 1, 1, 2])
    tok = np.array([9, 5, 8, 9, 5, 5])
    keep = sequence_error.token_mask(tok, (9, 8))
    np.testing.assert_array_equal(keep, [1, 0, 1, 1, 0, 0])
    x_hat = np.array([1.0, 50, 3, 2, 50, 50])[:, None]
    found = sequence_error.sequence_mse(np.zeros((6, 1)), x_hat, doc, keep=keep)
    self.assertAlmostEqual(found, ((1 + 9) / 2 + 4) / 2)

  def test_nothing_to_count_is_refused(self):
    with self.assertRaises(InputError):
      sequence_error.sequence_mse(
        np.zeros((2, 1)), np.zeros((2, 1)), np.zeros(2), keep=np.zeros(2, bool)
      )


if __name__ == "__main__":
  absltest.main()
