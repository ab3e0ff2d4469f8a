"""Harvests of activations that are not finite: refused, or kept and counted."""

import pathlib
import re

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.data import harvest
from saejax.data.text import corpus as text
from saejax.errors import InputError
from tests.data import tiny


class NonfiniteTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.corpus = tiny.corpus(self.folder / "corpus")

  def harvest(self, source, target=None, **changes):
    config = tiny.config(self.corpus, self.folder / "stores", **changes)
    return harvest.harvest(config, source=source, target=target)

  @parameterized.parameters(
    (np.nan, "float32"), (-np.inf, "float32"), (3.4e38, "bfloat16")
  )
  def test_rows_that_are_not_finite_are_refused_with_their_place(
    self, value, dtype
  ):
    ran = 0

    def broken(ids, mask):
      nonlocal ran
      ran += 1
      x = np.asarray(tiny.forward(ids, mask)).copy()
      if ran > 10:  # not in the calibration
        x[ids == 2 + ord("c"), 1] = value
      return jnp.asarray(x)

    source = tiny.source(function=broken)
    with self.assertRaises(InputError) as caught:
      self.harvest(source=source, dtype=dtype)
    message = str(caught.exception)
    self.assertStartsWith(message, "harvest.nonfinite=refuse: ")
    found = re.search(
      r"and (\d+) of (\d+) rows .* document (\d+) at position (\d+), token "
      r"(\d+); ",
      message,
    )
    bad, rows, doc, pos, tok = map(int, found.groups())
    self.assertBetween(bad, 1, rows)
    corpus = text.documents(str(self.corpus))
    self.assertEqual(tok, 2 + ord("c"))
    self.assertEqual(tiny.encode(corpus[doc])[pos], tok)

  def test_infinite_rows_are_kept_too_where_that_is_allowed(self):
    def broken(ids, mask):
      x = np.asarray(tiny.forward(ids, mask)).copy()
      x[ids == 2 + ord("c"), 1] = np.inf
      return jnp.asarray(x)

    source = tiny.source(function=broken)
    train, _ = self.harvest(source=source, nonfinite="keep")
    all_ = tiny.everything(train)
    infinite = np.isinf(all_["x"]).any(-1)
    np.testing.assert_array_equal(infinite, all_["tok"] == 2 + ord("c"))

  def test_targets_that_are_not_finite_are_refused_too(self):
    def broken(ids, mask):
      x = np.asarray(tiny.forward(ids, mask)).copy()
      x[ids == 2 + ord("c"), 1] = np.nan
      return jnp.asarray(x)

    target = tiny.source(function=broken)
    with self.assertRaisesRegex(InputError, "nonfinite=refuse: .*token 101; "):
      self.harvest(tiny.source(), target)
    train, _ = self.harvest(tiny.source(), target, nonfinite="keep")
    self.assertTrue(np.isfinite(tiny.everything(train)["x"]).all())
    self.assertIn(2 + ord("c"), tiny.everything(train)["tok"])

  def test_rows_whose_norm_alone_overflows_are_outliers(self):
    def large(ids, mask):
      x = np.asarray(tiny.forward(ids, mask)).copy()
      x[ids == 2 + ord("c"), 1] = 1e25
      return jnp.asarray(x)

    train, _ = self.harvest(source=tiny.source(function=large))
    self.assertNotIn(2 + ord("c"), tiny.everything(train)["tok"])
    self.assertEqual(train.stats["nonfinite_rows"], 0)

  @parameterized.parameters("refuse", "keep")
  def test_a_model_that_gives_nothing_finite_is_always_refused(self, nonfinite):
    source = tiny.source(
      function=lambda ids, mask: tiny.forward(ids, mask) * np.nan
    )
    with self.assertRaisesRegex(InputError, "harvest.model=.*finite norm"):
      self.harvest(source=source, nonfinite=nonfinite)
    self.assertFalse((self.folder / "stores").exists())


if __name__ == "__main__":
  absltest.main()
