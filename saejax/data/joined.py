"""Several row sources of the same tokens as one: x of many sites side by side."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from saejax.data import online
from saejax.data.rows import Block, Resume, RowSource, Span
from saejax.data.store.columns import Column
from saejax.data.text import rules

_KEY = ("doc", "pos")  # columns that name a token


def name(column: str, number: int) -> str:
  """Returns the name of a column of one of the sources.

  Args:
    column: its name in that source.
    number: place of the source.

  >>> name("x", 1)
  'x.1'
  """
  return f"{column}.{number}"


class Joined:
  """The rows that all of some sources give; a `rows.RowSource`.

  A token that one site drops, such as an outlier there, is a row of none, so that
  all sites have the same rows and one order.

  Args:
    sources: of one corpus, cut alike, with equal positions, such as the `TextRows`
      of several sites of a model. Their blocks are asked for in turn.
  """

  group = None

  def __init__(self, sources: Sequence[RowSource]):
    self._sources = tuple(sources)
    self.files = sources[0].files

  @functools.cached_property
  def columns(self) -> dict[str, Column]:
    """Columns that are trained on of each, and once the others."""
    first = {n: c for n, c in self._sources[0].columns.items() if not c.train}
    return first | {
      name(column, number): declared
      for number, source in enumerate(self._sources)
      for column, declared in source.columns.items()
      if declared.train
    }

  @property
  def about(self) -> dict[str, Any]:
    """Identity of the rows: that of each source."""
    return {"sites": [dict(source.about) for source in self._sources]}

  def prepare(self, recorded: Mapping[str, Any] | None) -> dict[str, Any]:
    own = (recorded or {}).get("sites") or [None] * len(self._sources)
    pairs = zip(self._sources, own, strict=True)
    return {"sites": [source.prepare(record) for source, record in pairs]}

  def count(self, most: int) -> int:
    return self._sources[0].count(most)

  def blocks(
    self, spans: Sequence[Span], resume: Resume | None = None
  ) -> Iterator[Block]:
    each = [source.blocks(spans, resume) for source in self._sources]
    for blocks in zip(*each, strict=True):
      yield self._common(blocks)

  def _common(self, blocks: Sequence[Block]) -> Block:
    """The rows that all blocks have."""
    keys = [_keys(block.values) for block in blocks]
    common = functools.reduce(np.intersect1d, keys)
    kept = [np.isin(own, common) for own in keys]
    values = {n: blocks[0].values[n][kept[0]] for n in _KEY}
    for number, (block, keep) in enumerate(zip(blocks, kept, strict=True)):
      for column, own in block.values.items():
        trained = self._sources[number].columns[column].train
        if trained or column not in values:
          values[name(column, number) if trained else column] = own[keep]
    dropped = dict(blocks[0].dropped)
    lost = len(keys[0]) - len(common)
    dropped[rules.OUTLIER] = dropped.get(rules.OUTLIER, 0) + lost
    first = blocks[0]
    return Block(first.span, values, first.resume, dropped, first.read)


def sites(
  sources: Sequence[RowSource], **sizes: int
) -> list[online.OnlineRows]:
  """The rows of each source, to train on as they are computed together.

  Args:
    sources: as for `Joined`.
    **sizes: those of `online.Origin`.

  Raises:
    InputError: see `online.Origin`.
  """
  origin = online.Origin(source=Joined(sources), **sizes)
  return [
    online.OnlineRows(
      origin,
      {
        column: name(column, number) if declared.train else column
        for column, declared in source.columns.items()
      },
      source.about,
    )
    for number, source in enumerate(sources)
  ]


def _keys(values: Mapping[str, np.ndarray]) -> np.ndarray:
  """A number for the token of each row; positions are below 2^31."""
  document, position = (values[column].astype(np.int64) for column in _KEY)
  return document << 31 | position
