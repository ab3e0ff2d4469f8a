"""The grid of SAEs of a run: a recipe and the values of its arguments.

Every argument of the recipe is a field with the tuple of its values:
`SAEConfig.variant("jumprelu")` is the class with the arguments of JumpReLU.
Scripts build it from the command line (`config.run`), other code with
`sae_config`.
"""

import dataclasses
import itertools
from typing import Any, ClassVar, Literal

from saejax import checks, fields
from saejax.errors import InputError
from saejax.recipes import arguments, catalogue
from saejax.sae import files

ARGUMENT = "argument"  # in the metadata of fields that are the recipe's


@dataclasses.dataclass(frozen=True, kw_only=True)
class SAEConfig:
  """A grid of SAEs: all combinations of n, arguments, learning rates, seeds.

  Attributes:
    CHOICE: name of the field that determines which other fields exist.
  """

  CHOICE: ClassVar[str] = "recipe"

  recipe: str = "topk"  # training method, or module:function for your own
  n: tuple[int, ...] = (1024,)  # numbers of latents; one group per n
  seeds: int = 1  # SAEs per combination, with seeds 0, 1, ...
  rates: tuple[float, ...] = (
    1.0,
  )  # factors of the learning rate, each trained
  prep: Literal[
    "default", "none", "centre_scale", "scale", "scale_sqrt_d", "row_layer_norm"
  ] = "default"  # scaling of x; default: the recipe's, otherwise centre_scale
  # folder of a saved SAE on whose residual each SAE is trained (boosting); none
  # where empty
  residual_of: str = ""

  def __post_init__(self):
    arguments.find(self.recipe)
    checks.distinct(self, "n")
    checks.at_least(self, 1, "seeds")
    checks.distinct(self, "rates", least=1e-6)
    for name, values in self.arguments.items():
      if not values or len(set(values)) < len(values):
        raise InputError(
          name,
          ",".join(map(str, values)),
          "must be distinct values, at least one",
          "separate values by commas, and put tuples in parentheses",
        )

  @property
  def arguments(self) -> dict[str, tuple[Any, ...]]:
    """Values of each argument of the recipe."""
    return {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
      if ARGUMENT in field.metadata
    }

  @property
  def fixed(self) -> dict[str, Any]:
    """Arguments with one value, except k."""
    return {
      name: values[0]
      for name, values in self.arguments.items()
      if len(values) == 1 and name != "k"
    }

  @property
  def combinations(self) -> list[tuple[tuple[str, Any], ...]]:
    """Combinations of all other arguments, the last one varying fastest."""
    varied = {
      name: [(name, value) for value in values]
      for name, values in self.arguments.items()
      if name not in self.fixed
    }
    return list(itertools.product(*varied.values()))

  def decisive(self) -> dict[str, Any]:
    """The settings, with the content of saved SAEs in place of their folders.

    Raises:
      InputError: a folder holds no SAE.
    """
    found = dataclasses.asdict(self)
    if self.rates == (1.0,):  # as runs from before this setting have it
      del found["rates"]
    for name in ("residual_of", *arguments.saes(self.recipe)):
      value = found[name]
      found[name] = (
        tuple(_content(name, folder) for folder in value)
        if isinstance(value, tuple)
        else _content(name, value)
      )
    return found

  @classmethod
  def variant(cls, recipe: str) -> type["SAEConfig"]:
    """Returns the class with the arguments of a recipe as further fields.

    Args:
      recipe: name of the recipe, or module:function.

    Raises:
      InputError: there is no such recipe, or an argument has the name of a
        setting.
    """
    entries: list[tuple[str, Any, Any]] = [
      ("recipe", str, dataclasses.field(default=recipe))
    ]
    for leaf in arguments.leaves(recipe):
      if hasattr(cls, leaf.name):
        rule = f"has an argument {leaf.name}, the name of a setting"
        raise InputError("recipe", recipe, rule, "give it another name")
      about = {"comment": leaf.comment, ARGUMENT: True}
      options: dict[str, Any] = {"metadata": about}
      if leaf.default is not fields.MISSING:
        options["default"] = (leaf.default,)
      field = dataclasses.field(**options)
      entries.append((leaf.name, tuple[leaf.kind, ...], field))
    return dataclasses.make_dataclass(
      cls.__name__, entries, bases=(cls,), frozen=True, kw_only=True
    )

  @staticmethod
  def choices() -> dict[str, str]:
    """Returns the recipes, each with the first line of its docstring."""
    return {
      name: (method.make.__doc__ or "").partition("\n")[0]
      for name, method in catalogue.METHODS.items()
    }

  @staticmethod
  def elsewhere(recipe: str, name: str) -> tuple[str, str]:
    """Returns rule and remedy for an argument that other recipes have.

    Args:
      recipe: name of the selected recipe.
      name: name of the argument.
    """
    if not arguments.having(name):
      return "", ""
    return f"is not an argument of {recipe}", arguments.elsewhere(name)


def _content(name: str, folder: Any) -> Any:
  """The content of the saved SAE in a folder; where there is none, no folder."""
  if not folder:
    return folder
  try:
    return files.content(folder)
  except InputError as error:
    raise error.renamed(name) from error


def sae_config(recipe: str = "topk", **values: Any) -> SAEConfig:
  """Builds the grid of a recipe.

  Args:
    recipe: name of the recipe.
    **values: fields of `SAEConfig` and arguments of the recipe, as one value or a
      list of values.

  Raises:
    InputError: an argument is missing, or the recipe does not have it.
  """
  settings = {field.name for field in dataclasses.fields(SAEConfig)}
  given = {name: v for name, v in values.items() if name not in settings}
  arguments.check_names(recipe, given)
  swept = {
    name: tuple(v) if isinstance(v, list) else (v,) for name, v in given.items()
  }
  return SAEConfig.variant(recipe)(**{**values, **swept})
