"""Arguments of recipes, derived from signatures and passed by name.

A recipe is a function

    name(d, n, <its arguments>, **options) -> Recipe

whose arguments are its configuration: name, type and default from the
signature, one line of documentation from the Args of the docstring. `options`
are the settings of the run (`common.Options`).
"""

import importlib
import importlib.util
import inspect
import pathlib
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from saejax import fields
from saejax.errors import InputError
from saejax.recipes import catalogue
from saejax.sae.sae import SAE
from saejax.training.recipe import Recipe

Function = Callable[..., Recipe]
SIZES = ("d", "n")  # given by the rows and the run


def find(name: str) -> Function:
  """Returns the function of a recipe.

  Args:
    name: a name in the catalogue, or "module:function" for your own recipe; the
      module may be in the working directory.

  Raises:
    InputError: the recipe does not exist, or is not a recipe function.
  """
  if name in catalogue.METHODS:
    return catalogue.METHODS[name].make
  module, colon, function = name.partition(":")
  if not colon:
    raise InputError(
      "recipe",
      name,
      f"must be one of {', '.join(catalogue.METHODS)}",
      "or pass module:function for your own recipe",
    )
  try:
    made: Any = getattr(_module(module), function)
  except (ImportError, AttributeError) as error:
    rule = f"cannot be imported ({error})"
    raise InputError("recipe", name, rule, "pass module:function") from error
  parameters = _parameters(made) if callable(made) else []
  takes = [p.name for p in parameters]
  if (
    takes[:2] != [*SIZES]
    or parameters[-1].kind is not parameters[-1].VAR_KEYWORD
  ):
    raise InputError(
      "recipe",
      name,
      "must be a function (d, n, ..., **options) that returns a Recipe",
      "see docs/own-method.md",
    )
  return typing.cast(Function, made)


def _module(name: str) -> Any:
  """Imports a module, also from the working directory."""
  try:
    return importlib.import_module(name)
  except ModuleNotFoundError as error:
    path = pathlib.Path(*name.split(".")).with_suffix(".py")
    if error.name != name.partition(".")[0] or not path.is_file():
      raise
  spec = importlib.util.spec_from_file_location(name, path)
  if spec is None or spec.loader is None:
    raise ImportError(f"{path} is not a module")
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module
  spec.loader.exec_module(module)
  return module


def leaves(recipe: str | Function) -> tuple[fields.Leaf, ...]:
  """Lists the arguments of a recipe, in order.

  Args:
    recipe: its name, see `find`, or its function.

  Raises:
    InputError: there is no such recipe, or an argument has a type that no flag
      can hold, or neither a type nor a default.
  """
  fn = find(recipe) if isinstance(recipe, str) else recipe
  hints, said = typing.get_type_hints(fn), docs(fn)
  found = []
  for p in _parameters(fn):
    if p.name in SIZES or p.kind is p.VAR_KEYWORD:
      continue
    default = fields.MISSING if p.default is p.empty else p.default
    try:
      kind = fields.flaggable(hints.get(p.name, type(default)))
    except TypeError as error:
      called = recipe if isinstance(recipe, str) else fn.__name__
      rule = f"its argument {p.name} cannot be a setting ({error})"
      remedy = "annotate it as int, float, bool, str, Literal or tuple of those"
      raise InputError("recipe", called, rule, remedy) from error
    found.append(
      fields.Leaf(
        name=p.name,
        kind=kind,
        default=default,
        comment=said.get(p.name, ""),
      )
    )
  return tuple(found)


def saes(recipe: str | Function) -> tuple[str, ...]:
  """Names the arguments that are SAEs, given by their folders as flags.

  Args:
    recipe: its name, see `find`, or its function.
  """
  fn = find(recipe) if isinstance(recipe, str) else recipe
  hints = typing.get_type_hints(fn)
  names = [p.name for p in _parameters(fn) if p.name in hints]
  return tuple(n for n in names if SAE in typing.get_args(hints[n]))


def _parameters(fn: Callable[..., Any]) -> list[inspect.Parameter]:
  return list(inspect.signature(fn).parameters.values())


def docs(fn: Callable[..., Any]) -> dict[str, str]:
  """Maps each argument to its entry in the docstring's Args, as one line.

  Args:
    fn: a function with a docstring in Google style.

  Returns:
    The entries by argument; empty where the docstring has no Args.
  """
  lines = (inspect.getdoc(fn) or "").splitlines()
  if "Args:" not in lines:
    return {}
  said: dict[str, list[str]] = {}
  names: list[str] = []
  for line in lines[lines.index("Args:") + 1 :]:
    if line and not line.startswith(" "):
      break
    if entry := re.match(r"  ([*\w][*\w, ]*): (.*)", line):
      names = [name.strip("* ") for name in entry[1].split(",")]
      line = entry[2]
    for name in names:
      said.setdefault(name, []).append(line.strip())
  return {name: " ".join(filter(None, text)) for name, text in said.items()}


def having(argument: str) -> list[str]:
  """Names of the recipes with an argument.

  Args:
    argument: name of the argument.
  """
  return [
    name
    for name, method in catalogue.METHODS.items()
    if any(leaf.name == argument for leaf in leaves(method.make))
  ]


def make(
  recipe: str | Function,
  *,
  d: int,
  n: int,
  arguments: Mapping[str, Any],
  **options: Any,
) -> Recipe:
  """Builds a recipe from its name, its arguments and the settings of a run.

  Args:
    recipe: name or function, see `find`.
    d: width of the activations.
    n: latents.
    arguments: values by name; others have their defaults.
    **options: see `common.Options`.

  Raises:
    InputError: the recipe has no such argument, lacks one that must be given,
      or refuses a value.
  """
  fn = find(recipe) if isinstance(recipe, str) else recipe
  check_names(recipe, arguments)
  return fn(d, n, **arguments, **options)


def check_names(recipe: str | Function, names: Sequence[str] | Mapping) -> None:
  """Checks the names of arguments passed to a recipe.

  Args:
    recipe: its name, see `find`, or its function.
    names: names of the arguments, or their values by name.

  Raises:
    InputError: the recipe has no such argument, or a required one is missing.
  """
  called = recipe if isinstance(recipe, str) else recipe.__name__
  known = {leaf.name: leaf for leaf in leaves(recipe)}
  for name in names:
    if name not in known:
      value = names[name] if isinstance(names, Mapping) else ""
      names_ = ", ".join(known) or "no arguments"
      rule = f"{called} has no such argument; it has {names_}"
      raise InputError(name, value, rule, elsewhere(name))
  for leaf in known.values():
    if leaf.default is fields.MISSING and leaf.name not in names:
      rule = f"must be given for {called}: {leaf.comment}"
      raise InputError(leaf.name, "", rule, f"pass {leaf.name}")


def elsewhere(argument: str) -> str:
  """Names the recipes that have an argument, in a clause for messages.

  Args:
    argument: name of the argument.
  """
  others = having(argument)
  if not others:
    return "no recipe has it"
  return f"it is an argument of {', '.join(others)}"
