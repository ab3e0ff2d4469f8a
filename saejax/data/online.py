"""Rows that are trained on as they are computed, in place of a store.

Any row source will do, such as text through a model. `mixed` has the order of the
rows, `shared` their batches.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from saejax import durable
from saejax.data import memory, streams
from saejax.data.mixed import MixedBatches
from saejax.data.rows import RowSource, Span
from saejax.data.store import sums
from saejax.data.store.columns import Column
from saejax.errors import InputError

BUFFER_ROWS = 131_072
STATISTICS_ROWS = 32_768
# Metadata about the layout of stores, which decide no rows here.
_LAYOUT = (
  "format",
  "rows",
  "capacity",
  "bucket_rows",
  "shard_rows",
  "chunk_rows",
  "shuffled",
  "compression",
)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Origin:
  """A row source and the sizes that fix which rows are trained on.

  Attributes:
    source: the rows.
    most_rows: maximum number of rows per epoch.
    buffer_rows: rows in memory, beside the first ones and batches under way.
    statistics_rows: number of the first rows, see `first`.

  Raises:
    InputError: a number is too small, or the buffer does not fit in memory.
  """

  source: RowSource
  most_rows: int
  buffer_rows: int = BUFFER_ROWS
  statistics_rows: int = STATISTICS_ROWS

  def __post_init__(self):
    for name in ("most_rows", "buffer_rows", "statistics_rows"):
      if (value := getattr(self, name)) < 2:
        raise InputError(name, value, "must be at least 2", "raise it")
    row = sum(column.row_bytes for column in self.source.columns.values())
    need, most = row * self.buffer_rows, memory.host()
    if need > most:
      raise InputError(
        "buffer_rows",
        self.buffer_rows,
        f"takes {durable.size(need)}, and memory is {durable.size(most)}",
        f"lower it; {most // (2 * row)} rows take half of that",
      )

  @functools.cached_property
  def content(self) -> str:
    """SHA-256 of all that determines rows and order, but the run's settings."""
    sizes = (self.most_rows, self.buffer_rows, self.statistics_rows)
    return durable.digest(
      {"about": _rows_of(self.source.about), "online": sizes}
    )

  @functools.cached_property
  def rows(self) -> int:
    """Rows per epoch, with those that are dropped by their values."""
    return self.source.count(self.most_rows)

  @functools.cached_property
  def first(self) -> dict[str, np.ndarray]:
    """The first rows of the source, by column.

    Raises:
      InputError: there are none.
    """
    self.source.prepare(None)
    span = Span(0, min(self.most_rows, self.statistics_rows))
    blocks = list(self.source.blocks([span]))
    if not sum(len(next(iter(block.values.values()))) for block in blocks):
      raise InputError(
        "source",
        "online",
        f"must give rows, and the first {span.stop} are all dropped",
        "use other data, or relax the rules that drop rows",
      )
    return {
      name: np.concatenate([block.values[name] for block in blocks])
      for name in self.source.columns
    }

  def batches(self, *, batch_rows: int, seed: int) -> MixedBatches:
    """Returns the stream of all columns.

    Args:
      batch_rows, seed: as for `MixedBatches`.

    Raises:
      InputError: see `MixedBatches`.
    """
    self.source.prepare(None)
    return MixedBatches(
      self.source,
      most_rows=self.most_rows,
      buffer_rows=self.buffer_rows,
      batch_rows=batch_rows,
      seed=seed,
      content=self.content,
    )


def _rows_of(about: Any) -> Any:
  """Metadata without the layout of stores."""
  if isinstance(about, Mapping):
    return {k: _rows_of(v) for k, v in about.items() if k not in _LAYOUT}
  if isinstance(about, list | tuple):
    return [_rows_of(value) for value in about]
  return about


@dataclasses.dataclass(frozen=True, eq=False)
class OnlineRows:
  """Rows at one site, to train on as they are computed; made by `rows`.

  It has what training asks of a `Store`. Means and scales are those of the first
  rows of the source, which are also what is sampled for initial weights and for
  estimates after training: they do not depend on when they are asked for.

  Attributes:
    origin: the rows of all sites.
    names: column of each field and of the provenance, by name.
    meta: identity of the rows, as in a store's metadata.
  """

  origin: Origin
  names: Mapping[str, str]
  meta: Mapping[str, Any]
  place = "online"  # for errors, as a store has it
  group_rows = 1

  @functools.cached_property
  def columns(self) -> dict[str, Column]:
    """Declarations of the columns by name."""
    known = self.origin.source.columns
    return {name: known[column] for name, column in self.names.items()}

  @property
  def trained(self) -> tuple[str, ...]:
    """Names of the columns that are trained on, x first."""
    names = [n for n, c in self.columns.items() if c.train and n != "x"]
    return ("x", *names)

  @property
  def d(self) -> int:
    """Width of a row's activations."""
    return (self.columns["x"].shape or (1,))[-1]

  @property
  def rows(self) -> int:
    """Rows per epoch, with those that are dropped by their values."""
    return self.origin.rows

  @functools.cached_property
  def content(self) -> str:
    """SHA-256 of all that determines rows and order, but the run's settings."""
    return durable.digest([self.origin.content, dict(self.names)])

  @functools.cached_property
  def moments(self) -> dict[str, dict[str, Any]]:
    """Moments of each float column that is trained on, over the first rows."""
    found = {}
    for name in self.trained:
      if self.columns[name].is_float:
        column = self.origin.first[self.names[name]]
        own = sums.stats(sums.summed(column), column.shape[1:])
        arrays = {n: np.asarray(own[n], "f8") for n in ("mean", "variance")}
        found[name] = own | arrays
    return found

  @property
  def stats(self) -> dict[str, Any]:
    """Moments of x over the first rows, and their number, as of a store."""
    count = len(self.origin.first[self.names["x"]])
    return sums.pooled(self.moments["x"]) | {"rows": count}

  @property
  def intervals(self) -> list[tuple[int, int]]:
    """(start, stop) of the rows that `read` has: the first ones."""
    return [(0, self.stats["rows"])]

  def read(self, start: int, stop: int, column: str = "x") -> np.ndarray:
    """Returns some of the first rows [stop - start, ...] of a column.

    Args:
      start: first row.
      stop: row after the last.
      column: name of the column.
    """
    return self.origin.first[self.names[column]][start:stop]

  def describe(self) -> dict[str, Any]:
    """Returns facts about the rows, for the results of a run."""
    return {
      "online": {
        "most_rows": self.origin.most_rows,
        "buffer_rows": self.origin.buffer_rows,
        "statistics": f"of the first {self.stats['rows']} rows",
      },
      "content": self.content,
    }

  def sample(self, rows: int) -> dict[str, np.ndarray]:
    """Samples the first rows evenly, those with a finite x.

    Args:
      rows: maximum number of rows.

    Returns:
      Arrays by field; float columns as float32, others in their dtype.
    """
    first = {name: self.origin.first[self.names[name]] for name in self.trained}
    even = {
      name: a.astype(np.float32) if self.columns[name].is_float else a
      for name, a in streams.evenly(first, rows).items()
    }
    finite = np.isfinite(even["x"]).reshape(len(even["x"]), -1).all(axis=-1)
    return {name: a[finite] for name, a in even.items()}


def rows(
  source: RowSource,
  *,
  most_rows: int,
  buffer_rows: int = BUFFER_ROWS,
  statistics_rows: int = STATISTICS_ROWS,
) -> OnlineRows:
  """Rows of a source, to train on as they are computed.

  Args:
    source, most_rows, buffer_rows, statistics_rows: as for `Origin`.

  Raises:
    InputError: see `Origin`.

  >>> from saejax.data import files
  >>> source = files.array_rows(np.eye(6, dtype=np.float32))
  >>> online = rows(source, most_rows=6, buffer_rows=4)
  >>> online.d, online.rows, online.stats["mean_square"]
  (6, 6, 1.0)
  """
  origin = Origin(
    source=source,
    most_rows=most_rows,
    buffer_rows=buffer_rows,
    statistics_rows=statistics_rows,
  )
  return OnlineRows(
    origin, {name: name for name in source.columns}, source.about
  )
