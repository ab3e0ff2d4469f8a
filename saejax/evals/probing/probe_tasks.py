"""Balanced binary tasks of labelled rows: as many negatives as positives.

References:
  Karvonen et al., SAEBench, 2025, arXiv:2503.09532.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Shaped

from saejax.errors import InputError


class Task(NamedTuple):
  """Rows and their labels, half of them positive.

  Attributes:
    rows: numbers of the rows, ascending.
    y: whether each is positive.
  """

  rows: Int[np.ndarray, "m"]
  y: Bool[np.ndarray, "m"]


def tasks(
  labels: Shaped[np.ndarray, "N *C"],
  *,
  among: Bool[np.ndarray, "N"] | None = None,
  size: int | None = None,
  seed: int,
) -> Mapping[Any, Task]:
  """Returns one task for each class against the rest.

  Negatives are drawn evenly from the other classes, as far as these have rows.

  Args:
    labels: class of each row, an integer or a text, where a negative integer or
      an empty text is none; or booleans, for one task [N] or C tasks [N, C].
    among: rows that may be used; all by default.
    size: largest number of rows of a task.
    seed: seed of the draw.

  Returns:
    Tasks by class; by number for booleans.

  Raises:
    InputError: a task would have no positive or no negative row.
  """
  labels, rng = np.asarray(labels), np.random.default_rng(seed)
  rows = np.arange(len(labels)) if among is None else np.flatnonzero(among)
  if labels.dtype == bool:
    columns = labels.reshape(len(labels), -1).T
    own = {i: column[rows].astype(int) for i, column in enumerate(columns)}
    return {i: _drawn(i, rows, y, 1, size, rng) for i, y in own.items()}
  if labels.ndim != 1 or labels.dtype.kind not in "iuU":
    value = f"{labels.dtype} of shape {labels.shape}"
    rule = "must be integers or texts [N], or booleans [N] or [N, C]"
    raise InputError("labels", value, rule, "number the classes")
  used = labels != "" if labels.dtype.kind == "U" else labels >= 0
  rows = rows[used[rows]]
  classes, own = np.unique(labels[rows], return_inverse=True)
  return {
    name.item(): _drawn(name, rows, own, i, size, rng)
    for i, name in enumerate(classes)
  }


def _drawn(name, rows, own, positive: int, size, rng) -> Task:
  """The task of a class among others."""
  order = rng.permutation(len(rows))
  yes, no = order[own[order] == positive], order[own[order] != positive]
  half = min(len(yes), len(no), len(rows) if size is None else size // 2)
  if not half:
    raise InputError(
      "labels",
      f"class {name}: {len(yes)} positive and {len(no)} negative rows",
      "must have at least one of each, for training and for testing",
      "leave the class out, or give more rows",
    )
  # The first of every other class, then the second of each, and so on.
  rank = np.zeros(len(no), np.int64)
  for other in np.unique(own[no]):
    at = own[no] == other
    rank[at] = np.arange(at.sum())
  no = no[np.argsort(rank, kind="stable")]
  chosen = np.sort(np.concatenate([yes[:half], no[:half]]))
  return Task(rows[chosen], own[chosen] == positive)
