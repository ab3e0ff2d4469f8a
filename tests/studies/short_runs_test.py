"""Tests of saejax.studies.short_runs: each variant can be started."""

import functools

import jax
from absl.testing import absltest, parameterized

from saejax.recipes import arguments
from saejax.studies import short_runs
from saejax.training import state as states
from saejax.training import step

D, N = 16, 32
RUN = {"dead_after_tokens": 1000, "steps": 100, "batch_rows": 64}


class VariantsTest(parameterized.TestCase):
  @parameterized.parameters(*zip(short_runs.VARIANTS))
  def test_it_draws_weights_of_the_sizes_asked_for(self, name):
    variant = short_runs.VARIANTS[name]
    recipe = variant.make(4, d=D, n=N, options=RUN)
    draw = functools.partial(step.init_state, recipe, sample=None)
    state = jax.eval_shape(draw, jax.random.key(0))
    self.assertEqual((state.sae.n, state.sae.d), (N, D))
    if "score" not in recipe.needs:  # a probe is fitted to scores of a sample
      self.check_axes(state)
    swept = any(term.swept for term in recipe.terms.values())
    if variant.sweeps == short_runs.COEFFICIENT:
      self.assertTrue(swept, "no term would be swept")
      self.assertGreater(len(variant.coefficients), 1)
    else:
      self.assertIn(variant.sweeps, (short_runs.K, short_runs.NOTHING))

  def check_axes(self, state):
    """No other size is 32, so that shapes say which arrays are about latents."""
    names = jax.tree.structure(state).flatten_up_to(states.axes(state))
    latents = 0
    for (path, leaf), own in zip(
      jax.tree_util.tree_leaves_with_path(state), names, strict=True
    ):
      self.assertLen(own, leaf.ndim, path)
      if own[:1] != ("p",):  # an archetypal decoder's points, as many here
        self.assertEqual(own[:1] == ("n",), leaf.shape[:1] == (N,), path)
      latents += own[:1] == ("n",)
    self.assertGreater(latents, 3)

  def test_every_choice_of_a_recipe_is_a_method_of_the_catalogue(self):
    for variant in short_runs.VARIANTS.values():
      known = {leaf.name for leaf in arguments.leaves(variant.recipe)}
      self.assertLessEqual(set(variant.arguments(4, N, D)), known)
      self.assertGreater(variant.method.rate, 0)


if __name__ == "__main__":
  absltest.main()
