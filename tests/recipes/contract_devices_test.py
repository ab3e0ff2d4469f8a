"""Every recipe on a mesh of eight devices gives the update that one gives.

Recipes take the meshes in turn; benchmarks/scaling_efficiency.py has all of both.
"""

from absl.testing import absltest, parameterized

from benchmarks import agreement_cases, step_programs
from saejax.recipes import catalogue
from tests import contract
from tests.recipes import (
  batch_sparse_test,
  bias_adaptation_test,
  budgets_test,
  circuits_test,
  conditioned_test,
  contrastive_test,
  factored_test,
  nested_test,
  regularised_test,
  row_sparse_test,
  several_test,
  specialised_test,
  stochastic_test,
  thresholds_test,
)

CASES = {
  **batch_sparse_test.CASES,
  **bias_adaptation_test.CASES,
  **budgets_test.CASES,
  **circuits_test.CASES,
  **conditioned_test.CASES,
  **factored_test.CASES,
  **nested_test.DEVICES,
  **contrastive_test.CASES,
  **regularised_test.CASES,
  **row_sparse_test.CASES,
  **several_test.CASES,
  **specialised_test.CASES,
  **stochastic_test.CASES,
  **thresholds_test.CASES,
}


MESHES = ((1, 2, 4), (2, 2, 2), (1, 1, 8), (1, 4, 2), (8, 1, 1), (1, 8, 1))
NAMES = dict.fromkeys([*catalogue.METHODS, *CASES])


def case(name):
  """A method without a case of its own, as the studies run it."""
  sizes = step_programs.Sizes(contract.ROWS, contract.D, contract.N, k=3)
  return contract.Case(
    make=lambda: agreement_cases.recipe(name, sizes), floor=0
  )


class DevicesTest(parameterized.TestCase):
  @parameterized.named_parameters(
    (f"_{name}", name, MESHES[i % len(MESHES)]) for i, name in enumerate(NAMES)
  )
  def test_eight_devices_equal_one(self, name, mesh):
    contract.check_on_devices(self, CASES.get(name) or case(name), mesh)


if __name__ == "__main__":
  absltest.main()
