"""Tests of saejax.recipes.batch_sparse: the contract, limits, known truths."""

from absl.testing import absltest, parameterized

from saejax.recipes import batch_sparse
from tests import contract

D, N = contract.D, contract.N
CASES = {
  "batchtopk": contract.Case(
    make=lambda: batch_sparse.batchtopk(D, N, 3, dead_after_tokens=10_000),
    floor=0.85,
  ),
}


class ContractTest(parameterized.TestCase):
  @parameterized.parameters(*zip(CASES))
  def test_passes_the_contract(self, name):
    contract.check(self, CASES[name])


if __name__ == "__main__":
  absltest.main()
