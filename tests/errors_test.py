"""Tests of saejax/errors.py."""

import pickle

from absl.testing import absltest

from saejax.errors import InputError


class InputErrorTest(absltest.TestCase):
  def test_prints_one_line_whatever_the_value(self):
    error = InputError("data.path", "a\nb" * 500, "must\nexist", "harvest")
    text = str(error)
    self.assertNotIn("\n", text)
    self.assertStartsWith(text, "data.path=a b")
    self.assertEndsWith(text, "...: must exist; harvest")
    self.assertLess(len(text), 250)

  def test_comes_back_whole_from_another_process(self):
    error = InputError("sae.k", 9, "must be at most n=8", "lower --sae.k")
    again = pickle.loads(pickle.dumps(error))
    self.assertEqual(str(again), str(error))
    self.assertEqual(again.value, 9)

  def test_renamed_keeps_value_rule_and_remedy(self):
    error = InputError("k", 9, "must be at most n=8", "lower it")
    again = error.renamed("sae.k")
    self.assertEqual(str(again), "sae.k=9: must be at most n=8; lower it")


if __name__ == "__main__":
  absltest.main()
