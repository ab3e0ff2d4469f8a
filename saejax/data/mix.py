"""Several stores as one: weighted mixes of rows of equal columns.

A mix has the attributes of a store that training reads. Its row numbers are
those of each store after an offset, so that provenance can be looked up.
"""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from saejax.data.store.columns import Column
from saejax.data.store.reader import Store
from saejax.errors import InputError

_SITE = ("model", "site")  # metadata that must agree


@dataclasses.dataclass(frozen=True, eq=False)
class Mix:
  """Rows of several stores, each with a share w_i / sum(w) of every batch.

  A share holds exactly up to rounding: of the first r rows, the store has
  r w_i / sum(w) up to less than the number of stores. Stores are repeated
  independently: one with few rows and a large weight has more epochs.

  Args:
    stores: at least one, of equal training columns, model and site.
    weights: positive weights w_i, one per store; by default numbers of rows.

  Raises:
    InputError: a weight is not positive and finite, a store is given twice, or
      columns, widths, groups, models or sites differ.
  """

  stores: tuple[Store, ...]
  weights: tuple[float, ...] = ()

  def __post_init__(self):
    object.__setattr__(self, "stores", tuple(self.stores))
    weights = tuple(self.weights) or tuple(s.rows for s in self.stores)
    object.__setattr__(self, "weights", weights)
    _check_weights(self.stores, weights)
    for store in self.stores[1:]:
      _check_alike(self.stores[0], store)

  def __repr__(self) -> str:
    return f"Mix({list(self.stores)}, weights={self.weights})"

  @property
  def place(self) -> str:
    """The folders of the stores, as text."""
    return ", ".join(str(store.place) for store in self.stores)

  @functools.cached_property
  def content(self) -> str:
    """SHA-256 of the contents and shares, the identity of the mix."""
    shares = [f"{w}" for w in self.whole_weights]
    record = [[s.content, w] for s, w in zip(self.stores, shares, strict=True)]
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()

  @functools.cached_property
  def whole_weights(self) -> tuple[int, ...]:
    """The weights as coprime integers of equal ratios."""
    exact = [Fraction(str(weight)) for weight in self.weights]
    scale = math.lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * scale) for weight in exact]
    common = math.gcd(*whole)
    return tuple(weight // common for weight in whole)

  @property
  def rows(self) -> int:
    """Rows of all stores."""
    return sum(store.rows for store in self.stores)

  @property
  def d(self) -> int:
    """Width of a row's activations."""
    return self.stores[0].d

  @property
  def group_rows(self) -> int:
    """Number of consecutive rows per group; 1 without groups."""
    return self.stores[0].group_rows

  @property
  def meta(self) -> dict[str, Any]:
    """Metadata that all stores share."""
    first, *others = (store.meta for store in self.stores)
    same = lambda name: all(o.get(name) == first[name] for o in others)
    return {name: first[name] for name in first if same(name)}

  @property
  def trained(self) -> tuple[str, ...]:
    """Names of the columns that training reads by default, x first."""
    return self.stores[0].trained

  @property
  def columns(self) -> dict[str, Column]:
    """Declarations of the columns that all stores have alike."""
    first, *others = (store.columns for store in self.stores)
    return {
      name: column
      for name, column in first.items()
      if all(other.get(name) == column for other in others)
    }

  @functools.cached_property
  def offsets(self) -> tuple[int, ...]:
    """What is added to the row numbers of each store."""
    ends = [max(stop for _, stop in s.intervals) for s in self.stores]
    return (0, *np.cumsum(ends[:-1]).tolist())

  @functools.cached_property
  def moments(self) -> dict[str, dict[str, Any]]:
    """Moments of the training columns in the mix, see `sums.stats`."""
    return {
      name: self._mixed([store.moments[name] for store in self.stores])
      for name in self.trained
      if name in self.stores[0].moments
    }

  @functools.cached_property
  def stats(self) -> dict[str, Any]:
    """Moments of x in the mix, and counts of rows."""
    return self._mixed([store.stats for store in self.stores]) | {
      "rows": self.rows
    }

  def take(
    self, rows: Sequence[int] | np.ndarray, *names: str
  ) -> dict[str, np.ndarray]:
    """Gathers rows of columns, see `Store.take`.

    Args:
      rows: row numbers, as batches have them.
      *names: names of columns; all by default.
    """
    rows = np.asarray(rows, np.int64).reshape(-1)
    which = np.searchsorted(self.offsets, rows, side="right") - 1
    found: dict[str, np.ndarray] = {}
    for i, store in enumerate(self.stores):
      own = np.flatnonzero(which == i)
      part = store.take(rows[own] - self.offsets[i], *(names or self.columns))
      for name, values in part.items():
        if name not in found:
          found[name] = np.empty((len(rows), *values.shape[1:]), values.dtype)
        found[name][own] = values
    return found

  def provenance(
    self, rows: Sequence[int] | np.ndarray
  ) -> dict[str, np.ndarray]:
    """Gathers the provenance of rows, with "store", the store's number.

    Args:
      rows: row numbers, as batches have them.
    """
    rows = np.asarray(rows, np.int64).reshape(-1)
    names = [n for n in self.columns if n not in self.trained]
    which = np.searchsorted(self.offsets, rows, side="right") - 1
    return {**(self.take(rows, *names) if names else {}), "store": which}

  def _mixed(self, moments: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Moments of a mix from those of its parts."""
    share = np.asarray(self.whole_weights, np.float64)
    share = share / share.sum()
    means = np.stack([m["mean"] for m in moments])
    squares = np.stack([m["variance"] for m in moments]) + means**2
    mean = np.tensordot(share, means, 1)
    variance = np.tensordot(share, squares, 1) - mean**2
    return {
      "mean": mean,
      "variance": np.maximum(variance, 0.0),
      "mean_square": float(share @ [m["mean_square"] for m in moments]),
      "max_abs": max(m["max_abs"] for m in moments),
      "nonfinite_rows": sum(m["nonfinite_rows"] for m in moments),
      "infinite_rows": sum(m["infinite_rows"] for m in moments),
    }


def parts(store: "Store | Mix") -> list[tuple[Store, int]]:
  """Lists stores with their weights as integers.

  Args:
    store: a store, which has weight 1, or a mix.
  """
  if isinstance(store, Mix):
    return list(zip(store.stores, store.whole_weights, strict=True))
  return [(store, 1)]


def _check_weights(stores: Sequence[Store], weights: Sequence[float]) -> None:
  if not stores or len(weights) != len(stores):
    raise InputError(
      "weights",
      list(weights),
      f"must be one per store, and there are {len(stores)} stores",
      "give at least one store, and a weight for each or for none",
    )
  for weight in weights:
    if not 0 < weight < math.inf:
      raise InputError(
        "weights",
        weight,
        "must be positive and finite",
        "leave out a store that is not to be read",
      )
  contents = [store.content for store in stores]
  for store in stores:
    if contents.count(store.content) > 1:
      raise InputError(
        "store",
        str(store.place),
        "is in the mix twice",
        "give it once, with a larger weight",
      )


def _check_alike(first: Store, other: Store) -> None:
  """Checks that two stores can be mixed."""
  facts = {
    "d": lambda s: s.d,
    "group": lambda s: s.group_rows,
    "columns": lambda s: {
      n: f"{s.columns[n].dtype}{list(s.columns[n].shape)}" for n in s.trained
    },
    **{name: lambda s, name=name: s.meta.get(name) for name in _SITE},
  }
  for name, fact in facts.items():
    if fact(first) != fact(other):
      raise InputError(
        "store",
        str(other.place),
        f"has {name}={fact(other)}, and {first.place} has {name}={fact(first)}",
        "mix stores of one model and site with equal training columns",
      )
