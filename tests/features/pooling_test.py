"""saejax/features/pooling.py: latents pooled over groups of rows."""

import dataclasses
import pathlib
from unittest import mock

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.data.store.share import Share
from saejax.errors import InputError
from saejax.features import parts, pooling
from saejax.sae import activations, jumprelu
from tests import toy
from tests.features import stores


class Stop(Exception):
  """Ends a pass."""


class PooledTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    # Few later entries, so that they are joined in the middle of a pass.
    self.enter_context(mock.patch.object(pooling, "_LATER", 40))

  def store(self, name="store", shuffle_seed=None):
    return stores.store(self.folder / name, shuffle_seed)

  def test_means_of_rows_are_those_of_each_group(self):
    store = self.store()
    doc = store.whole("doc")["doc"]
    x = np.asarray(store.whole("x")["x"], np.float64)
    groups = np.where(doc == 4, -1, doc)
    names, means = pooling.row_means(store, groups, batch_rows=37)
    np.testing.assert_array_equal(names, [0, 1, 2, 3, 5])
    want = np.stack([x[groups == g].mean(axis=0) for g in names])
    np.testing.assert_allclose(means, want, atol=1e-12)

  @parameterized.parameters(
    activations.TopK(3),
    activations.ReLU(),
    activations.TopK(3, score="magnitude", keep="signed"),
  )
  def test_they_are_those_of_the_rows_in_any_order(self, kind):
    sae, found = toy.sae(activation=kind), {}
    for name, seed in (("store", None), ("shuffled", 1)):
      store = self.store(name, seed)
      doc = store.whole("doc")["doc"]
      groups = np.where(doc == 4, -1, doc)
      z = np.asarray(sae.encode(store.whole("x")["x"]), np.float64)
      pooled = pooling.pooled(sae, store, groups, batch_rows=37)
      np.testing.assert_array_equal(pooled.groups, [0, 1, 2, 3, 5])
      np.testing.assert_array_equal(np.lexsort(
        (pooled.latent, pooled.group)), np.arange(len(pooled.group))
      )  # fmt: skip
      for how, of in (
        ("mean", lambda own: own.mean(axis=0)),
        ("sum", lambda own: own.sum(axis=0)),
        ("max", lambda own: own.max(axis=0)),
        ("count", lambda own: (own != 0).sum(axis=0)),
      ):
        want = np.stack([of(z[groups == g]) for g in pooled.groups])
        got = pooled.matrix(how).toarray()
        np.testing.assert_allclose(got, want, atol=1e-5, err_msg=how)
        found[name, how] = got
    for how in pooling.HOW:
      np.testing.assert_allclose(
        found["store", how], found["shuffled", how], atol=1e-5
      )

  def test_a_stopped_pass_and_several_processes(self):
    sae = toy.sae(activation=activations.TopK(3))
    store = self.store()
    doc = store.whole("doc")["doc"]
    make = lambda **how: dataclasses.asdict(
      pooling.pooled(sae, store, doc, batch_rows=16, **how)
    )
    want = make()
    kept = parts.Pass(self.folder / "pass", seconds=0)
    added = pooling._Pooling.added

    def stopping(self, total, batch, at=100):
      if batch[0] >= at:
        raise Stop
      return added(self, total, batch)

    with (
      mock.patch.object(parts, "_LEAST", 0),
      mock.patch.object(pooling._Pooling, "added", stopping),
      self.assertRaises(Stop),
    ):
      make(kept=kept)
    got = make(kept=kept)
    for name in want:
      np.testing.assert_array_equal(got[name], want[name], name)
    shared = lambda process: parts.Pass(self.folder / "two", Share(process, 2))
    with self.assertRaises(parts.Unfinished):
      make(kept=shared(1))
    got = make(kept=shared(0))
    for name in want:
      np.testing.assert_allclose(got[name], want[name], rtol=1e-9)

  def test_no_latent_is_active(self):
    sae = toy.sae(activation=jumprelu.JumpReLU(theta=jnp.full(24, 1e9)))
    store = self.store()
    found = pooling.pooled(sae, store, store.whole("doc")["doc"])
    self.assertEqual(found.matrix("max").shape, (6, sae.n))
    self.assertEqual(found.matrix().nnz, 0)
    self.assertEqual(found.rows.sum(), store.rows)

  def test_what_cannot_be(self):
    store = self.store()
    with self.assertRaisesRegex(InputError, "groups=shape"):
      pooling.pooled(toy.sae(), store, np.zeros(3, int))
    found = pooling.pooled(toy.sae(), store, store.whole("doc")["doc"])
    with self.assertRaisesRegex(InputError, "how=median: must be one of mean"):
      found.matrix("median")


if __name__ == "__main__":
  absltest.main()
