"""Checks of the arguments of recipes; each error names the argument."""

import math
from collections.abc import Iterable

from saejax.errors import InputError


def check_k(k: int, n: int, field: str = "k") -> None:
  """Checks the number of active latents per row.

  Args:
    k, n: active latents per row, and number of latents.
    field: name of the argument, for the error.

  Raises:
    InputError: k is not a whole number in [1, n].
  """
  if not (1 <= k <= n and k == int(k)):
    raise InputError(
      field, k, f"must be a whole number in [1, n={n}]", "lower k or raise n"
    )


def check_mean_k(k: float, n: int) -> None:
  """Checks the mean number of active latents per row.

  Args:
    k, n: mean number of active latents per row, and number of latents.

  Raises:
    InputError: k is not in (0, n].
  """
  if not 0 < k <= n:
    raise InputError("k", k, f"must be in (0, n={n}]", "lower k or raise n")


def check_least(field: str, value: float, least: float) -> None:
  """Checks that a value is at least `least` and not NaN.

  Args:
    field, value: name of the argument, and its value.
    least: lower bound.

  Raises:
    InputError: the value is below the bound.
  """
  if not value >= least:
    raise InputError(
      field, value, f"must be at least {least:g}", f"use {least:g} or more"
    )


def check_finite(field: str, value: float) -> None:
  """Checks that a value is finite.

  Args:
    field, value: name of the argument, and its value.

  Raises:
    InputError: the value is not finite.
  """
  if not math.isfinite(value):
    raise InputError(field, value, "must be finite", "such as 0")


def check_fraction(field: str, value: float) -> None:
  """Checks that a value is in (0, 1).

  Args:
    field, value: name of the argument, and its value.

  Raises:
    InputError: the value is outside (0, 1).
  """
  if not 0 < value < 1:
    raise InputError(field, value, "must be in (0, 1)", "such as 0.1")


def check_choice(field: str, value: str, choices: Iterable[str]) -> None:
  """Checks that a name is in a list.

  Args:
    field, value: name of the argument, and its value.
    choices: the allowed values.

  Raises:
    InputError: the value is not one of the choices.
  """
  known = list(choices)
  if value not in known:
    rule = f"must be one of {', '.join(known)}"
    raise InputError(field, value, rule, f"such as {known[0]}")
