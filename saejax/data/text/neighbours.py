"""The tokens around a stored row, and their text.

A store in document order has the neighbours of a row beside it. In a shuffled
one they are found by document and position in an index that is built once.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from saejax.data.store.reader import Store
from saejax.errors import InputError
from saejax.models import tokenizer

COLUMNS = ("doc", "pos", "tok")


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
  """Rows sorted by document, then position; all arrays [rows].

  Attributes:
    doc: documents, ascending.
    pos: positions, ascending inside a document.
    tok: tokens.
    place: place of each existing row in this order.
    rows: numbers of the existing rows, ascending.
  """

  doc: np.ndarray
  pos: np.ndarray
  tok: np.ndarray
  place: np.ndarray
  rows: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Near:
  """Stored tokens around a row, in order; `tokens[at]` is the row's own."""

  tokens: np.ndarray
  at: int


def text(
  store: Store,
  row: int,
  before: int = 8,
  after: int = 4,
  mark: tuple[str, str] = ("", ""),
) -> str:
  """The text around a row: its token and the neighbours that were stored.

  Args:
    store: rows with the columns doc, pos and tok, and a tokenizer.
    row: row number.
    before: tokens before it, of the same document.
    after: tokens after it.
    mark: put before and after the row's own token.

  Raises:
    InputError: the store does not hold text.
  """
  words = _tokenizer(store)
  if store.meta["shuffled"]:
    near = search(_index(store), row, before, after)
  else:
    near = around(store, row, before, after)
  return decode(words, near, mark)


@functools.lru_cache(maxsize=1)
def _index(store: Store) -> "Index":
  return index(store)


@functools.lru_cache(maxsize=1)
def _tokenizer(store: Store) -> Any:
  path = store.path / "tokenizer"
  if not path.is_dir() or not set(COLUMNS) <= set(store.columns):
    raise InputError(
      "store",
      store.path,
      f"must hold a tokenizer and the columns {', '.join(COLUMNS)}, so that its "
      "rows have text",
      "harvest from a model with a tokenizer",
    )
  return tokenizer.load(path)


def index(store: Store) -> Index:
  """Builds the index of a store; 24 bytes per row."""
  columns = store.whole(*COLUMNS)
  order = np.lexsort([columns["pos"], columns["doc"]])
  place = np.empty_like(order)
  place[order] = np.arange(len(order))
  rows = np.concatenate([np.arange(a, b) for a, b in store.intervals])
  return Index(
    doc=columns["doc"][order],
    pos=columns["pos"][order],
    tok=columns["tok"][order],
    place=place,
    rows=rows,
  )


def search(found: Index, row: int, before: int, after: int) -> Near:
  """Neighbours by index: at most `before` and `after` positions away."""
  number = int(np.searchsorted(found.rows, row))
  if number == len(found.rows) or found.rows[number] != row:
    raise IndexError(f"row {row} does not exist")
  at = int(found.place[number])
  start, stop = max(0, at - before), at + after + 1
  return _keep(
    found.doc[start:stop],
    found.pos[start:stop],
    found.tok[start:stop],
    at - start,
    before,
    after,
  )


def around(store: Store, row: int, before: int, after: int) -> Near:
  """Neighbours by row number, in a store in document order."""
  for start, stop in store.intervals:
    # Buckets of document order follow each other without holes.
    if start <= row < stop:
      break
  else:
    raise IndexError(f"row {row} does not exist")
  last = store.intervals[-1][1]
  rows = np.arange(max(0, row - before), min(last, row + after + 1))
  found = store.take(rows, *COLUMNS)
  at = row - int(rows[0])
  return _keep(found["doc"], found["pos"], found["tok"], at, before, after)


def _keep(
  doc: np.ndarray,
  pos: np.ndarray,
  tok: np.ndarray,
  at: int,
  before: int,
  after: int,
) -> Near:
  # Dropped rows leave gaps: count positions, not rows.
  away = pos - pos[at]
  kept = (doc == doc[at]) & (away >= -before) & (away <= after)
  return Near(tok[kept], int(kept[:at].sum()))


def decode(tokenizer: Any, near: Near, mark: tuple[str, str]) -> str:
  """The text of tokens, with marks around the row's own.

  Pieces are told apart by decoding prefixes, since what a token looks like
  depends on its left neighbour (word pieces, leading blanks).
  """
  ids = near.tokens.tolist()
  left = tokenizer.decode(ids[: near.at])
  upto = tokenizer.decode(ids[: near.at + 1])
  whole = tokenizer.decode(ids)
  if not any(mark):
    return whole
  if not (upto.startswith(left) and whole.startswith(upto)):
    # A decoder that looks ahead: pieces on their own.
    own = tokenizer.decode(ids[near.at : near.at + 1])
    rest = tokenizer.decode(ids[near.at + 1 :])
    return left + mark[0] + own + mark[1] + rest
  own = upto[len(left) :]
  blank = own[: len(own) - len(own.lstrip())]
  return left + blank + mark[0] + own.lstrip() + mark[1] + whole[len(upto) :]
