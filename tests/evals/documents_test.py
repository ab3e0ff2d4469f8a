"""Tests of saejax.evals.probing.documents: ablations of means are means of ablations."""

import pathlib

import numpy as np
import scipy.sparse
from absl.testing import absltest

from saejax.errors import InputError
from saejax.evals.probing import documents
from saejax.sae import activations, prep
from tests import toy
from tests.features import stores


class DocumentsTest(absltest.TestCase):
  def store(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    return stores.store(folder / "store", shuffle_seed=1)

  def test_an_ablation_is_the_mean_of_that_of_every_token(self):
    store = self.store()
    x, doc = (store.whole(name)[name] for name in ("x", "doc"))
    scaled = prep.from_stats(
      "centre_scale", {"mean": np.ones(stores.D), "mean_square": 30.0}
    )
    sae = toy.sae(activation=activations.TopK(3), prep_=scaled)
    names, found = documents.pooled(sae, store, doc, batch_rows=37)
    self.assertTrue(scipy.sparse.issparse(found.z))
    z = np.array(sae.encode(x))
    np.testing.assert_allclose(np.linalg.norm(found.directions, axis=1), 1)
    latents = np.argsort(-(z != 0).sum(axis=0))[:3]
    off = z.copy()
    off[:, latents] = 0
    ablated = x + np.asarray(sae.decode(off)) - np.asarray(sae.decode(z))
    want = np.stack([ablated[doc == g].mean(axis=0) for g in names])
    rows = np.arange(len(names))
    np.testing.assert_allclose(found.without(latents, rows), want, atol=1e-5)
    whole = np.stack([x[doc == g].mean(axis=0) for g in names])
    np.testing.assert_allclose(
      found.without(latents[:0], rows), whole, atol=1e-6
    )

  def test_refuses_arrays_that_do_not_belong_together(self):
    x, z, V = np.ones((4, 3)), np.ones((4, 5)), np.ones((5, 3))
    with self.assertRaisesRegex(InputError, "^z=shape"):
      documents.Documents(x[1:], z, V)
    with self.assertRaisesRegex(InputError, "^directions=shape"):
      documents.Documents(x, z, V[:, 1:])


if __name__ == "__main__":
  absltest.main()
