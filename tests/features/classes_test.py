"""saejax/features/classes.py: sums over the rows of each class."""

import pathlib
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from saejax.data.store import create
from saejax.data.store.share import Share
from saejax.errors import InputError
from saejax.features import classes, parts
from saejax.sae import activations
from tests import toy
from tests.features import stores

NAMES = ("rows", "count", "sum", "square")


class ClassSumsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.store = stores.store(self.folder / "store")
    self.doc = self.store.whole("doc")["doc"]

  def check(self, got, want):
    np.testing.assert_array_equal(got.classes, want.classes)
    for name in NAMES:
      np.testing.assert_allclose(
        getattr(got, name), getattr(want, name), rtol=1e-9, err_msg=name
      )

  @parameterized.parameters(
    activations.TopK(3),
    activations.ReLU(),
    activations.TopK(3, score="magnitude", keep="signed"),
  )
  def test_they_are_those_of_the_rows(self, kind):
    sae = toy.sae(activation=kind)
    labels = np.where(self.doc == 1, -1, self.doc % 3)
    found = classes.class_sums(sae, self.store, labels, batch_rows=50)
    z = np.asarray(sae.encode(self.store.whole("x")["x"]), np.float64)
    np.testing.assert_array_equal(found.classes, [0, 1, 2])
    for i, label in enumerate(found.classes):
      own = z[labels == label]
      self.assertEqual(found.rows[i], len(own))
      np.testing.assert_array_equal(found.count[i], (own != 0).sum(axis=0))
      np.testing.assert_allclose(found.mean[i], own.mean(axis=0), atol=1e-6)
      np.testing.assert_allclose(found.variance[i], own.var(axis=0), atol=1e-6)
      rest = z[(labels != label) & (labels >= 0)]
      np.testing.assert_allclose(
        found.others.mean[i], rest.mean(axis=0), atol=1e-6
      )
      np.testing.assert_allclose(
        found.others.density[i], (rest != 0).mean(axis=0), rtol=1e-12
      )

  def test_labels_may_be_texts_and_not_finite_rows_are_left_out(self):
    x = stores.rows().copy()
    x[3, 1] = np.inf
    store = create.write_store(self.folder / "x", {"x": x}, shuffle_seed=None)
    labels = np.array(["a", "", "b"] * 100)
    found = classes.class_sums(toy.sae(), store, labels)
    self.assertEqual(found.classes.tolist(), ["a", "b"])
    self.assertEqual(found.rows.tolist(), [99, 100])

  def test_in_parts_of_several_processes(self):
    sae = toy.sae(activation=activations.TopK(3))
    make = lambda **how: classes.class_sums(sae, self.store, self.doc, **how)
    want = make()
    self.check(make(batch_rows=7), want)
    kept = lambda process: parts.Pass(self.folder / "pass", Share(process, 2))
    with self.assertRaises(parts.Unfinished):
      make(batch_rows=32, kept=kept(1))
    self.check(make(batch_rows=32, kept=kept(0)), want)
    with self.assertRaisesRegex(InputError, "settings.labels"):
      classes.class_sums(
        sae, self.store, self.doc % 2, batch_rows=32, kept=kept(0)
      )

  def test_labels_that_cannot_be(self):
    for labels, message in (
      (self.doc[1:], r"labels=shape.*one for each row.*-1"),
      (self.doc / 2, "labels=dtype float64: must be integers or texts"),
      (self.doc * 0 - 1, "labels=none of the rows: must have at least one"),
    ):
      with self.assertRaisesRegex(InputError, message):
        classes.class_sums(toy.sae(), self.store, labels)
    with self.subTest("too many"):
      self.enter_context(mock.patch.object(classes, "_BYTES", 10**3))
      with self.assertRaisesRegex(InputError, "labels=6 classes.*pooling"):
        classes.class_sums(toy.sae(), self.store, self.doc)


if __name__ == "__main__":
  absltest.main()
