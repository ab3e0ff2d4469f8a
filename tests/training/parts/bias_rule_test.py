"""Tests of saejax.training.parts.bias_rule, and of the gate that it moves."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.recipes import bias_adaptation as recipes
from saejax.sae import amplitude, bias_gate
from saejax.sae.context import Batch
from saejax.training import step
from saejax.training.parts import bias_rule, constraints, losses
from saejax.training.recipe import Hyper, Record
from tests import toy

RULE = bias_rule.BiasAdaptation((0.5, 0.1), every=3, up=0.1, down=0.2)


def stats(rows, open_, largest):
  return {
    bias_rule.ROWS: jnp.asarray(rows, jnp.int32),
    bias_rule.OPEN: jnp.asarray(open_, jnp.int32),
    bias_rule.LARGEST: jnp.asarray(largest, jnp.float32),
  }


def sae(form="jump", n=4, d=3):
  """A tied network with biases and amplitudes that are neither 0 nor 1."""
  gate = bias_gate.BiasGate(-0.2 - 0.1 * jnp.arange(1.0, n + 1) / n, form)
  decoder = amplitude.Amplitude(
    W=toy.unit(toy.rows(n, d)),
    a=1 + 0.1 * jnp.arange(1.0, n + 1),
    b=0.1 * toy.rows(d),
  )
  return toy.sae(n=n, d=d).replace(
    encoder=amplitude.Transposed(), activation=gate, decoder=decoder
  )


class TargetsTest(parameterized.TestCase):
  def test_fall_geometrically_from_highest_to_lowest(self):
    got = bias_rule.targets(4, 0.5, 5e-4)
    np.testing.assert_allclose(got, [0.5, 0.05, 0.005, 0.0005])
    self.assertEqual(bias_rule.targets(1, 0.3, 0.3), (0.3,))


class RuleTest(parameterized.TestCase):
  def test_counts_open_gates_and_keeps_the_largest(self):
    b = jnp.asarray([-0.5, 0.0])
    record = toy.record(
      jnp.zeros((3, 2)),
      a=jnp.asarray([[0.4, -1.0], [2.0, -2.0], [1.0, -0.5]]),
      sae=toy.sae(n=2).replace(activation=bias_gate.BiasGate(b)),
    )
    got = RULE.update(stats(5, [1, 1], [0.2, 0.1]), record)
    toy.assert_trees_close(got, stats(8, [3, 1], [1.5, 0.1]), rtol=1e-6, atol=0)
    weighted = record.replace(
      forward=record.forward.replace(
        ctx=toy.context(
          jnp.zeros((3, 1)),
          batch=Batch(x=jnp.zeros((3, 1)), weight=jnp.asarray([1.0, 0.0, 1.0])),
        )
      )
    )
    got = RULE.update(stats(5, [1, 1], [0.2, 0.1]), weighted)
    toy.assert_trees_close(got, stats(7, [2, 1], [0.5, 0.1]), rtol=1e-6, atol=0)

  def test_lowers_what_fires_too_often_and_raises_what_never_does(self):
    #  group 0 (0.5):  above, silent, between;  group 1 (0.1): above, two silent
    b = jnp.asarray([-0.3, -0.3, -0.3, -0.95, -0.1, -0.9])
    seen = stats(100, [51, 0, 50, 11, 0, 0], [1.0, 0.0, 0.4, 2.0, 0.0, 0.0])
    want = [-0.3 - 0.2, -0.3 + 0.1 * 0.7, -0.3, -1.0, 0.0, -0.9 + 0.1 * 2.0]
    np.testing.assert_allclose(RULE.adapted(b, seen), want, rtol=1e-5)

  def test_a_group_that_is_dead_stays_finite_and_where_it_is(self):
    b = jnp.full((4,), -0.5)
    got = RULE.adapted(b, stats(50, [0] * 4, [0.0] * 4))
    np.testing.assert_array_equal(got, b)
    empty = RULE.adapted(b, stats(0, [0] * 4, [0.0] * 4))
    np.testing.assert_array_equal(empty, b)

  def test_adapts_every_so_many_steps_and_counts_anew(self):
    recipe = recipes.gba(
      3, 4, groups=2, htf=0.5, ltf=0.1, every=3, dead_after_tokens=100
    )
    state = step.init_state(recipe, jax.random.key(0))
    one = jax.jit(step.make_step(recipe))
    hyper, x = Hyper(learning_rate=jnp.float32(0.01)), toy.rows(20, 3)
    for i in range(1, 7):
      before = np.asarray(state.sae.activation.b)
      state, _ = one(state, hyper, x)
      moved = np.any(np.asarray(state.sae.activation.b) != before)
      self.assertEqual(moved, i % 3 == 0, i)
      rows = int(state.stats[bias_rule.ROWS])
      self.assertEqual(rows, 20 * (i % 3))


class GateTest(parameterized.TestCase):
  def test_jump_keeps_the_value_without_the_bias_and_relu_with_it(self):
    a, b = jnp.asarray([[0.5, 0.2, -1.0]]), jnp.full((3,), -0.3)
    jump = toy.activate(bias_gate.BiasGate(b), a)
    np.testing.assert_allclose(jump, [[0.5, 0.0, 0.0]])
    relu = toy.activate(bias_gate.BiasGate(b, "relu"), a)
    np.testing.assert_allclose(relu, [[0.2, 0.0, 0.0]], rtol=1e-6)

  def test_at_the_edge_of_the_gate_only_relu_is_continuous_in_the_bias(self):
    a = jnp.full((1, 1), 0.4)
    for form, jumps in (("jump", 0.4), ("relu", 0.0)):
      below, above = (
        toy.activate(bias_gate.BiasGate(jnp.full((1,), b), form), a)
        for b in (-0.4001, -0.3999)
      )
      np.testing.assert_allclose(above - below, jumps, atol=2e-4)

  @parameterized.parameters(*bias_gate.FORMS)
  def test_the_bias_has_no_gradient_and_everything_else_has(self, form):
    x = toy.rows(40, 3)

    def loss(s):
      out = s.forward(x, engine="dense")
      record = Record(forward=out, sae=s, stats={}, engine="dense")
      return jnp.mean(losses.mse(record))

    g = jax.grad(loss)(sae(form))
    np.testing.assert_array_equal(g.activation.b, 0)
    for leaf in (g.decoder.W, g.decoder.a, g.decoder.b):
      self.assertGreater(float(jnp.abs(leaf).min()), 0)

  @parameterized.parameters(*bias_gate.FORMS)
  def test_a_threshold_takes_the_place_of_the_gate_exactly(self, form):
    trained, x = sae(form), toy.rows(200, 3)
    held = bias_rule.to_threshold(trained, {}, None)
    np.testing.assert_allclose(held.encode(x), trained.encode(x), atol=1e-6)
    np.testing.assert_allclose(
      held.reconstruct(x), trained.reconstruct(x), atol=1e-5
    )
    self.assertBetween(float((held.encode(x) > 0).mean()), 0.1, 0.9)


class AmplitudeTest(absltest.TestCase):
  def test_both_layers_read_unit_rows_and_the_decoder_scales_them(self):
    s = sae()
    np.testing.assert_array_equal(s.W_enc, s.decoder.W)
    np.testing.assert_array_equal(s.b_enc, 0)
    np.testing.assert_allclose(
      jnp.linalg.norm(s.W_dec, axis=-1), s.decoder.a, rtol=1e-6
    )
    moved = s.replace(decoder=s.decoder.replace(W=3 * s.decoder.W))
    back = constraints.unit_norm_decoder(moved)
    toy.assert_trees_close(back, s, rtol=1e-6, atol=1e-6)


if __name__ == "__main__":
  absltest.main()
