"""Tests of saejax.evals.items.taxonomy: species, kingdoms, and two levels of latents."""

import numpy as np
from absl.testing import absltest

from saejax.errors import InputError
from saejax.evals.items import monosemanticity, taxonomy

LEVELS = 7


def tree():
  """Two kingdoms of two branches at each of seven levels."""
  parents, level = {}, ["a", "b"]
  parents |= dict.fromkeys(level)
  for _ in range(LEVELS - 1):
    below = {
      child: name for name in level for child in (name + "0", name + "1")
    }
    parents |= below
    level = list(below)
  return taxonomy.taxonomy(parents), level


class TaxonomyTest(absltest.TestCase):
  def test_equal_species_share_seven_levels_and_kingdoms_none(self):
    found, species = tree()
    self.assertLen(species, 128)
    node = found.nodes(species)
    np.testing.assert_array_equal(found.depth[node], LEVELS)
    np.testing.assert_array_equal(found.common(node, node), LEVELS)
    np.testing.assert_array_equal(found.common(node[:64], node[64:]), 0)
    pair = found.nodes(["a010101", "a011101"])
    self.assertEqual(found.common(*pair), 3)  # a, a0, a01

  def test_of_an_ancestor_it_is_the_depth_of_the_ancestor(self):
    found, _ = tree()
    self.assertEqual(found.common(*found.nodes(["a01", "a010101"])), 3)
    self.assertEqual(found.common(*found.nodes(["a01", "a01"])), 3)

  def test_latents_of_a_first_group_are_less_deep(self):
    found, species = tree()
    node = np.repeat(found.nodes(species), 4)
    # Two latents of kingdoms, then one for each of 16 species.
    kingdom = np.stack([node < node[len(node) // 2]] * 2, axis=1)
    kingdom[:, 1] ^= True
    own = node[:, None] == node[None, ::4][:, :16]
    rng = np.random.default_rng(0)
    a = np.concatenate([kingdom, own], axis=1) * rng.uniform(0.5, 1, (512, 18))
    top = monosemanticity.top_items([a[:300], a[300:]], top=4).top_rows
    depths = taxonomy.depths(found, node, top)
    first, second = depths.by_group([2, 18])
    self.assertLess(first["depth"], 3)
    self.assertEqual(second["depth"], LEVELS)
    self.assertEqual((first["with_depth"], second["with_depth"]), (2, 16))
    self.assertEqual(depths.record()["taxonomy_latents"], 18)

  def test_the_depth_is_the_mean_over_pairs(self):
    found, _ = tree()
    node = found.nodes(["a000000", "a000000", "a000001", "b000000"])
    top = np.array([[0, 1, 2, 3], [0, 1, 2, -1]])
    depths = taxonomy.depths(found, node, top)
    self.assertAlmostEqual(depths.depth[0], (7 + 6 + 6 + 0 + 0 + 0) / 6)
    self.assertTrue(np.isnan(depths.depth[1]))
    np.testing.assert_array_equal(depths.mode, [0, -1])
    np.testing.assert_array_equal(depths.rounded[:1], [3])
    with absltest.mock.patch.object(taxonomy, "_PAIRS", 1):
      again = taxonomy.depths(found, node, top)
    np.testing.assert_array_equal(again.depth, depths.depth)

  def test_refuses_cycles_and_unknown_parents(self):
    with self.assertRaisesRegex(InputError, "^parents=b > c > b: .*cycle"):
      taxonomy.taxonomy({"a": "b", "b": "c", "c": "b"})
    with self.assertRaisesRegex(InputError, "^parents=x > x: .*cycle"):
      taxonomy.taxonomy({"x": "x"})
    with self.assertRaisesRegex(InputError, "^parents=animal: .*parent of cat"):
      taxonomy.taxonomy({"cat": "animal"})
    with self.assertRaisesRegex(InputError, "^parents=0"):
      taxonomy.taxonomy({})
    with self.assertRaisesRegex(InputError, "^names=dog: "):
      taxonomy.taxonomy({"cat": ""}).nodes(["dog"])

  def test_refuses_items_without_a_node_and_groups_that_leave_latents(self):
    found, species = tree()
    node = found.nodes(species[:3])
    with self.assertRaisesRegex(InputError, "^node=3: .*5 items"):
      taxonomy.depths(found, node, np.array([[0, 4]]))
    with self.assertRaisesRegex(InputError, "^top=1: "):
      taxonomy.depths(found, node, np.array([[0]]))
    depths = taxonomy.depths(found, node, np.array([[0, 1], [1, 2]]))
    for ends in ([1], [2, 1], []):
      with self.assertRaisesRegex(InputError, "^ends="):
        depths.by_group(ends)


if __name__ == "__main__":
  absltest.main()
