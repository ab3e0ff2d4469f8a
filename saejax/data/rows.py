"""Row sources: resumable iterators of blocks of columns.

A harvest writes any of these into a store. Text through a model is one
(`data.text.rows`); arrays in memory or on disk are another (`ArrayRows`).
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from saejax.data.store import columns as declarations
from saejax.data.store.columns import Column

TRAIN, HELD_OUT = "train", "held_out"
_BLOCK_ROWS = 8192


class Span(NamedTuple):
  """Rows [start, stop) of a source, as it counts them."""

  start: int
  stop: int


class Resume(NamedTuple):
  """A place where a source can go on.

  Attributes:
    at: JSON-serialisable position, as the source gives it.
    row: number of the first row there.
  """

  at: Mapping[str, Any]
  row: int


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
  """Some rows of a span.

  Attributes:
    span: place of the span among those asked for.
    values: every column [rows, ...]; rows may be 0.
    resume: the source goes on there to give what follows the block.
    dropped: rows left out, by rule.
    read: units read for it, such as tokens.
  """

  span: int
  values: dict[str, np.ndarray]
  resume: Resume
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

  def count(self, most: int) -> int:
    """The number of rows, at most `most`, without computing them.

    Rows that only their values show to be dropped are counted.
    """
    ...

  def blocks(
    self, spans: Sequence[Span], resume: Resume | None = None
  ) -> Iterator[Block]:
    """Yields the rows of spans, deterministically.

    What it gives for a span does not depend on the other spans. No work is done
    for rows that are in none.

    Args:
      spans: in order, without overlap. What is after the last row is left out.
      resume: where to begin, at most at the first row of the first span; None
        for the beginning.
    """
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
    length: rows of the source; None for all from there on.
  """

  arrays: Mapping[str, Any]
  columns: Mapping[str, Column]
  about: Mapping[str, Any]
  group: Mapping[str, Any] | None = None
  files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
  first: int = 0
  length: int | None = None

  @property
  def rows(self) -> int:
    """Number of rows."""
    if self.length is not None:
      return self.length
    return len(self.arrays["x"]) - self.first

  def prepare(
    self, recorded: Mapping[str, Any] | None
  ) -> Mapping[str, Any] | None:
    return None

  def count(self, most: int) -> int:
    return min(self.rows, most)

  def blocks(
    self, spans: Sequence[Span], resume: Resume | None = None
  ) -> Iterator[Block]:
    for number, span in enumerate(spans):
      last = min(span.stop, self.rows)
      for start in range(span.start, last, _BLOCK_ROWS):
        stop = min(start + _BLOCK_ROWS, last)
        values = {
          name: declarations.native(
            array[self.first + start : self.first + stop]
          )
          for name, array in self.arrays.items()
        }
        resume = Resume({}, stop)
        yield Block(number, values, resume, read=stop - start)

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
      length=stop - start,
    )
