"""A mesh of eight devices: the same SAE as on one."""

import jax
import numpy as np
import pytest
from absl.testing import absltest, parameterized

import saejax
from tests import toy

D, N = 16, 32
SETTINGS = {"n": N, "k": 4, "steps": 6, "batch_rows": 64, "progress": False}

pytestmark = pytest.mark.devices


class MeshTest(parameterized.TestCase):
  @parameterized.parameters((1, 2, 4), (1, 8, 1))
  def test_fit_on_a_mesh_is_fit_on_one_device(self, *mesh):
    x = np.asarray(toy.planted(jax.random.key(0), 1000, toy.dictionary(N, D)))
    one, found = saejax.fit(x, **SETTINGS)
    many, sharded = saejax.fit(x, mesh=mesh, **SETTINGS)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
      np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5)
    self.assertAlmostEqual(found.fvu, sharded.fvu, places=3)


if __name__ == "__main__":
  absltest.main()
