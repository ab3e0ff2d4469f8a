"""Every line of the catalogue makes a recipe that can be started."""

import jax
from absl.testing import absltest, parameterized

from saejax.errors import InputError
from saejax.recipes import catalogue
from saejax.runs import grid
from saejax.runs.config import SAEConfig
from saejax.training import loop, step
from saejax.training import state as states

SETTING = catalogue.Setting(
  d=16,
  n=32,
  steps=100,
  options={"dead_after_tokens": 1000},
)


class CatalogueTest(parameterized.TestCase):
  @parameterized.parameters(*zip(catalogue.METHODS))
  def test_recipe_draws_weights_of_the_sizes_asked_for(self, name):
    recipe = catalogue.recipe(name, SETTING, 4)
    state = jax.eval_shape(
      lambda: (
        step.init_state(recipe, jax.random.key(0), sample=None)
        if "score" not in recipe.needs
        else None
      )
    )
    if state is not None:  # a probe is fitted to scores of a sample
      self.assertEqual((state.sae.n, state.sae.d), (32, 16))
      self.check_axes(state)
    method = catalogue.METHODS[name]
    self.assertIn(
      method.sweeps, (catalogue.K, catalogue.COEFFICIENT, catalogue.NOTHING)
    )
    swept = any(term.swept for term in recipe.terms.values())
    if method.sweeps == catalogue.COEFFICIENT:
      self.assertTrue(swept, "no term would be swept")
      self.assertGreater(len(method.coefficients), 1)

  def check_axes(self, state):
    """No other size is 32, so that shapes say which arrays are about latents."""
    names = jax.tree.structure(state).flatten_up_to(states.axes(state))
    latents = 0
    for (path, leaf), own in zip(
      jax.tree_util.tree_leaves_with_path(state), names, strict=True
    ):
      self.assertLen(own, leaf.ndim, path)
      if own[:1] != ("p",):  # an archetypal decoder's points, as many here
        self.assertEqual(own[:1] == ("n",), leaf.shape[:1] == (32,), path)
      latents += own[:1] == ("n",)
    self.assertGreater(latents, 3)

  def test_a_script_takes_every_name_and_no_other(self):
    for name in catalogue.METHODS:
      self.assertEqual(SAEConfig(recipe=name).recipe, name)
    with self.assertRaisesRegex(
      InputError, "recipe=topkk: must be one of topk"
    ):
      SAEConfig(recipe="topkk")
    with self.assertRaisesRegex(InputError, "coefficients.*no penalty"):
      SAEConfig(recipe="topk", coefficients=(1.0, 2.0))

  def test_scripts_multiply_their_rate_by_that_of_the_method(self):
    rates = {
      name: grid.members(64, SAEConfig(recipe=name), loop.TrainConfig())[
        0
      ].learning_rate
      for name in ("topk", "k_sparse")
    }
    want = catalogue.METHODS["k_sparse"].rate * rates["topk"]
    self.assertEqual(rates["k_sparse"], want)


if __name__ == "__main__":
  absltest.main()
