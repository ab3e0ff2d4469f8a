"""Sweeps over k, sites, rates and seeds on a mesh are the runs of one device."""

import functools

import jax
import numpy as np
from absl.testing import absltest, parameterized

import saejax
from tests import toy

D, N = 8, 32


@functools.cache
def trained(mesh, members):
  """Eight members, of which the mesh of eight has some that diverge."""
  sites = {
    name: np.asarray(toy.rows(600, D, seed=seed)) * (1 + seed) + seed
    for seed, name in enumerate(("l1", "l2"))
  }
  return saejax.fit_grid(
    saejax.Sites(sites),
    n=N,
    k=[2, 5],
    learning_rate=[2e-3, 1e38] if mesh == (8, 1, 1) else [2e-3, 1e-3],
    steps=8,
    batch_rows=32,
    mesh=mesh,
    members=members,
    progress=False,
  )


class SweepTest(parameterized.TestCase):
  @parameterized.parameters((2, 2, 2), (8, 1, 1))
  def test_members_are_those_of_one_device_in_turn(self, *mesh):
    found, alone = trained(mesh, "auto"), trained((1, 1, 1), "in_turn")
    self.assertLen(found, 8)
    for one, other in zip(found, alone, strict=True):
      self.assertEqual(one.site, other.site)
      if one.learning_rate > 1:
        self.assertRegex(one.status, "^diverged at step [0-9]+$")
        continue
      self.assertEqual((one.status, other.status), ("ok", "ok"))
      for a, b in zip(*map(jax.tree.leaves, (one.sae, other.sae)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5)
      self.assertAlmostEqual(one.metrics.fvu, other.metrics.fvu, places=5)


if __name__ == "__main__":
  absltest.main()
