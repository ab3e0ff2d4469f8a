"""Tests of saejax.evals.probing.meta_structure: rows that are sums of few directions."""

import numpy as np
from absl.testing import absltest

from saejax.errors import InputError
from saejax.evals import matching
from saejax.evals.probing import meta_structure


def share(meta, W):
  """Share of the variance of rows that a meta-SAE explains."""
  left = W - np.asarray(meta.reconstruct(W))
  return 1 - (left**2).sum() / ((W - W.mean(axis=0)) ** 2).sum()


class MetaStructureTest(absltest.TestCase):
  def test_sums_of_two_directions_are_explained_and_random_rows_less(self):
    rng = np.random.default_rng(0)
    n, d, m = 256, 32, 48
    V = matching.unit(rng.standard_normal((m, d)))
    pairs = [rng.choice(m, 2, replace=False) for _ in range(2 * n)]
    W = matching.unit(V[np.stack(pairs)].sum(axis=1))
    found, meta = meta_structure.explained(
      3 * W[:n], k=2, steps=400, batch_rows=128, learning_rate=3e-3
    )
    self.assertGreater(found, 0.9)
    self.assertEqual(meta.n, n // 4)
    self.assertAlmostEqual(found, share(meta, W[:n]), places=4)
    self.assertGreater(share(meta, W[n:]), 0.8)  # pairs that it has not seen
    random = matching.unit(rng.standard_normal((n, d)))
    self.assertLess(share(meta, random), 0.6)

  def test_refuses_fewer_meta_latents_than_are_active(self):
    with self.assertRaisesRegex(InputError, "^ratio=0.25: gives 2"):
      meta_structure.explained(np.eye(8))


if __name__ == "__main__":
  absltest.main()
