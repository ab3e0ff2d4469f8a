"""saejax/evals/layer_groups.py: distances of layers, groups, their choice."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.data import streams, synthetic
from saejax.errors import InputError
from saejax.evals import layer_groups
from saejax.recipes import conditioned
from saejax.sae.context import Batch
from saejax.training import fit
from tests import toy

# AMD of the printed groups needs only a matrix that is easy to check by hand.
HAND = np.array(
  [
    [0.0, 0.1, 0.5, 0.6],
    [0.1, 0.0, 0.4, 0.7],
    [0.5, 0.4, 0.0, 0.3],
    [0.6, 0.7, 0.3, 0.0],
  ]
)


def distances(x, **options):
  return layer_groups.distances([np.asarray(x, np.float32)], **options)


class DistanceTest(absltest.TestCase):
  def test_known_angles(self):
    # layergroup, check 1.
    e = np.eye(4)
    x = np.stack([e[0], 3 * e[0], e[1], -2 * e[0], e[0] + e[1]])[None]
    D = distances(x, centre=np.zeros((5, 4)))
    want = [0, 0, 0.5, 1, 0.25]
    np.testing.assert_allclose(D[0], want, atol=5e-4)
    np.testing.assert_array_equal(np.diag(D), 0)
    np.testing.assert_allclose(D, D.T, atol=1e-6)

  def test_the_scale_of_a_layer_does_not_matter(self):
    x = np.random.default_rng(0).normal(size=(64, 5, 8))
    scale = np.geomspace(0.01, 100, 5)[None, :, None]
    np.testing.assert_allclose(distances(x), distances(x * scale), atol=1e-5)

  def test_means_are_taken_off(self):
    x = np.random.default_rng(0).normal(size=(64, 3, 8))
    far = x + 50 * np.random.default_rng(1).normal(size=(1, 3, 8))
    np.testing.assert_allclose(distances(x), distances(far), atol=1e-4)
    without = distances(far, centre=np.zeros((3, 8)))
    self.assertGreater(np.abs(without - distances(x)).max(), 0.05)

  def test_the_running_mean_begins_at_the_first_batch_and_follows(self):
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(16, 3, 8)).astype(np.float32) for _ in range(3)]
    mean, total = parts[0].mean(axis=0), 0.0
    for i, x in enumerate(parts):
      mean = mean if not i else 0.8 * mean + 0.2 * x.mean(axis=0)
      total = total + distances(x, centre=mean)
    got = layer_groups.distances(parts, alpha=0.2)
    np.testing.assert_allclose(got, total / 3, atol=1e-5)

  def test_no_rows_are_refused(self):
    with self.assertRaisesRegex(InputError, "at least 1"):
      layer_groups.distances([])


class GroupsTest(parameterized.TestCase):
  def test_by_hand(self):
    merge = lambda count: layer_groups.cluster(HAND, count)
    self.assertEqual(merge(4), ((0,), (1,), (2,), (3,)))
    self.assertEqual(merge(3), ((0, 1), (2,), (3,)))
    self.assertEqual(merge(2), ((0, 1), (2, 3)))
    self.assertEqual(merge(1), ((0, 1, 2, 3),))
    for groups, want in zip(
      map(merge, (1, 2, 3, 4)), (0.7, 0.2, 0.1 / 3, 0), strict=True
    ):
      self.assertAlmostEqual(layer_groups.amd(HAND, groups), want)

  @parameterized.parameters((0.71, 1), (0.7, 1), (0.2, 2), (0.1, 3), (0.0, 4))
  def test_the_fewest_groups_within_the_threshold(self, max_amd, count):
    self.assertLen(layer_groups.choose(HAND, max_amd=max_amd), count)

  @parameterized.parameters(*layer_groups.LINKAGES)
  def test_planted_groups_are_found(self, linkage):
    # layergroup, check 4, first half.
    V = synthetic.subspaces(jax.random.key(0), 12, (6, 6), 16)
    x = synthetic.layered(
      jax.random.key(1), 500, V, (0, 0, 0, 1, 1, 1), noise=0.1
    )["x"]
    D = distances(x)
    self.assertEqual(
      layer_groups.cluster(D, 2, linkage=linkage), ((0, 1, 2), (3, 4, 5))
    )
    groups = layer_groups.choose(D, max_amd=0.2, linkage=linkage)
    self.assertEqual(groups, ((0, 1, 2), (3, 4, 5)))

  def test_only_the_contiguous_groups_are_runs_of_layers(self):
    V = synthetic.subspaces(jax.random.key(0), 12, (6, 6), 16)
    x = synthetic.layered(jax.random.key(1), 500, V, (0, 1, 0, 1), noise=0.1)[
      "x"
    ]
    D = distances(x)
    apart = layer_groups.cluster(D, 2, linkage="precomputed")
    self.assertEqual(apart, ((0, 2), (1, 3)))
    for groups in (layer_groups.cluster(D, g) for g in (1, 2, 3, 4)):
      self.assertEqual([l for g in groups for l in g], [0, 1, 2, 3])

  def test_one_layer_is_one_group(self):
    self.assertEqual(layer_groups.choose(np.zeros((1, 1))), ((0,),))

  def test_what_cannot_be_is_refused(self):
    for bad in (0, 5):
      with self.assertRaisesRegex(InputError, "number of layers"):
        layer_groups.cluster(HAND, bad)
    with self.assertRaisesRegex(InputError, "linkage"):
      layer_groups.cluster(HAND, 2, linkage="single")
    with self.assertRaisesRegex(InputError, "max_amd"):
      layer_groups.choose(HAND, max_amd=-1.0)


class TrainedTest(absltest.TestCase):
  def test_one_sae_for_all_layers_explains_less_than_one_a_layer(self):
    # layergroup, check 4, second half.
    V = synthetic.subspaces(jax.random.key(0), 16, (8, 8), 16)
    x = np.asarray(
      synthetic.layered(
        jax.random.key(1),
        4096,
        V,
        (0, 0, 1, 1),
        active=2.0,
        noise=0.05,
        scales=(1, 2, 1, 4),
      )["x"]
    )
    scales = np.linalg.norm(x, axis=-1).mean(axis=0)

    def unexplained(layers):
      """Of each layer, by one SAE for all of them."""
      recipe = conditioned.layergroup(
        16, 16, 2, scale=scales[layers], dead_after_tokens=10_000
      )
      rows = streams.one_layer(jax.random.key(2), jnp.asarray(x[:, layers]))
      fields = {name: np.asarray(rows[name]) for name in ("x", "cond")}
      draw = streams.array_draw(fields, batch_rows=256, seed=0, epochs=1)
      (sae,), _, _ = fit.fit(recipe, draw, steps=200, members=[fit.member()])
      found = []
      for i, layer in enumerate(layers):
        y = x[:, layer]
        batch = Batch(x=jnp.asarray(y), cond=jnp.full(len(y), i))
        off = y - np.asarray(toy.reconstruct(sae, batch))
        found.append(np.square(off).sum() / np.square(y - y.mean(0)).sum())
      return found

    whole = np.mean(unexplained([0, 1, 2, 3]))
    own = np.mean([unexplained([layer]) for layer in range(4)])
    self.assertGreater(whole, own + 0.05)


if __name__ == "__main__":
  absltest.main()
