"""Rows with their documents, and R^2 with intervals from sums over documents.

Measures that need several passes over the rows take a function that reads them
again, `Read`. Sums are kept by document, modulo 1021, in float64: memory does not
grow with rows, and intervals come from resampling documents, since the tokens of
one document are not independent.

  R^2 = 1 - sum (y - y_hat)^2 / sum (y - y_mean)^2

over held-out rows, with the mean of these rows.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from saejax.data.store.reader import Store
from saejax.data.text import neighbours
from saejax.errors import InputError
from saejax.evals import comparison
from saejax.features import reading

GROUPS = 1021  # documents are counted modulo this prime
_PIECE = 256  # rows of a piece, at least
COLUMNS = ("doc", "pos", "tok", "loss")


class Rows(NamedTuple):
  """A batch of rows.

  Attributes:
    x: activations.
    doc: document of each row.
    columns: further columns by name, such as "tok", the id of the token, and
      "loss", the model's loss of it.
  """

  x: Float[np.ndarray, "B d"]
  doc: Int[np.ndarray, "B"]
  columns: Mapping[str, np.ndarray] = {}


Read = Callable[[], Iterable[Rows]]


def of_store(
  store: Store,
  *,
  first_position: int = 0,
  most: int | None = None,
  batch_rows: int = 4096,
) -> Read:
  """Returns a function that reads the finite rows of a store, in order.

  Args:
    store: a store with the column doc.
    first_position: tokens before it are left out: those at the start of a
      document may have extreme norms. The paper leaves out 200.
    most: most rows that are read, in pieces from all of the store; None for
      all of them.
    batch_rows: rows per batch.

  Raises:
    InputError: the store has no column doc, or positions are needed and it has
      none.
  """
  for column in ("doc", "pos") if first_position else ("doc",):
    if column not in store.columns:
      rule = f"must have the column {column}"
      remedy = "harvest a store from text"
      raise InputError("store", str(store.place), rule, remedy)
  names = [name for name in COLUMNS if name in store.columns]
  parts = reading.intervals(store, batch_rows)
  if most is not None and most < store.rows:
    # From all of the store, which may be in the order of documents.
    count = min(len(parts), max(1, most // _PIECE))
    chosen = np.linspace(0, len(parts) - 1, count).round().astype(int)
    spread = [parts[i] for i in chosen]
    parts = [(a, min(b, a + most // count)) for a, b in spread]

  def read() -> Iterator[Rows]:
    for start, stop in parts:
      x = store.read(start, stop).reshape(stop - start, -1).astype(np.float32)
      own = {name: store.read(start, stop, name) for name in names}
      use = np.isfinite(x).all(axis=-1)
      if first_position:
        use &= neighbours.in_window(store, own["pos"]) >= first_position
      own = {name: values[use] for name, values in own.items()}
      yield Rows(x[use], own.pop("doc"), own)

  return read


def split(read: Read, *, test: float = 0.5, seed: int = 0) -> tuple[Read, Read]:
  """Divides rows by document into those to fit on and those to evaluate on.

  A document's side depends on its number and the seed alone.

  Args:
    read: reads all rows.
    test: share of the documents that are evaluated on.
    seed: seed of the draw.

  Raises:
    InputError: the share is not between 0 and 1.
  """
  if not 0 < test < 1:
    rule = "must be between 0 and 1"
    raise InputError("test", test, rule, "give a share of the documents")

  def side(wanted: bool) -> Read:
    def part() -> Iterator[Rows]:
      for rows in read():
        use = (uniform(rows.doc, seed) < test) == wanted
        own = {name: values[use] for name, values in rows.columns.items()}
        yield Rows(rows.x[use], rows.doc[use], own)

    return part

  return side(False), side(True)


def uniform(doc: Int[np.ndarray, "B"], seed: int) -> Float[np.ndarray, "B"]:
  """Numbers in [0, 1) that depend on the document and the seed alone.

  Args:
    doc: documents.
    seed: seed of the draw.

  References:
    Steele et al., Fast Splittable Pseudorandom Number Generators, 2014.
  """
  step = np.uint64(0x9E3779B97F4A7C15)
  with np.errstate(over="ignore"):
    z = np.asarray(doc).astype(np.uint64) + np.uint64(seed % 2**32) * step
    z = (z + step) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return (z ^ (z >> np.uint64(31))) / 2.0**64


class Estimate(NamedTuple):
  """A value and its 95 % interval over documents.

  Attributes:
    value: the value.
    low, high: ends of the interval; infinite for a single document.
  """

  value: float
  low: float
  high: float

  @property
  def complement(self) -> "Estimate":
    """That of 1 - value."""
    return Estimate(1 - self.value, 1 - self.high, 1 - self.low)

  def times(self, factor: float) -> "Estimate":
    """That of factor times the value.

    Args:
      factor: a positive number.
    """
    return Estimate(*(factor * v for v in self))

  def record(self) -> list[float]:
    """[value, low, high], for results.json."""
    return list(self)


@dataclasses.dataclass(frozen=True)
class Bootstrap:
  """How documents are resampled.

  Attributes:
    resamples: number of resamples.
    seed: seed of the draws.
  """

  resamples: int = 2000
  seed: int = 0

  def ratio(
    self, above: Float[np.ndarray, "G"], below: Float[np.ndarray, "G"]
  ) -> Estimate:
    """Computes sum above / sum below with its interval; NaN where below is 0.

    Args:
      above, below: sums of each document.
    """
    used = (above != 0) | (below != 0)
    if not below.sum() > 0:
      return Estimate(np.nan, np.nan, np.nan)
    found = comparison.resampled(
      above[used], below[used], resamples=self.resamples, seed=self.seed
    )
    return Estimate(found.effect, found.low, found.high)


def by_document(
  doc: Int[np.ndarray, "B"], values: Float[np.ndarray, "B *c"]
) -> Float[np.ndarray, "G *c"]:
  """Sums over the rows of each document, modulo `GROUPS`.

  Args:
    doc: documents.
    values: values of each row.
  """
  total = np.zeros((GROUPS, *values.shape[1:]))
  np.add.at(total, np.asarray(doc) % GROUPS, values)
  return total


class Scores:
  """R^2 of predictions of one number per row."""

  def __init__(self):
    self._targets: dict[str, np.ndarray] = {}  # 1, y, y^2 [G, 3]
    self._errors: dict[tuple[str, str], np.ndarray] = {}  # [G]

  def target(
    self, name: str, doc: np.ndarray, y: Float[np.ndarray, "B"]
  ) -> None:
    """Adds rows of a target.

    Args:
      name: name of the target.
      doc: documents.
      y: its values.
    """
    sums = by_document(doc, np.stack([np.ones(len(y)), y, y * y], axis=-1))
    self._targets[name] = self._targets.get(name, 0) + sums

  def prediction(
    self, name: str, target: str, doc: np.ndarray, error: np.ndarray
  ) -> None:
    """Adds rows of a prediction.

    Args:
      name: name of the predictor.
      target: name of what it predicts.
      doc: documents.
      error: y - y_hat.
    """
    key = name, target
    self._errors[key] = self._errors.get(key, 0) + by_document(doc, error**2)

  def r2(self, bootstrap: Bootstrap) -> dict[tuple[str, str], Estimate]:
    """R^2 by (predictor, target).

    Args:
      bootstrap: how documents are resampled.
    """
    found = {}
    for (name, target), error in self._errors.items():
      rows, y, square = self._targets[target].T
      mean = y.sum() / max(rows.sum(), 1)
      about = np.maximum(square - 2 * mean * y + rows * mean**2, 0)
      # Rounding of sums is no variance.
      if about.sum() <= 1e-12 * square.sum():
        found[name, target] = Estimate(np.nan, np.nan, np.nan)
        continue
      found[name, target] = bootstrap.ratio(error, about).complement
    return found
