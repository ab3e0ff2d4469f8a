"""Tests of saejax.training.parts.finish."""

from absl.testing import absltest, parameterized

from saejax.sae import activations, budgets
from saejax.training.parts import finish
from tests import toy


class ToTopKTest(parameterized.TestCase):
  @parameterized.parameters((1.0, 3), (1.5, 4), (2.0, 6), (99.0, 24))
  def test_keeps_alpha_k(self, alpha, k):
    moving = activations.Ranked(budgets.Annealed(3, 20, 9), keep="signed")
    sae = finish.ToTopK(alpha, keep="signed")(
      toy.sae(activation=moving), {}, None
    )
    self.assertEqual(sae.activation, activations.TopK(k, keep="signed"))


if __name__ == "__main__":
  absltest.main()
