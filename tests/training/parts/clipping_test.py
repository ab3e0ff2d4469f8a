import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.errors import InputError
from saejax.recipes import row_sparse
from saejax.training import step
from saejax.training.parts import clipping
from saejax.training.recipe import Hyper
from tests import toy


def trained(factor: float, clip):
  """A TopK after some steps on its loss times a factor."""
  made = row_sparse.topk(8, 24, 3, dead_after_tokens=10**6, clip_norm=clip)
  terms = {
    name: dataclasses.replace(term, weight=factor * term.weight)
    for name, term in made.terms.items()
  }
  made = dataclasses.replace(made, terms=terms)
  one = jax.jit(step.make_step(made))
  state = step.init_state(made, jax.random.key(0))
  for i in range(10):
    x = toy.rows(32, 8, seed=i)
    state, _ = one(state, Hyper(learning_rate=jnp.float32(1e-2)), x)
  return state.sae


class ClippingTest(parameterized.TestCase):
  @parameterized.parameters(
    (None, 7.0, 1.0),
    ("unit", 4.0, 0.25),
    ("unit", 0.01, 100.0),
    (2.0, 8.0, 0.25),
    (2.0, 1.0, 1.0),
  )
  def test_scale(self, norm, found, scale):
    clip = clipping.by_norm(norm)
    self.assertAlmostEqual(float(clip.scale(jnp.float32(found))), scale, 5)

  @parameterized.parameters(None, "unit", 0.5)
  def test_gradients_of_zero_stay_zero_and_nan_is_not_hidden(self, norm):
    scale = clipping.by_norm(norm).scale
    self.assertEqual(float(0 * scale(jnp.float32(0))), 0)
    self.assertTrue(norm is None or np.isnan(scale(jnp.float32(jnp.nan))))

  def test_only_a_limit_reports_whether_it_acted(self):
    limit = clipping.by_norm(1.0)
    acted = jax.vmap(limit.metrics)(jnp.asarray([0.5, 1.0, 1.5]))
    np.testing.assert_array_equal(acted["clipped"], [0, 0, 1])
    for other in (None, "unit"):
      self.assertEmpty(clipping.by_norm(other).metrics(jnp.float32(2)))

  def test_the_scale_of_a_loss_changes_nothing_with_unit_gradients(self):
    once = trained(1.0, "unit")
    toy.assert_trees_close(trained(1024.0, "unit"), once, rtol=1e-5, atol=1e-6)
    with self.assertRaises(AssertionError):  # with a limit it decides
      toy.assert_trees_close(
        trained(1.0, 0.3), trained(1 / 64, 0.3), rtol=1e-5, atol=1e-6
      )

  @parameterized.parameters(0.0, -1.0, math.nan, "one", "own")
  def test_refuses(self, norm):
    with self.assertRaisesRegex(InputError, f"^clip_norm={norm}: must be"):
      clipping.by_norm(norm)


if __name__ == "__main__":
  absltest.main()
