"""Divisions of rows by document, as rows of one document are alike."""

import numpy as np
from jaxtyping import Bool, Int, Shaped

from saejax.errors import InputError


def folds(
  groups: Shaped[np.ndarray, "N"], count: int, *, seed: int
) -> Int[np.ndarray, "N"]:
  """Returns a fold in [0, count) for each row; a document is in one fold.

  Documents, in random order and the largest first, go to the fold that has the
  fewest rows.

  Args:
    groups: document of each row; `np.arange(N)` for independent rows.
    count: number of folds, at least 2.
    seed: seed of the order.

  Raises:
    InputError: there are fewer documents than folds.
  """
  groups, size = _sizes(groups)
  if not 2 <= count <= len(size):
    raise InputError(
      "count",
      count,
      f"must be in [2, {len(size)}], the number of documents",
      "use fewer folds, or more documents",
    )
  order = np.random.default_rng(seed).permutation(len(size))
  order = order[np.argsort(-size[order], kind="stable")]
  rows, fold = np.zeros(count, np.int64), np.zeros(len(size), np.int64)
  for document in order:
    fold[document] = rows.argmin()
    rows[fold[document]] += size[document]
  return fold[groups]


def split(
  groups: Shaped[np.ndarray, "N"], *, test: float = 0.2, seed: int
) -> Bool[np.ndarray, "N"]:
  """Returns which rows are for training; a document is on one side.

  For testing are the first documents, in random order, with a share of the rows
  that is nearest to `test`; at least one document is on each side.

  Args:
    groups: document of each row; `np.arange(N)` for independent rows.
    test: share of the rows for testing.
    seed: seed of the order.

  Raises:
    InputError: the share is not in (0, 1), or there is one document.
  """
  if not 0 < test < 1:
    rule = "must be between 0 and 1"
    raise InputError("test", test, rule, "give a share of the rows")
  groups, size = _sizes(groups)
  if len(size) < 2:
    rule = "must be of at least 2 documents"
    raise InputError("groups", f"{len(size)} documents", rule, "add some")
  order = np.random.default_rng(seed).permutation(len(size))
  taken = np.cumsum(size[order])[:-1]
  last = int(np.abs(taken - test * len(groups)).argmin())
  return ~np.isin(groups, order[: last + 1])


def _sizes(groups) -> tuple[np.ndarray, np.ndarray]:
  """Number of the document of each row, and rows of each document."""
  groups = np.asarray(groups)
  if groups.ndim != 1 or not len(groups):
    rule = "must be one document per row [N]"
    raise InputError("groups", f"shape {groups.shape}", rule, "give rows")
  _, own, size = np.unique(groups, return_inverse=True, return_counts=True)
  return own, size
