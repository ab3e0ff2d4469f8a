"""Every recipe on eight devices gives the update that one gives."""

from absl.testing import absltest, parameterized

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


class DevicesTest(parameterized.TestCase):
  @parameterized.parameters(*zip(CASES))
  def test_eight_devices_equal_one(self, name):
    contract.check_on_devices(self, CASES[name])


if __name__ == "__main__":
  absltest.main()
