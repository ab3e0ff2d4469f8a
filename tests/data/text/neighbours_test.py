"""saejax/data/text/neighbours.py: the text of each token."""

from unittest import mock

import numpy as np
from absl.testing import absltest

from saejax.data.text import neighbours
from saejax.models import tokenizer
from tests import shared


class InWindowTest(absltest.TestCase):
  def test_positions_begin_anew_in_every_window(self):
    pos = np.arange(20)
    framed = {"context": 10, "prefix": [1], "suffix": [2]}
    for meta, want in ((framed, pos % 8), ({}, pos)):
      found = neighbours.in_window(mock.Mock(meta=meta), pos)
      np.testing.assert_array_equal(found, want)


class PiecesTest(absltest.TestCase):
  def test_pieces_join_to_the_text(self):
    words = tokenizer.load(shared.path("models/babyllama-105"))
    for text in ("One day, a dog.", "naïve café 狗 🐕 ok", "a\n\n b"):
      ids = words.encode(text)
      found = neighbours.pieces(words, ids)
      self.assertLen(found, len(ids))
      self.assertEqual("".join(found), words.decode(ids))
      self.assertNotIn("\ufffd", "".join(found))

  def test_a_character_that_is_cut_off_stays_visible(self):
    words = tokenizer.load(shared.path("models/babyllama-105"))
    ids = words.encode("x 🐕")[:-1]
    found = neighbours.pieces(words, ids)
    self.assertEqual("".join(found), words.decode(ids))

  def test_a_decoder_that_looks_ahead_gives_the_tokens_themselves(self):
    class Words:
      def decode(self, ids):
        return "".join(" .ab"[i] for i in ids).replace(" .", ".")

    found = neighbours.pieces(Words(), np.array([2, 0, 1, 3]))
    self.assertEqual(found, ["a", " ", ".", "b"])


if __name__ == "__main__":
  absltest.main()
