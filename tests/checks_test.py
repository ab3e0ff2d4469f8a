"""Tests of saejax.checks."""

import dataclasses
import math

from absl.testing import absltest, parameterized

from saejax import checks
from saejax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Config:
  x: object


class ChecksTest(parameterized.TestCase):
  @parameterized.parameters(
    (checks.at_least, (1,), (1, 2.5), (0, -1, math.inf, math.nan)),
    (checks.at_most, (5,), (5, -1), (6, math.inf, math.nan)),
    (checks.positive, (), (1e-9, None), (0, -1, math.inf, math.nan)),
    (checks.fraction, (), (0, 0.5, 1), (-0.1, 1.1, math.nan)),
    (checks.finite, (), (0, -1), (math.inf, math.nan)),
    (checks.distinct, (), ((3,), (8, 4)), ((), (0,), (4, 4), (1, math.inf))),
  )
  def test_values_in_the_range_pass_and_others_are_named(
    self, check, limits, good, bad
  ):
    for value in good:
      check(Config(value), *limits, "x")
    for value in bad:
      with self.assertRaisesRegex(InputError, "^x=.*: must be .*; give "):
        check(Config(value), *limits, "x")

  def test_an_order_and_a_limit_can_be_asked_for(self):
    checks.distinct(Config((1, 4)), "x", increasing=True, most=4)
    for value in ((4, 1), (1, 5)):
      with self.assertRaisesRegex(InputError, "increasing .* at most 4"):
        checks.distinct(Config(value), "x", increasing=True, most=4)


if __name__ == "__main__":
  absltest.main()
