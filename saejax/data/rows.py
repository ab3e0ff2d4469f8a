"""Row sources: resumable iterators of blocks of columns.

A harvest writes any of these into a store. Text through a model is one
(`data.text.rows`); arrays in memory or on disk are another (`ArrayRows`).
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from saejax.data.store import columns as declarations
from saejax.data.store.columns import Column

TRAIN, HELD_OUT = "train", "held_out"
_BLOCK_ROWS = 8192


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
  """Some rows of a source.

  Attributes:
    position: start of the block, JSON-serialisable; the source resumes there.
    values: every column [rows, ...]; rows may be 0.
    dropped: rows left out, by rule.
    read: units read for it, such as tokens.
  """

  position: dict[str, Any]
  values: dict[str, np.ndarray]
  dropped: Mapping[str, int] = dataclasses.field(default_factory=dict)
  read: int = 0


class RowSource(Protocol):
  """The interface of a source of rows for a harvest.

  Attributes:
    columns: declarations, x among them.
    about: JSON-serialisable identity of the rows; part of the store's metadata.
    files: small files kept in the store, by name.
    group: key and rows of groups that are shuffled as a whole, or None.
  """

  @property
  def columns(self) -> Mapping[str, Column]: ...

  @property
  def about(self) -> Mapping[str, Any]: ...

  @property
  def files(self) -> Mapping[str, bytes]: ...

  @property
  def group(self) -> Mapping[str, Any] | None: ...

  def prepare(
    self, recorded: Mapping[str, Any] | None
  ) -> Mapping[str, Any] | None:
    """Measures what the blocks depend on, or reuses an earlier measurement.

    Returns:
      What to record in the store, JSON; None where blocks need nothing.
    """
    ...

  def blocks(
    self, position: Mapping[str, Any] | None, wanted: int
  ) -> Iterator[Block]:
    """Yields blocks from a position on, deterministically.

    Args:
      position: of a block, or the end; None for the beginning.
      wanted: rows that will be used; no work is started for more.
    """
    ...

  @property
  def end(self) -> Mapping[str, Any]:
    """The position after the last block."""
    ...


@dataclasses.dataclass(frozen=True, eq=False)
class ArrayRows:
  """Rows of arrays, in memory or mapped from disk; made by `array_rows`.

  Attributes:
    arrays: [rows, ...] by column.
    columns: declarations.
    about: {"arrays": SHA-256 of the values, ...}.
    group: as of `RowSource`.
    first: the row of the arrays that is row 0 of the source.
    count: rows of the source; None for all from there on.
  """

  arrays: Mapping[str, Any]
  columns: Mapping[str, Column]
  about: Mapping[str, Any]
  group: Mapping[str, Any] | None = None
  files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
  first: int = 0
  count: int | None = None

  @property
  def rows(self) -> int:
    """Number of rows."""
    if self.count is not None:
      return self.count
    return len(self.arrays["x"]) - self.first

  @property
  def end(self) -> dict[str, int]:
    return {"row": self.rows}

  def prepare(
    self, recorded: Mapping[str, Any] | None
  ) -> Mapping[str, Any] | None:
    return None

  def blocks(
    self, position: Mapping[str, Any] | None, wanted: int
  ) -> Iterator[Block]:
    first = position["row"] if position else 0
    for start in range(first, self.rows, _BLOCK_ROWS):
      stop = min(start + _BLOCK_ROWS, self.rows)
      values = {
        name: declarations.native(array[self.first + start : self.first + stop])
        for name, array in self.arrays.items()
      }
      yield Block({"row": start}, values, read=stop - start)

  def part(self, start: int, stop: int) -> "ArrayRows":
    """Rows [start, stop) as a source of their own; none are read.

    Args:
      start: first row.
      stop: row after the last.
    """
    return dataclasses.replace(
      self,
      about={**self.about, "part": [start, stop]},
      first=self.first + start,
      count=stop - start,
    )
