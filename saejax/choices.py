"""Configs in which one field determines which other fields exist.

A config class with choices has

    CHOICE             name of the determining field, such as "recipe"
    variant(value)     the class with the further fields of a value
    choices()          all values, each with a line about it
    elsewhere(value, name)
                       rule and remedy for a field that other values have

and may be nested in another config. `widened` returns the config class with all
fields of the chosen values; `config` reads these from the command line.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from saejax import fields
from saejax.errors import InputError

Chosen = Callable[[str, Any], Any]


def widened(config_cls: type, chosen: Chosen) -> type:
  """Returns the config class with the fields of the chosen values.

  Args:
    config_cls: a class that may have choices, or nested configs with choices.
    chosen: maps the dotted name and the default of a determining field to its
      value.

  Raises:
    InputError: there is no such choice.
  """
  return _widened(config_cls, chosen, "", fields.MISSING)


def _widened(
  config_cls: type, chosen: Chosen, prefix: str, around: Any
) -> type:
  """See `widened`.

  Args:
    config_cls: the class.
    chosen: as for `widened`.
    prefix: prefix of the dotted names.
    around: the default from the enclosing config, or MISSING.
  """
  nested = []
  for field, kind in fields.typed(config_cls):
    if fields.is_config(kind):
      default = getattr(around, field.name, field.default)
      variant_cls = _widened(kind, chosen, f"{prefix}{field.name}.", default)
      if variant_cls is not kind:
        nested.append((field.name, variant_cls, dataclasses.field()))
  if nested:
    config_cls = _subclass(config_cls, nested)
  name = getattr(config_cls, "CHOICE", None)
  if name is None:
    return config_cls
  default = getattr(around, name, getattr(config_cls, name))
  try:
    variant = _variant(config_cls, chosen(prefix + name, default))
  except InputError as error:
    raise error.renamed(f"--{prefix}{error.field}") from error
  if around is fields.MISSING:
    return variant
  defaults = [
    (
      field.name,
      kind,
      dataclasses.field(
        default=getattr(around, field.name), metadata=field.metadata
      ),
    )
    for field, kind in fields.typed(variant)
    if hasattr(around, field.name) and field.name != name
  ]
  return _subclass(variant, defaults)


def _variant(config_cls: Any, value: Any) -> type:
  return config_cls.variant(value)


def _subclass(config_cls: type, changed: list) -> type:
  """Returns a config class with some fields changed."""
  return dataclasses.make_dataclass(
    config_cls.__name__,
    changed,
    bases=(config_cls,),
    frozen=True,
    kw_only=True,
  )


def explain(config_cls: Any, name: str, prefix: str = "") -> tuple[str, str]:
  """Returns the rule and the remedy for a flag that other choices have.

  Args:
    config_cls: the config class.
    name: dotted name of the flag.
    prefix: prefix of the dotted names.

  Returns:
    (rule, remedy); empty if no choice has the flag.
  """
  for field, kind in fields.typed(config_cls):
    inner = f"{prefix}{field.name}."
    if fields.is_config(kind) and name.startswith(inner):
      found = explain(kind, name, inner)
      if any(found):
        return found
  choice = getattr(config_cls, "CHOICE", None)
  if choice is None:
    return "", ""
  value = getattr(config_cls, choice)
  return config_cls.elsewhere(value, name.removeprefix(prefix))


def listing(config_cls: Any, prefix: str = "") -> list[str]:
  """Returns lines of help: every choice with a line about it.

  Args:
    config_cls: the config class.
    prefix: prefix of the dotted names.
  """
  lines = []
  for field, kind in fields.typed(config_cls):
    if fields.is_config(kind):
      lines += listing(kind, f"{prefix}{field.name}.")
  choice = getattr(config_cls, "CHOICE", None)
  if choice is None:
    return lines
  value = fields.show(Any, getattr(config_cls, choice))
  lines += [
    "",
    f"The arguments of {value} are among the flags above. --{prefix}{choice} is "
    "one of",
  ]
  return lines + [
    f"  {name:<18} {text}" for name, text in config_cls.choices().items()
  ]
