"""benchmarks/agreement.py finds a wrong engine, and passes right ones."""

import contextlib
import io
import json
import pathlib
from unittest import mock

import numpy as np
from absl.testing import absltest

from benchmarks import agreement, agreement_cases
from saejax.errors import InputError
from saejax.kernels.sparse_decode import xla
from saejax.recipes import catalogue


def run(*methods):
  """The exit code, and the table of one device."""
  with (
    contextlib.redirect_stdout(io.StringIO()) as out,
    mock.patch.object(agreement.jax, "device_count", lambda: 1),
  ):
    code = agreement.main(agreement.Config(methods=methods))
  return code, out.getvalue()


class AgreementTest(absltest.TestCase):
  def test_engines_agree_and_kernels_are_among_them(self):
    code, out = run("topk")
    self.assertEqual(code, 0, out)
    self.assertIn("0 of 2 cells failed", out)  # sparse, pallas

  def test_gradients_that_are_wrong_by_a_thousandth_fail(self):
    right = xla.scatter_rows
    wrong = lambda *args, **given: 1.001 * right(*args, **given)
    with mock.patch.object(xla, "scatter_rows", wrong):
      code, out = run("topk")
    self.assertEqual(code, 1)
    self.assertIn("FAILED", out)

  def test_a_number_that_is_not_finite_fails(self):
    one = agreement.Outcome(np.ones(3), [np.ones(2)], [np.ones(2)])
    nan = agreement.Outcome(np.ones(3), [np.full(2, np.nan)], [np.ones(2)])
    self.assertTrue(agreement.agrees(agreement.differences(one, one)))
    self.assertFalse(agreement.agrees(agreement.differences(nan, one)))

  def test_every_method_of_the_catalogue_has_arguments(self):
    for name in catalogue.METHODS:
      self.assertEqual(agreement_cases.recipe(name).name, name)

  def test_the_committed_matrix_has_every_method_and_no_failure(self):
    path = pathlib.Path(agreement.__file__).parent / "results/agreement.json"
    found = json.loads(path.read_text())
    self.assertEqual(set(found["cells"]), set(catalogue.METHODS))
    self.assertEqual(found["tolerances"], agreement.TOLERANCES)
    for name, row in found["cells"].items():
      self.assertIn("dense, 8", row)
      for form, cell in row.items():
        self.assertTrue(agreement.agrees(cell), f"{name}: {form}")

  def test_refuses_unknown_methods(self):
    with self.assertRaisesRegex(InputError, "nonsense"):
      agreement.Config(methods=("nonsense",))


if __name__ == "__main__":
  absltest.main()
