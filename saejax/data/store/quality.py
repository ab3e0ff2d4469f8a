"""Checks of the rows of a store before training on them, from its moments."""

from saejax.data.store.reader import Store
from saejax.errors import InputError

SMALLEST = 1e-30  # mean square below which float32 loses the squares
LARGEST = 1e30
_OUTLIER = 30.0  # norm at the 99.9th percentile over the median
OFFSET = 30.0  # |mean| / std of a dimension, which bfloat16 rounds away


def check_rows(store: Store) -> None:
  """Checks that a store has rows that an SAE can be trained on.

  Args:
    store: the training store.

  Raises:
    InputError: rows are all equal, all zero or all non-finite, overflowed
      float16, or have norms whose squares overflow or underflow float32.
  """
  stats = store.stats
  count, bad = stats["rows"], stats["nonfinite_rows"]
  square = stats["mean_square"]
  if bad == count:
    raise _refused(store, f"all {count} rows have a non-finite value")
  if store.columns["x"].dtype == "float16" and stats["infinite_rows"]:
    raise _refused(
      store,
      f"{stats['infinite_rows']} of {count} rows overflowed float16, whose "
      "largest value is 65504",
    )
  if not stats["max_abs"]:
    raise _refused(store, f"all {count} rows are zero")
  variance = float(stats["variance"].sum())
  if variance <= 1e-12 * square:
    raise _refused(store, f"all {count} rows are equal")
  if not SMALLEST < square < LARGEST:
    raise _refused(
      store,
      f"the mean of |x|^2 is {square:.3g} and must be in "
      f"({SMALLEST}, {LARGEST}), so that squares fit in float32",
    )


def warnings(store: Store) -> list[str]:
  """Returns a warning per doubtful property of the rows of a store.

  These are non-finite rows, norms far above the median, which dominate sums of
  squares, and a mean far above the standard deviation, which bfloat16 loses to
  rounding.

  Args:
    store: the store.

  Returns:
    One line per warning.
  """
  found, lines = store.stats, []
  if found["nonfinite_rows"]:
    lines.append(
      f"{store.place}: {found['nonfinite_rows']} of {found['rows']} rows have a "
      "non-finite value"
    )
  norms = found["norm_quantiles"]
  # A few outliers do not show in quantiles, only in the largest value.
  largest = max(norms["0.999"], found["max_abs"])
  if largest > _OUTLIER * norms["0.5"] > 0:
    lines.append(
      f"{store.place}: norms reach {largest:.3g}, {largest / norms['0.5']:.0f} "
      "times the median: a few rows dominate every sum of squares"
    )
  if found["mean_over_std_max"] > OFFSET:
    text = offset(found["mean_over_std_max"])
    lines.append(f"{store.place}: {text}: centre the rows or store float32")
  return lines


def offset(ratio: float) -> str:
  """Says what bfloat16 loses of a dimension whose mean is far from 0.

  It rounds to 8 bits, which adds 2.8e-6 (1 + ratio^2) to the normalised error
  of that dimension.

  Args:
    ratio: |mean| / std of the dimension.

  >>> offset(100)
  "a dimension's mean is 100 times its standard deviation, of which ... 2.8 %"
  """
  share = 2.8e-6 * (1 + ratio * ratio)
  return (
    f"a dimension's mean is {ratio:.0f} times its standard deviation, of which "
    f"bfloat16 loses {100 * min(share, 1):.2g} %"
  )


def _refused(store: Store, rule: str) -> InputError:
  return InputError(
    "store",
    str(store.place),
    rule,
    "correct or rescale the rows and write it again",
  )
