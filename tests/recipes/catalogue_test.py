"""Tests of saejax.recipes.catalogue: the table of methods."""

import ast
import pathlib

from absl.testing import absltest

from saejax.errors import InputError
from saejax.recipes import catalogue
from saejax.runs import grid
from saejax.runs.config import SAEConfig, sae_config
from saejax.training import loop

RECIPES = pathlib.Path(catalogue.__file__).parent


class CatalogueTest(absltest.TestCase):
  def test_every_recipe_of_the_package_is_in_it_under_its_own_name(self):
    found = {
      made.name
      for path in RECIPES.glob("*.py")
      if path.stem not in ("boosting", "common", "catalogue", "arguments")
      for made in ast.parse(path.read_text()).body
      if isinstance(made, ast.FunctionDef)
      and not made.name.startswith("_")
      and ast.unparse(made.returns or ast.Constant(None)) == "Recipe"
    }
    self.assertEqual(found, set(catalogue.METHODS))
    for name, method in catalogue.METHODS.items():
      self.assertEqual(method.make.__name__, name)

  def test_a_script_takes_every_name_and_no_other(self):
    for name in catalogue.METHODS:
      self.assertEqual(SAEConfig(recipe=name).recipe, name)
    with self.assertRaisesRegex(
      InputError, "recipe=topkk: must be one of topk"
    ):
      SAEConfig(recipe="topkk")

  def test_scripts_multiply_their_rate_by_that_of_the_method(self):
    rates = {
      name: grid.members(64, sae_config(name, k=4), loop.TrainConfig())[
        0
      ].learning_rate
      for name in ("topk", "k_sparse")
    }
    want = catalogue.METHODS["k_sparse"].rate * rates["topk"]
    self.assertEqual(rates["k_sparse"], want)


if __name__ == "__main__":
  absltest.main()
