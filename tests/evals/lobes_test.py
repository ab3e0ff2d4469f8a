"""Tests of saejax.evals.dictionary.lobes and saejax.evals.dictionary.spectral."""

import pathlib

import numpy as np
from absl.testing import absltest, parameterized
from safetensors.numpy import load_file

from saejax.errors import InputError
from saejax.evals import metrics
from saejax.evals.dictionary import cooccurrence, lobes, spectral
from tests import toy

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "geometry.safetensors"
GROUPS, EACH, D = 3, 30, 16


def planted(seed=0):
  """Groups of latents that fire in blocks of one theme, with rows near one axis."""
  rng = np.random.default_rng(seed)
  group = np.repeat(np.arange(GROUPS), EACH)
  theme = rng.integers(GROUPS, size=400)
  on = rng.random((400, len(group))) < 0.05 + 0.4 * (theme[:, None] == group)
  axis = np.asarray(toy.dictionary(GROUPS, D, seed=seed))
  W = axis[group] + 0.15 * rng.standard_normal((len(group), D))
  return on, W.astype(np.float32), group


class LobesTest(parameterized.TestCase):
  def test_planted_lobes_are_found_far_beyond_chance(self):
    on, W, group = planted()
    counts = cooccurrence.count([on], range(len(group)))
    found = lobes.lobes(counts, W, GROUPS, draws=20)
    for labels in (found.functional, found.geometric):
      self.assertAlmostEqual(metrics.ami(labels, group), 1)
    self.assertGreater(found.information.z, 10)
    self.assertGreater(found.prediction.observed, 0.95)
    self.assertGreater(found.prediction.z, 4)
    self.assertAlmostEqual(found.prediction.mean, 1 / GROUPS, delta=0.12)
    record = found.record()
    self.assertEqual(record["sizes_functional"], [EACH] * GROUPS)
    self.assertAlmostEqual(record["information_p"], 1 / 21, places=6)

  def test_shuffled_decoder_rows_are_within_chance(self):
    on, W, group = planted()
    counts = cooccurrence.count([on], range(len(group)))
    W = np.random.default_rng(1).permutation(W)
    found = lobes.lobes(counts, W, GROUPS, draws=20)
    self.assertLess(abs(found.information.z), 3)
    self.assertLess(abs(found.prediction.z), 3)

  def test_every_affinity_finds_them(self):
    on, _, group = planted()
    counts = cooccurrence.count([on], range(len(group)))
    for kind in cooccurrence.AFFINITIES:
      labels = spectral.cluster(cooccurrence.affinity(counts, kind), GROUPS)
      self.assertGreater(metrics.ami(labels, group), 0.9, kind)

  def test_latents_that_are_never_on_have_no_lobe(self):
    on, W, group = planted()
    on[:, [3, 40]] = False
    counts = cooccurrence.count([on], range(len(group)))
    found = lobes.lobes(counts, W, GROUPS, draws=2)
    np.testing.assert_array_equal(
      found.latents, np.delete(np.arange(len(group)), [3, 40])
    )
    self.assertLen(found.functional, len(group) - 2)

  def test_a_block_is_won_by_the_largest_share(self):
    lobe = np.array([0, 0, 0, 0, 1, 2])
    on = np.array([[1, 1, 0, 0, 1, 0], [1, 1, 1, 0, 0, 0], [0] * 6]).astype(
      bool
    )
    np.testing.assert_array_equal(lobes.winners(on, lobe), [1, 0, -1])
    found = lobes.table(np.array([1, 0, -1]), np.array(["a", "b", "a"]), 3)
    self.assertEqual(found, {"a": [0, 1, 0], "b": [1, 0, 0]})

  def test_refuses_more_lobes_than_live_latents(self):
    counts = cooccurrence.count([np.eye(3, dtype=bool)], range(3))
    with self.assertRaisesRegex(InputError, "^count=4: .*3 latents"):
      lobes.lobes(counts, np.eye(3, dtype=np.float32), 4)
    with self.assertRaisesRegex(InputError, "^W_dec="):
      lobes.lobes(counts, np.eye(3, dtype=np.float32)[:2], 2)


class SpectralTest(parameterized.TestCase):
  def test_clusters_are_those_of_scikit_learn(self):
    golden = load_file(GOLDEN)
    labels = spectral.cluster(golden["affinity"], 3)
    # The last item is apart from all, and of any cluster.
    self.assertAlmostEqual(
      metrics.ami(labels[:-1], golden["spectral_3"][:-1]), 1
    )

  def test_lanczos_and_all_eigenvectors_agree(self):
    on, _, group = planted()
    counts = cooccurrence.count([on], range(len(group)))
    affinity = cooccurrence.affinity(counts)
    dense = spectral.embedding(affinity, GROUPS)
    with absltest.mock.patch.object(spectral, "_DENSE", 10):
      np.testing.assert_allclose(
        spectral.embedding(affinity, GROUPS), dense, atol=1e-3
      )

  def test_labels_depend_on_the_seed_alone(self):
    rng = np.random.default_rng(0)
    affinity = spectral.angular(rng.standard_normal((60, 5)))
    first = spectral.cluster(affinity, 6, seed=3)
    np.testing.assert_array_equal(spectral.cluster(affinity, 6, seed=3), first)
    self.assertEqual(first[0], 0)  # numbered by their first items

  def test_angles_are_shares_of_half_a_turn(self):
    W = np.array([[1, 0], [1, 1], [-2, 0]], np.float32)
    found = spectral.angular(W)
    np.testing.assert_allclose(found[0], [1, 0.75, 0], atol=1e-6)

  def test_refuses_affinities_that_cannot_be(self):
    with self.assertRaisesRegex(InputError, "^W=16,385: "):
      spectral.angular(np.zeros((spectral.LIMIT + 1, 1), np.float32))
    huge = np.broadcast_to(np.float32(1), (spectral.LIMIT + 1,) * 2)
    with self.assertRaisesRegex(InputError, "^affinity=16,385: "):
      spectral.cluster(huge, 2)
    with self.assertRaisesRegex(InputError, "^affinity=-0.5: "):
      spectral.cluster(np.full((4, 4), -0.5), 2)
    with self.assertRaisesRegex(InputError, "^count=5: "):
      spectral.cluster(np.ones((4, 4)), 5)


if __name__ == "__main__":
  absltest.main()
