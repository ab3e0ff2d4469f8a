"""Tests of saejax.evals.dictionary.cooccurrence: pairs of latents in blocks of text."""

import pathlib
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from saejax.data.store import create
from saejax.data.store.share import Share
from saejax.errors import InputError
from saejax.evals.dictionary import cooccurrence
from saejax.features import parts
from saejax.sae import activations
from tests import toy
from tests.features import stores

BLOCK, THRESHOLD = 10, 0.4


def on(blocks=300, n=12, seed=0):
  """Latents that are on in blocks of which some have a theme."""
  rng = np.random.default_rng(seed)
  theme = rng.random((blocks, 3)) < 0.4
  found = rng.random((blocks, n)) < 0.2
  return found | (theme[:, np.arange(n) % 3] & (rng.random((blocks, n)) < 0.5))


def counted(x):
  return cooccurrence.count([x], range(x.shape[1]))


class AffinityTest(parameterized.TestCase):
  def test_phi_is_pearson_of_the_two_vectors(self):
    x = on()
    want = np.corrcoef(x.T.astype(float))
    np.testing.assert_allclose(
      cooccurrence.phi(counted(x)), want, rtol=0, atol=1e-9
    )
    np.testing.assert_allclose(
      cooccurrence.affinity(counted(x)), want + 1, rtol=1e-6
    )

  def test_jaccard_is_dice_over_two_minus_dice(self):
    counts = counted(on())
    jaccard, dice = (
      cooccurrence.affinity(counts, k) for k in ("jaccard", "dice")
    )
    np.testing.assert_allclose(jaccard, dice / (2 - dice), rtol=1e-5)

  def test_they_are_those_of_the_definitions(self):
    x = on()
    a, b = x[:, 1], x[:, 4]
    n11, n10, n01, n00 = (
      float(np.sum(v)) for v in (a & b, a & ~b, ~a & b, ~a & ~b)
    )
    want = {
      "jaccard": n11 / (n11 + n10 + n01),
      "dice": 2 * n11 / (2 * n11 + n10 + n01),
      "overlap": n11 / min(n11 + n10, n11 + n01),
      "simple": (n11 + n00) / len(x),
    }
    for kind, value in want.items():
      found = cooccurrence.affinity(counted(x), kind)
      np.testing.assert_allclose(found[1, 4], value, rtol=1e-6, err_msg=kind)

  def test_latents_that_are_never_or_always_on_have_no_nan(self):
    x = on()
    x[:, 0], x[:, 1] = False, True
    counts = counted(x)
    for kind in cooccurrence.AFFINITIES:
      self.assertTrue(np.isfinite(cooccurrence.affinity(counts, kind)).all())
    np.testing.assert_array_equal(cooccurrence.phi(counts)[:2], 0)
    np.testing.assert_array_equal(counts.live.latents, np.arange(1, 12))

  def test_refuses_an_unknown_affinity(self):
    with self.assertRaisesRegex(InputError, "affinity=cosine: .*phi"):
      cooccurrence.affinity(counted(on()), "cosine")


class CountTest(parameterized.TestCase):
  @parameterized.parameters(1, 7, 300)
  def test_batches_do_not_matter(self, size):
    x = on()
    batches = (x[i : i + size] for i in range(0, len(x), size))
    with mock.patch.object(cooccurrence, "_LATER", 20):
      found = cooccurrence.count(batches, range(12))
    np.testing.assert_array_equal(found.both, x.T.astype(int) @ x)
    self.assertEqual(found.blocks, 300)

  def test_refuses_more_than_sixteen_thousand(self):
    with self.assertRaisesRegex(InputError, "latents=16,385: .*16,384"):
      cooccurrence.count([], range(cooccurrence.LIMIT + 1))


class ObserveTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.store = stores.store(self.folder / "store")

  def want(self, sae):
    """Counts of whole blocks, one document after another."""
    z = np.asarray(sae.encode(self.store.whole("x")["x"]))
    doc, blocks = self.store.whole("doc")["doc"], []
    for each in np.unique(doc):
      own = z[doc == each] > THRESHOLD
      for i in range(len(own) // BLOCK):
        blocks.append(own[i * BLOCK : (i + 1) * BLOCK].any(axis=0))
    return np.array(blocks)

  @parameterized.product(
    kind=(activations.TopK(3), activations.ReLU()), batch_rows=(15, 64)
  )
  def test_they_are_those_of_the_blocks(self, kind, batch_rows):
    sae = toy.sae(activation=kind)
    found = cooccurrence.observe(
      sae,
      self.store,
      threshold=THRESHOLD,
      block=BLOCK,
      batch_rows=batch_rows,
    )
    want = self.want(sae)
    self.assertEqual(found.blocks, len(want))
    np.testing.assert_array_equal(found.both, want.T.astype(int) @ want)
    some = cooccurrence.observe(
      sae, self.store, latents=[7, 2], threshold=THRESHOLD, block=BLOCK
    )
    np.testing.assert_array_equal(some.latents, [2, 7])
    np.testing.assert_array_equal(some.both, found.both[np.ix_([2, 7], [2, 7])])

  def test_in_parts_of_several_processes(self):
    sae = toy.sae(activation=activations.TopK(3))
    make = lambda **how: cooccurrence.observe(
      sae, self.store, threshold=0.1, block=BLOCK, batch_rows=32, **how
    )
    want = make()
    for process in (1, 0):
      kept = parts.Pass(self.folder / "pass", Share(process, 2))
      if process:
        with self.assertRaises(parts.Unfinished):
          make(kept=kept)
      else:
        np.testing.assert_array_equal(make(kept=kept).both, want.both)

  def test_refuses_shuffled_rows_and_blocks_that_are_too_long(self):
    shuffled = stores.store(self.folder / "shuffled", shuffle_seed=1)
    with self.assertRaisesRegex(InputError, "^store=.*held-out store"):
      cooccurrence.observe(toy.sae(), shuffled, block=BLOCK)
    with self.assertRaisesRegex(InputError, "^block=256: "):
      cooccurrence.observe(toy.sae(), self.store)
    with self.assertRaisesRegex(InputError, "^latents="):
      cooccurrence.observe(toy.sae(), self.store, latents=[24], block=BLOCK)

  def test_a_row_that_is_not_finite_is_never_on(self):
    x = np.array(stores.rows())
    x[3] = np.nan
    store = create.write_store(
      self.folder / "x",
      {"x": x, "doc": np.zeros(len(x), np.int64)},
      shuffle_seed=None,
    )
    sae = toy.sae(activation=activations.TopK(3))
    found = cooccurrence.observe(sae, store, threshold=0.0, block=4)
    self.assertEqual(found.blocks, len(x) // 4)
    z = np.asarray(sae.encode(x[:3])) > 0
    self.assertLessEqual(z.any(axis=0).sum(), found.on.astype(bool).sum())


if __name__ == "__main__":
  absltest.main()
