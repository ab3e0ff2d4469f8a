"""Tests of saejax.report.forms."""

from absl.testing import absltest, parameterized

from saejax.report import forms

POINT = {"n": 64, "k": 4, "seed": 1, "l0": 4.1, "fvu": 0.30}


class NotesTest(parameterized.TestCase):
  @parameterized.parameters((4.0, 0.31), (4.1, 0.30), (None, None))
  def test_a_difference_below_5_per_cent_is_not_mentioned(self, l0, fvu):
    point = {**POINT, "training_l0": l0, "training_fvu": fvu}
    self.assertEqual(forms.notes([point, POINT]), [])

  @parameterized.parameters(
    (3.0, 0.30, "L0 4.1 in use, 3 in training"),
    (4.1, 0.20, "FVU 0.3 in use, 0.2 in training"),
  )
  def test_a_larger_one_names_the_sae_and_both_numbers(self, l0, fvu, said):
    point = {**POINT, "training_l0": l0, "training_fvu": fvu}
    (note,) = forms.notes([POINT, point])
    self.assertIn(f"n = 64, k = 4, seed 1: {said}.", note.text)


if __name__ == "__main__":
  absltest.main()
