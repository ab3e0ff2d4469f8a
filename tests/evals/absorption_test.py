"""Tests of saejax.evals.absorption."""

import numpy as np
from absl.testing import absltest

from saejax.evals import absorption

# Two parents with a child each: columns are parents, then children.
ON = np.array(
  [[1, 0, 0, 0], [1, 0, 1, 0], [0, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0]], bool
)


class AbsorptionTest(absltest.TestCase):
  def test_latents_that_are_the_features_absorb_nothing(self):
    self.assertEqual(absorption.parent_recall(ON, ON, parents=2), 1.0)

  def test_a_parent_that_is_silent_where_its_child_is_on_is_found(self):
    fires = ON.copy()
    fires[1, 0] = False  # absorbed by latent 2
    self.assertEqual(absorption.parent_recall(fires, ON, parents=2), 0.5)

  def test_children_must_be_dealt_to_parents(self):
    with self.assertRaisesRegex(ValueError, "parents=3"):
      absorption.parent_recall(ON, ON, parents=3)


if __name__ == "__main__":
  absltest.main()
