"""Latents pooled over groups of rows, such as the tokens of a document.

For group g with rows R_g, and latent i:

  sum: sum_{r in R_g} z_ri       mean: sum / |R_g|
  max: max_{r in R_g} z_ri       count: #{r in R_g: z_ri != 0}

from active latents alone, in one pass over a store whose rows may be in any order:
memory holds an entry for each latent that a group has active. Sums are in float64.
See `parts` for passes that are resumed, and shared by several processes.
"""

import dataclasses
from typing import Any, Literal

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int, Shaped

from saejax.data.store.reader import Store
from saejax.errors import InputError
from saejax.features import classes, parts, reading, summary
from saejax.sae.sae import SAE

_LATER = 2**22  # entries that are kept as they come, at least
HOW = ("mean", "sum", "max", "count")


@dataclasses.dataclass(frozen=True, eq=False)
class Pooled:
  """The latents of G groups, as entries of what is active.

  Attributes:
    groups: their labels [G], ascending.
    rows: number of rows of each [G]; non-finite ones are left out.
    n: number of latents.
    group: place of the group of each entry [e], ascending.
    latent: its latent [e], ascending within a group.
    sum: sum of its z over the rows of the group [e].
    largest: largest z of the rows where it is not 0 [e].
    count: number of these rows [e].
  """

  groups: Shaped[np.ndarray, "G"]
  rows: Int[np.ndarray, "G"]
  n: int
  group: Int[np.ndarray, "e"]
  latent: Int[np.ndarray, "e"]
  sum: Float[np.ndarray, "e"]
  largest: Float[np.ndarray, "e"]
  count: Int[np.ndarray, "e"]

  def matrix(
    self, how: Literal["mean", "sum", "max", "count"] = "mean"
  ) -> scipy.sparse.csr_array:
    """The pooled latents, sparse [G, n].

    Args:
      how: the kind of pooling, over all rows of a group.

    Raises:
      InputError: there is no such kind.
    """
    if how not in HOW:
      rule = f"must be one of {', '.join(HOW)}"
      raise InputError("how", how, rule, f"use {HOW[0]}")
    value = self.count if how == "count" else self.sum
    if how == "mean":
      value = self.sum / self.rows[self.group]
    if how == "max":  # 0 on the rows where it is not active
      some = self.count < self.rows[self.group]
      value = np.where(some, np.maximum(self.largest, 0), self.largest)
    shape = len(self.groups), self.n
    return scipy.sparse.csr_array((value, (self.group, self.latent)), shape)


def pooled(
  sae: SAE,
  store: Store,
  groups: Shaped[np.ndarray, "rows"],
  *,
  batch_rows: int = 4096,
  kept: parts.Pass | None = None,
) -> Pooled:
  """Pools latents over groups of rows; the store is read once.

  Args:
    sae: the SAE, in the inference form.
    store: the rows.
    groups: integers or texts, one for each row of the store, such as
      `store.whole("doc")["doc"]`; rows with a negative integer or an empty text
      are of no group.
    batch_rows: largest number of rows on the device at once.
    kept: folder in which a stopped pass is resumed; None for none.

  Raises:
    InputError: as `classes.numbered` and `parts.total`.
    parts.Unfinished: other processes are not done.
  """
  names, place = classes.numbered(groups, store, "groups")
  total = parts.total(
    kept,
    _Pooling(sae, store, len(names), place, batch_rows),
    reading.intervals(store, batch_rows),
    lambda: reading.identity(
      "pooled",
      sae,
      store,
      groups=classes.digest(names, place),
      batch_rows=batch_rows,
    ),
  ).joined()
  return Pooled(
    groups=names,
    rows=total.rows,
    n=sae.n,
    group=total.key // sae.n,
    latent=total.key % sae.n,
    sum=total.sum,
    largest=total.largest,
    count=total.count,
  )


def row_means(
  store: Store,
  groups: Shaped[np.ndarray, "rows"],
  *,
  batch_rows: int = 4096,
) -> tuple[Shaped[np.ndarray, "G"], Float[np.ndarray, "G d"]]:
  """Means of the rows of each group, in float64; the store is read once.

  Args:
    store, groups, batch_rows: as for `pooled`.

  Returns:
    (labels of the groups, ascending; mean of their finite rows, NaN for none).

  Raises:
    InputError: as `classes.numbered`.
  """
  names, place = classes.numbered(groups, store, "groups")
  total = np.zeros((len(names), store.d))
  count = np.zeros(len(names), np.int64)
  for numbers, x in reading.batches(store, batch_rows=batch_rows):
    own = place[numbers]
    x = np.asarray(x, np.float64)
    use = (own >= 0) & np.isfinite(x).all(axis=1)
    np.add.at(total, own[use], x[use])
    np.add.at(count, own[use], 1)
  with np.errstate(invalid="ignore"):
    return names, total / count[:, None]


@dataclasses.dataclass(frozen=True, eq=False)
class _Sums:
  """Entries by key, group times n plus latent, and later ones as they came.

  Later entries are joined to the others when they are as many, wherever a pass
  was cut: so its sums are the same bits.
  """

  rows: Int[np.ndarray, "G"]
  key: Int[np.ndarray, "e"]
  sum: Float[np.ndarray, "e"]
  largest: Float[np.ndarray, "e"]
  count: Int[np.ndarray, "e"]
  later: Int[np.ndarray, "l"]  # their keys
  value: Float[np.ndarray, "l"]

  def with_rows(self, rows, key, value) -> "_Sums":
    """With the rows of each group, and entries, of further rows."""
    found = dataclasses.replace(
      self,
      rows=self.rows + rows,
      later=np.concatenate([self.later, key]),
      value=np.concatenate([self.value, value]),
    )
    if len(found.later) < max(_LATER, len(found.key)):
      return found
    return found.joined()

  def joined(self) -> "_Sums":
    """With one entry per key."""
    one = np.ones(len(self.later), np.int64)
    return self._of(
      np.concatenate([self.key, self.later]),
      np.concatenate([self.sum, self.value]),
      np.concatenate([self.largest, self.value]),
      np.concatenate([self.count, one]),
    )

  def merged(self, other: "_Sums") -> "_Sums":
    """With those of other rows."""
    a, b = self.joined(), other.joined()
    found = dataclasses.replace(a, rows=a.rows + b.rows)
    names = ("key", "sum", "largest", "count")
    return found._of(
      *(np.concatenate([getattr(a, k), getattr(b, k)]) for k in names)
    )

  def _of(self, key, total, largest, count) -> "_Sums":
    order = np.argsort(key, kind="stable")
    key = key[order]
    start = np.flatnonzero(np.diff(key, prepend=-1))
    if not len(start):  # reduceat has no empty form
      return self
    return dataclasses.replace(
      self,
      key=key[start],
      sum=np.add.reduceat(total[order], start),
      largest=np.maximum.reduceat(largest[order], start),
      count=np.add.reduceat(count[order], start),
      later=self.later[:0],
      value=self.value[:0],
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Pooling(parts.Work[_Sums, tuple[int, int]]):
  """Entries of groups over intervals of rows."""

  sae: SAE
  store: Store
  groups: int
  place: Int[np.ndarray, "rows"]
  batch_rows: int

  def nothing(self) -> _Sums:
    whole, real = np.zeros(0, np.int64), np.zeros(0)
    rows = np.zeros(self.groups, np.int64)
    return _Sums(rows, whole, real, real, whole, whole, real)

  def added(self, total: _Sums, batch: tuple[int, int]) -> _Sums:
    numbers, x = np.arange(*batch), self.store.read(*batch)
    for part in summary.active(self.sae, numbers, x, self.batch_rows):
      own = self.place[part.numbers]
      rows = np.bincount(own[own >= 0], minlength=self.groups)
      own = self.place[part.row]
      key = own * self.sae.n + part.latent
      value = part.value.astype(np.float64)
      total = total.with_rows(rows, key[own >= 0], value[own >= 0])
    return total

  def merged(self, total: _Sums, other: _Sums) -> _Sums:
    return total.merged(other)

  def arrays(self, total: _Sums) -> dict[str, np.ndarray]:
    return parts.flat(total)

  def restored(self, arrays: dict[str, Any]) -> _Sums:
    return parts.filled(self.nothing(), arrays)
