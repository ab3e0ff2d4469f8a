"""Tests of saejax.evals.autointerp.autointerp_store on a small store."""

from unittest import mock

import numpy as np
from absl.testing import absltest

from saejax.data.text import neighbours
from saejax.errors import InputError
from saejax.evals.autointerp import autointerp, autointerp_store
from saejax.evals.autointerp.judge import Oracle
from saejax.sae import activations
from tests import toy
from tests.features import stores

SIZES = autointerp_store.Sizes(
  train=4,
  test=8,
  silent=6,
  contrast=3,
  quantiles=4,
  length=4,
  least=12,
  pool=200,
)


class ReadTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.store = stores.store(f"{self.create_tempdir().full_path}/s")
    self.sae = toy.sae(n=24, d=stores.D, activation=activations.TopK(2))
    words = lambda _: stores.Words()
    self.enter_context(mock.patch.object(neighbours, "tokenizer_of", words))

  def read(self, latents=range(8), **more):
    more = {"sizes": SIZES} | more
    return autointerp_store.read(self.sae, self.store, latents, **more)

  def truth(self, latent):
    """The tokens on which a latent is active."""
    found = set()
    for a, b in self.store.intervals:
      z = np.asarray(self.sae.encode(self.store.read(a, b)))[:, latent]
      token = self.store.take(np.arange(a, b), "tok")["tok"]
      found |= {f" {t}" for t in token[z > 0]}
    return found

  def test_windows_are_of_the_store_and_parts_are_disjoint(self):
    density = np.linspace(0, 0.1, 24)
    every = self.read(density=density)
    self.assertGreater(len(every), 2)
    for latent, found in every.items():
      parts = (found.train, found.test, found.silent, found.contrast)
      self.assertEqual([len(p) for p in parts], [4, 8, 6, 3])
      keys = [w.key for part in parts for w in part]
      self.assertLen(set(keys), len(keys))
      self.assertEqual(found.rate, density[latent])
      on = self.truth(latent)
      for part in parts:
        for window in part:
          want = [token in on for token in window.tokens]
          self.assertEqual(window.active.tolist(), want)
      self.assertTrue(all(w.active.any() for w in parts[0] + parts[1]))
      self.assertFalse(any(w.active.any() for w in parts[2] + parts[3]))
      score = autointerp.detection(Oracle(), "x", found)
      self.assertEqual(score.balanced_accuracy, 1)

  def test_latents_with_too_few_windows_are_skipped(self):
    sizes = autointerp_store.Sizes(length=4, least=1000)
    self.assertEmpty(self.read(sizes=sizes))

  def test_of_neighbours_silent_windows_are_theirs(self):
    every = self.read()
    latent, other = list(every)[:2]
    found = self.read([latent], near={latent: [other]})[latent]
    on = self.truth(other)
    self.assertNotEmpty(found.silent)
    for window in found.silent:
      self.assertFalse(window.active.any())
      self.assertTrue(any(token in on for token in window.tokens))

  def test_hard_silent_windows_are_the_nearest(self):
    latent = next(iter(self.read()))

    def embed(texts):  # near where the first token is small
      return np.array([[1.0, float(t.split()[0]) / 300] for t in texts])

    found = self.read([latent], embed=embed)[latent]
    self.assertLen(found.silent, 6)
    self.assertFalse(any(w.active.any() for w in found.silent))

  def test_two_kinds_of_silent_windows_are_refused(self):
    with self.assertRaisesRegex(InputError, "near=.*embed"):
      self.read([1], near={}, embed=lambda texts: np.zeros((len(texts), 1)))


if __name__ == "__main__":
  absltest.main()
