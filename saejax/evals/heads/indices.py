"""Checks of numbers of latents, layers, tokens and positions."""

from typing import Any

import numpy as np

from saejax.errors import InputError


def check(field: str, numbers: Any, count: int) -> None:
  """Refuses numbers outside [0, count), which JAX would clamp.

  Args:
    field: name of the argument.
    numbers: the numbers.
    count: how many there are.

  Raises:
    InputError: one is outside.
  """
  numbers = np.asarray(numbers)
  outside = numbers[(numbers < 0) | (numbers >= count)]
  if outside.size:
    rule = f"must be in [0, {count})"
    raise InputError(field, int(outside.flat[0]), rule, "count from 0")
