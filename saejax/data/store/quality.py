"""Checks of the rows of a store before training on them, from its moments."""

from saejax.data.store.reader import Store
from saejax.errors import InputError

_SMALLEST = 1e-30  # mean square below which float32 loses the squares
_LARGEST = 1e30
_OUTLIER = 30.0  # norm at the 99.9th percentile over the median
_OFFSET = 30.0  # |mean| / std of a dimension, which bfloat16 rounds away


def check_rows(store: Store) -> None:
  """Refuses a store whose rows teach nothing.

  Args:
    store: the training store.

  Raises:
    InputError: "store" where rows are all equal, all zero, all not finite,
      overflowed float16, or are of a size at which float32 loses squares.
  """
  found = store.stats
  count, bad = found["rows"], found["nonfinite_rows"]
  square = found["mean_square"]
  if bad == count:
    raise _refused(store, f"all {count} rows have a value that is not finite")
  if store.columns["x"].dtype == "float16" and found["infinite_rows"]:
    raise _refused(
      store,
      f"{found['infinite_rows']} of {count} rows overflowed float16, which ends "
      "at 65504",
    )
  if not found["max_abs"]:
    raise _refused(store, f"all {count} rows are zero")
  variance = float(found["variance"].sum())
  if variance <= 1e-12 * square:
    raise _refused(store, f"all {count} rows are equal")
  if not _SMALLEST < square < _LARGEST:
    raise _refused(
      store,
      f"the mean square of a row is {square:.3g}, and must lie in "
      f"({_SMALLEST}, {_LARGEST}), where float32 holds squares",
    )


def warnings(store: Store) -> list[str]:
  """One line for each doubt about the rows: norms, offsets, values not finite.

  Rows with norms far above the median decide sums of squares, and a mean far
  above the deviation is rounded away by bfloat16.
  """
  found, lines = store.stats, []
  if found["nonfinite_rows"]:
    lines.append(
      f"{store.path}: {found['nonfinite_rows']} of {found['rows']} rows have a "
      "value that is not finite"
    )
  norms = found["norm_quantiles"]
  # A few outliers do not show in quantiles, only in the largest value.
  largest = max(norms["0.999"], found["max_abs"])
  if largest > _OUTLIER * norms["0.5"] > 0:
    lines.append(
      f"{store.path}: norms reach {largest:.3g}, {largest / norms['0.5']:.0f} "
      "times the median: a few rows decide every sum of squares"
    )
  if found["mean_over_std_max"] > _OFFSET:
    lines.append(
      f"{store.path}: a dimension's mean is {found['mean_over_std_max']:.0f} "
      "times its standard deviation: centre it, or store float32"
    )
  return lines


def _refused(store: Store, rule: str) -> InputError:
  return InputError(
    "store", store.path, rule, "correct or rescale the rows and write it again"
  )
