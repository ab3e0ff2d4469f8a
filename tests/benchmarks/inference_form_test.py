"""Tests of benchmarks/inference_form.py: a short run of every method."""

from absl.testing import absltest, parameterized

from benchmarks import inference_form

SETTINGS = inference_form.Config(batch_rows=512, n=64, k=8, rows=8192)


class InferenceFormTest(parameterized.TestCase):
  @parameterized.parameters(*inference_form.methods())
  def test_both_forms_keep_what_is_asked_for(self, method):
    x, held_out = inference_form.planted(SETTINGS.rows)
    found = inference_form.measured(
      inference_form.methods()[method], SETTINGS, 40, x, held_out[:4096]
    )
    if method != "gba":  # its biases have not moved in 40 steps
      self.assertAlmostEqual(found["training_l0"], 8, delta=1.0)
    self.assertAlmostEqual(
      found["l0"], found["training_l0"], delta=0.1 * found["training_l0"]
    )

  def test_points_are_lines_of_a_table(self):
    point = {"rows": "planted", "method": "gba", "steps": 80, "k": None}
    point |= dict.fromkeys(("l0", "training_l0", "fvu", "training_fvu"), 0.5)
    head, line = inference_form.table([point]).splitlines()
    self.assertIn("asked", head)
    self.assertEqual(line.split()[:4], ["planted", "gba", "80", "-"])


if __name__ == "__main__":
  absltest.main()
