"""Tests of saejax.training.fingerprint."""

from absl.testing import absltest, parameterized

from saejax.training.fingerprint import differences


class DifferencesTest(parameterized.TestCase):
  @parameterized.parameters(
    ({"a": 1}, {"a": 1}, []),
    ({"a": float("nan")}, {"a": float("nan")}, []),
    ({"a": {"b": 1}}, {"a": {"b": 2}}, ["a.b=1 (now 2)"]),
    ({"a": 1}, {"a": 1.0}, ["a=1 (now 1.0)"]),
    ({"a": [1, 2]}, {"a": [1, 3]}, ["a.1=2 (now 3)"]),
    ({"a": [1]}, {"a": [1, 3]}, ["a=[1] (now [1, 3])"]),
    ({"a": 1}, {"b": 2}, ["a=1 (now absent)", "b=absent (now 2)"]),
    ({"a": {"b": 1}}, {}, ["a.b=1 (now absent)"]),
  )
  def test_each_entry_that_differs_is_a_line(self, theirs, ours, lines):
    self.assertEqual(differences(theirs, ours), lines)

  def test_a_long_value_is_cut(self):
    (line,) = differences({"a": "x" * 100}, {"a": 1})
    self.assertLess(len(line), 80)


if __name__ == "__main__":
  absltest.main()
