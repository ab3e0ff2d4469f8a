"""Sums of latents over the rows of each class, in one pass over a store.

For class c with rows R_c, and latent i:

  count[c, i] = #{r in R_c: z_ri != 0}
  sum[c, i] = sum_{r in R_c} z_ri,    square[c, i] = sum_{r in R_c} z_ri^2

in float64, from active latents alone. What compares classes (means, differences,
selection of latents for probes) is a function of these. See `parts` for passes
that are resumed, and shared by several processes.
"""

import dataclasses
import hashlib
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from saejax.data.store.reader import Store
from saejax.errors import InputError
from saejax.features import parts, reading, summary
from saejax.sae.sae import SAE

_BYTES = 2**32  # of the sums


@dataclasses.dataclass(frozen=True, eq=False)
class ClassSums:
  """What latents do on the rows of C classes.

  Attributes:
    classes: their labels [C], ascending.
    rows: number of rows of each [C]; non-finite ones are left out.
    count: rows where each latent is not 0 [C, n].
    sum, square: sums of z and of z^2 [C, n].
  """

  classes: Shaped[np.ndarray, "C"]
  rows: Int[np.ndarray, "C"]
  count: Int[np.ndarray, "C n"]
  sum: Float[np.ndarray, "C n"]
  square: Float[np.ndarray, "C n"]

  @property
  def density(self) -> Float[np.ndarray, "C n"]:
    """Share of the rows of a class where a latent is not 0."""
    return self.count / self._rows

  @property
  def mean(self) -> Float[np.ndarray, "C n"]:
    """Mean of z over all rows of a class."""
    return self.sum / self._rows

  @property
  def variance(self) -> Float[np.ndarray, "C n"]:
    """Variance of z over all rows of a class, at least 0."""
    return np.maximum(self.square / self._rows - self.mean**2, 0)

  @property
  def others(self) -> "ClassSums":
    """For each class the sums over the rows of all other classes."""
    return dataclasses.replace(
      self,
      **{
        name: getattr(self, name).sum(axis=0) - getattr(self, name)
        for name in ("rows", "count", "sum", "square")
      },
    )

  @property
  def _rows(self) -> Int[np.ndarray, "C 1"]:
    return np.maximum(self.rows, 1)[:, None]


def class_sums(
  sae: SAE,
  store: Store,
  labels: Shaped[np.ndarray, "rows"],
  *,
  batch_rows: int = 4096,
  kept: parts.Pass | None = None,
) -> ClassSums:
  """Adds up latents over the rows of each class; the store is read once.

  Args:
    sae: the SAE, in the inference form.
    store: the rows.
    labels: integers or texts, one for each row of the store; rows with a
      negative integer or an empty text are of no class.
    batch_rows: largest number of rows on the device at once.
    kept: folder in which a stopped pass is resumed; None for none.

  Raises:
    InputError: there are more or fewer labels than rows, labels of another kind,
      no class, or so many classes that the sums would not fit into 4 GiB; or as
      `parts.total`.
    parts.Unfinished: other processes are not done.
  """
  classes, place = numbered(labels, store, "labels")
  size = 3 * 8 * len(classes) * sae.n
  if size > _BYTES:
    raise InputError(
      "labels",
      f"{len(classes):,} classes",
      f"of {sae.n:,} latents need {size / 2**30:.1f} GiB, at most "
      f"{_BYTES / 2**30:.0f}",
      "use fewer classes, or features.pooling, which keeps what is active",
    )
  return parts.total(
    kept,
    _Classes(sae, store, classes, place, batch_rows),
    reading.intervals(store, batch_rows),
    lambda: reading.identity(
      "classes",
      sae,
      store,
      labels=digest(classes, place),
      batch_rows=batch_rows,
    ),
  )


def numbered(
  labels: Shaped[np.ndarray, "rows"], store: Store, field: str
) -> tuple[Shaped[np.ndarray, "C"], Int[np.ndarray, "rows"]]:
  """Returns the distinct labels, and for each row the place of its label.

  Args:
    labels: integers or texts; negative or empty for none, whose place is -1.
    store: the rows.
    field: name of the argument in errors.

  Raises:
    InputError: there are more or fewer labels than rows, labels of another
      kind, or none.
  """
  labels = np.asarray(labels)
  last = store.intervals[-1][1] if store.intervals else 0
  if labels.shape != (last,):
    raise InputError(
      field,
      f"shape {labels.shape}",
      f"must be ({last},): one for each row of the store",
      "give rows that have none -1, or an empty text",
    )
  if labels.dtype.kind not in "iuU":
    rule, remedy = "must be integers or texts", "number them, or give names"
    raise InputError(field, f"dtype {labels.dtype}", rule, remedy)
  used = labels != "" if labels.dtype.kind == "U" else labels >= 0
  classes, own = np.unique(labels[used], return_inverse=True)
  if not len(classes):
    rule, remedy = "must have at least one", "give a row a label"
    raise InputError(field, "none of the rows", rule, remedy)
  place = np.full(last, -1)
  place[used] = own
  return classes, place


def digest(classes: np.ndarray, place: np.ndarray) -> str:
  """Returns the SHA-256 of the labels of rows, for the identity of a pass.

  Args:
    classes, place: from `numbered`.
  """
  found = hashlib.sha256(repr(classes.tolist()).encode())
  found.update(place.astype("<i8").tobytes())
  return found.hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class _Classes(parts.Work[ClassSums, tuple[int, int]]):
  """Sums of classes over intervals of rows."""

  sae: SAE
  store: Store
  classes: Shaped[np.ndarray, "C"]
  place: Int[np.ndarray, "rows"]
  batch_rows: int

  def nothing(self) -> ClassSums:
    shape = len(self.classes), self.sae.n
    return ClassSums(
      classes=self.classes,
      rows=np.zeros(shape[0], np.int64),
      count=np.zeros(shape, np.int64),
      sum=np.zeros(shape),
      square=np.zeros(shape),
    )

  def added(self, total: ClassSums, batch: tuple[int, int]) -> ClassSums:
    numbers, x = np.arange(*batch), self.store.read(*batch)
    for part in summary.active(self.sae, numbers, x, self.batch_rows):
      of_rows = self.place[part.numbers]
      np.add.at(total.rows, of_rows[of_rows >= 0], 1)
      own = self.place[part.row]
      use = own >= 0
      at = own[use], part.latent[use]
      value = part.value[use].astype(np.float64)
      np.add.at(total.count, at, 1)
      np.add.at(total.sum, at, value)
      np.add.at(total.square, at, value * value)
    return total

  def merged(self, total: ClassSums, other: ClassSums) -> ClassSums:
    return ClassSums(
      classes=self.classes,
      **{
        name: getattr(total, name) + getattr(other, name)
        for name in ("rows", "count", "sum", "square")
      },
    )

  def arrays(self, total: ClassSums) -> dict[str, np.ndarray]:
    return parts.flat(total)

  def restored(self, arrays: dict[str, Any]) -> ClassSums:
    return parts.filled(self.nothing(), arrays)
