"""Tests of saejax.evals.meta_structure: rows that are sums of few directions."""

import numpy as np
from absl.testing import absltest

from saejax.errors import InputError
from saejax.evals import meta_structure

SMALL = {"k": 2, "steps": 400, "batch_rows": 128, "learning_rate": 3e-3}


class MetaStructureTest(absltest.TestCase):
  def test_sums_of_two_directions_are_explained_and_random_rows_less(self):
    rng = np.random.default_rng(0)
    n, d, m = 256, 32, 48
    V = rng.standard_normal((m, d))
    V /= np.linalg.norm(V, axis=1, keepdims=True)
    pairs = np.stack([rng.choice(m, 2, replace=False) for _ in range(n)])
    structured, _ = meta_structure.explained(V[pairs].sum(axis=1), **SMALL)
    chance, _ = meta_structure.explained(rng.standard_normal((n, d)), **SMALL)
    self.assertGreater(structured, 0.8)
    self.assertLess(chance, 0.6)

  def test_refuses_fewer_meta_latents_than_are_active(self):
    with self.assertRaisesRegex(InputError, "^ratio=0.25: gives 2"):
      meta_structure.explained(np.eye(8))


if __name__ == "__main__":
  absltest.main()
