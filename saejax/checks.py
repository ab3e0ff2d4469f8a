"""Range checks of settings; errors name the field, the value and the rule."""

import math
from typing import Any

from saejax.errors import InputError


def at_least(config: Any, least: float, *fields: str) -> None:
  """Checks that fields are finite and at least `least`.

  Args:
    config: the config.
    least: lower bound.
    *fields: names of fields.

  Raises:
    InputError: a value is below the bound or not finite.
  """
  for field in fields:
    value = getattr(config, field)
    if not (value >= least and math.isfinite(value)):
      raise InputError(
        field, value, f"must be at least {least}", f"give {least} or more"
      )


def at_most(config: Any, most: float, *fields: str) -> None:
  """Checks that fields are at most `most`.

  Args:
    config: the config.
    most: upper bound.
    *fields: names of fields.

  Raises:
    InputError: a value is above the bound.
  """
  for field in fields:
    value = getattr(config, field)
    if not value <= most:
      rule = f"must be at most {most:,}"
      raise InputError(field, value, rule, f"give {most:,} or less")


def positive(config: Any, *fields: str) -> None:
  """Checks that fields are finite and above 0; None is allowed.

  Args:
    config: the config.
    *fields: names of fields.

  Raises:
    InputError: a value is not above 0 or not finite.
  """
  for field in fields:
    value = getattr(config, field)
    if value is not None and not (value > 0 and math.isfinite(value)):
      rule = "must be positive and finite"
      raise InputError(field, value, rule, "give a number above 0")


def fraction(config: Any, *fields: str) -> None:
  """Checks that fields are in [0, 1].

  Args:
    config: the config.
    *fields: names of fields.

  Raises:
    InputError: a value is outside [0, 1].
  """
  for field in fields:
    value = getattr(config, field)
    if not 0 <= value <= 1:
      raise InputError(field, value, "must be in [0, 1]", "give a fraction")


def finite(config: Any, *fields: str) -> None:
  """Checks that fields are finite.

  Args:
    config: the config.
    *fields: names of fields.

  Raises:
    InputError: a value is not finite.
  """
  for field in fields:
    value = getattr(config, field)
    if not math.isfinite(value):
      raise InputError(field, value, "must be finite", "give another number")


def distinct(
  config: Any,
  *fields: str,
  least: float = 1,
  most: float = math.inf,
  increasing: bool = False,
) -> None:
  """Checks that fields are non-empty tuples of distinct numbers in a range.

  Args:
    config: the config.
    *fields: names of fields.
    least: lower bound of the numbers.
    most: upper bound of the numbers.
    increasing: whether the numbers must increase.

  Raises:
    InputError: a tuple is empty or has other numbers.
  """
  for field in fields:
    values = getattr(config, field)
    ordered = not increasing or list(values) == sorted(values)
    if (
      not values
      or not ordered
      or len(set(values)) < len(values)
      or not all(least <= v <= most and math.isfinite(v) for v in values)
    ):
      order = "increasing" if increasing else "different"
      limit = f" and at most {most:g}" if math.isfinite(most) else ""
      raise InputError(
        field,
        ",".join(map(str, values)),
        f"must be {order} numbers of at least {least:g}{limit}",
        "give one or more, separated by commas",
      )
