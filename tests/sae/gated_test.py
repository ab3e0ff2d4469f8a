"""Tests of saejax.sae.gated."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.sae import activations, encoders, gated
from saejax.sae.context import Pre
from tests import toy


def sae(seed: int = 5, **heads):
  """A gated SAE, no two of its numbers equal."""
  plain = toy.sae(activation=gated.Gate())
  draw = lambda i: 0.3 * toy.rows(plain.n, seed=seed + i)
  encoder = gated.Gated(
    W=plain.encoder.W, b_gate=draw(0), b_mag=draw(1), r_mag=draw(2)
  )
  return plain.replace(encoder=encoder.replace(**heads))


class GatedTest(parameterized.TestCase):
  def test_is_the_equation(self):
    ours, x = sae(), np.asarray(toy.rows(20, 8), np.float64)
    e = ours.encoder
    p = (x - ours.b_dec) @ np.asarray(e.W).T
    a = p * np.exp(e.r_mag) + e.b_mag
    want = np.where(p + e.b_gate > 0, np.maximum(a, 0), 0)
    z = ours.encode(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(z, want, rtol=1e-5, atol=1e-5)
    self.assertGreater(np.sum((np.asarray(z) > 0) != (a > 0)), 0)

  def test_equal_heads_are_a_relu(self):
    b = toy.rows(24, seed=8)
    ours = sae(b_gate=b, b_mag=b, r_mag=jnp.zeros(24))
    relu = ours.replace(
      encoder=encoders.Affine(W=ours.encoder.W, b=b),
      activation=activations.ReLU(),
    )
    x = toy.rows(20, 8)
    np.testing.assert_array_equal(ours.encode(x), relu.encode(x))

  def test_starts_with_equal_heads(self):
    e = gated.init(toy.rows(24, 8))
    for leaf in (e.b_gate, e.b_mag, e.r_mag):
      np.testing.assert_array_equal(leaf, np.zeros(24))

  def test_encoders_without_a_gate_are_refused(self):
    with self.assertRaisesRegex(ValueError, "no gate head"):
      gated.Gate()(Pre(a=jnp.zeros(3)), toy.context())


if __name__ == "__main__":
  absltest.main()
