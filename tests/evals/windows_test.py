"""Tests of saejax.evals.autointerp.windows: where latents are active, and the text there."""

import pathlib
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from saejax.data.store.share import Share
from saejax.data.text import neighbours
from saejax.errors import InputError
from saejax.evals.autointerp import window_search, windows
from saejax.features import parts
from saejax.sae import activations
from tests import toy
from tests.features import stores

LENGTH = 8


def sae(n=24):
  return toy.sae(n=n, d=stores.D, activation=activations.TopK(4))


class FindTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = self.create_tempdir().full_path
    self.store = stores.store(f"{self.folder}/s")
    self.sae = sae()
    self.enter_context(
      mock.patch.object(neighbours, "tokenizer_of", lambda _: stores.Words())
    )

  def truth(self, latent, store=None):
    """{(doc, cut): (largest value, row)} by encoding everything."""
    store = store or self.store
    found = {}
    for a, b in store.intervals:
      z = np.asarray(self.sae.encode(store.read(a, b)))[:, latent]
      where = store.take(np.arange(a, b), "doc", "pos")
      for i in np.flatnonzero(z > 0):
        key = int(where["doc"][i]), int(where["pos"][i]) // LENGTH
        found[key] = max(found.get(key, (0, 0)), (float(z[i]), a + int(i)))
    return found

  @parameterized.parameters(50, 4096)
  def test_every_active_window_is_found_once_with_its_largest(self, batch_rows):
    for shuffle in (None, 3):
      store = stores.store(f"{self.folder}/{shuffle}-{batch_rows}", shuffle)
      found = window_search.find(
        self.sae, store, np.array([2, 7]), length=LENGTH, batch_rows=batch_rows
      )
      for place, latent in enumerate((2, 7)):
        one, want = found.only(place), self.truth(latent, store)
        self.assertGreater(len(want), 5)
        got = {
          (d, c): (v, r)
          for d, c, v, r in zip(
            *(x.tolist() for x in (one.doc, one.cut, one.value, one.row)),
            strict=True,
          )
        }
        self.assertEqual(got.keys(), want.keys())
        for key, (value, row) in want.items():
          self.assertAlmostEqual(got[key][0], value, places=5)
          self.assertEqual(got[key][1], row)
        self.assertTrue((np.diff(one.value) <= 0).all())
        self.assertTrue(one.sampled.all())

  def test_a_bounded_sample_is_exact_whatever_the_batches(self):
    settings = {"length": LENGTH, "most": 6, "top": 3, "seed": 5}
    store = stores.store(f"{self.folder}/shuffled", 3)
    latents = np.arange(24)
    every = [
      window_search.find(self.sae, store, latents, batch_rows=rows, **settings)
      for rows in (50, 4096)
    ]
    for found in every[1:]:
      for name in ("place", "doc", "cut", "row", "draw", "sampled"):
        np.testing.assert_array_equal(
          getattr(found, name), getattr(every[0], name), name
        )
    found = every[0]
    for place in range(24):
      one, want = found.only(place), self.truth(place, store)
      self.assertLen(one.row, max(min(6, len(want)), len(one.row)))
      self.assertEqual(one.sampled.sum(), min(6, len(want)))
      strongest = sorted((v for v, _ in want.values()), reverse=True)[:3]
      np.testing.assert_allclose(one.value[:3], strongest, rtol=1e-5)

  def test_a_stopped_pass_and_two_processes_give_the_same(self):
    latents = np.array([1, 3])
    whole = window_search.find(self.sae, self.store, latents, batch_rows=50)
    for process in (1, 0):
      kept = parts.Pass(
        pathlib.Path(self.folder) / "kept",
        Share(process, 2),
      )
      try:
        found = window_search.find(
          self.sae, self.store, latents, batch_rows=50, kept=kept
        )
      except parts.Unfinished:
        continue
    for name in ("place", "row", "value"):
      np.testing.assert_array_equal(
        getattr(found, name), getattr(whole, name), name
      )

  @parameterized.parameters(([3, 2],), ([24],), ([],), ([1, 1],))
  def test_wrong_latents_are_refused(self, latents):
    with self.assertRaisesRegex(InputError, "latents=.*ascending"):
      window_search.find(self.sae, self.store, np.array(latents))

  def test_windows_are_read_cut_or_centred(self):
    found = window_search.find(
      self.sae, self.store, np.array([2]), length=LENGTH
    )
    one = found.only(0)
    rows = one.row.tolist()
    pos = self.store.take(rows, "pos")["pos"]
    read = lambda **how: windows.texts(self.store, rows, length=LENGTH, **how)
    cut, centred = read(), read(centred=True)
    on = windows.values(self.sae, self.store, [(2, text) for text in cut])
    for i, text in enumerate(cut):
      window = text.window(on[i], largest=9.0, quantile=3)
      self.assertEqual(int(pos[i]) // LENGTH, window.key[1] // LENGTH)
      self.assertAlmostEqual(window.values.max(), one.value[i], places=5)
      self.assertIn(rows[i], text.rows)
      self.assertLessEqual(len(window.tokens), LENGTH)
      np.testing.assert_array_equal(window.marks, window.values > 0)
      self.assertEqual((window.quantile, window.largest), (3, 9.0))
    for i, text in enumerate(centred):
      first = max(0, int(pos[i]) - 3 * LENGTH // 4)
      self.assertBetween(text.key[1], first, first + 1)  # one may be dropped
    keys = lambda texts: [t.key for t in texts]
    self.assertNotEqual(keys(centred), keys(cut))
    self.assertEqual(keys(read(centred=True, compat="delphi")), keys(cut))
    self.assertEqual(keys(read(compat="delphi")), keys(centred))

  def test_centred_windows_that_overlap_a_stronger_one_are_left_out(self):
    found = window_search.find(
      self.sae, self.store, np.array([2, 5]), length=LENGTH
    )
    apart = found.apart(LENGTH)
    self.assertLess(len(apart.row), len(found.row))
    for place in range(2):
      one = apart.only(place)
      for doc in np.unique(one.doc):
        gaps = np.diff(np.sort(one.pos[one.doc == doc]))
        self.assertTrue((gaps >= LENGTH).all())
    self.assertEqual(apart.only(0).value[0], found.only(0).value[0])

  def test_drawn_rows_are_of_different_windows(self):
    rows = window_search.draw_rows(self.store, 20, length=LENGTH, seed=1)
    where = self.store.take(rows, "doc", "pos")
    keys = set(zip(where["doc"], where["pos"] // LENGTH, strict=True))
    self.assertLen(keys, 20)


class WindowTest(absltest.TestCase):
  def window(self, values, marks=None):
    values = np.array(values, float)
    tokens = ("a", " b", "\n", " c")[: len(values)]
    marks = values > 0 if marks is None else np.array(marks, bool)
    return windows.Window(tokens, values, marks, largest=4.0)

  def test_levels_are_tenths_rounded_up(self):
    self.assertEqual(
      self.window([0, 0.01, 2, 4]).levels.tolist(), [0, 1, 5, 10]
    )

  def test_runs_of_marks_are_shown_once_and_new_lines_as_a_sign(self):
    self.assertEqual(self.window([0, 1, 1, 0]).shown(), "a <<b↵>> c")
    self.assertEqual(self.window([1, 0, 0, 1]).shown(), "<<a>> b↵ <<c>>")
    self.assertEqual(self.window([0, 0, 0, 0]).shown(), "a b↵ c")

  def test_strong_tokens_are_above_a_share_of_the_largest(self):
    window = self.window([0.1, 1, 0.3, 0])
    self.assertEqual(window.strong(0.3).tolist(), [False, True, True, False])
    self.assertEqual(window.strong().tolist(), [True, True, True, False])

  def test_words_of_a_plain_text_join_to_it(self):
    for text in ("a  cat\nsat ", "", " "):
      self.assertEqual(windows.plain(text).text, text)


if __name__ == "__main__":
  absltest.main()
