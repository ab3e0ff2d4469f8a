"""Tokens around a stored row, and their text.

In a store in document order the neighbours of a row are adjacent. In a shuffled
store they are looked up by document and position in an index that is built once.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from saejax.data.store import place as places
from saejax.data.store.reader import Store
from saejax.errors import InputError
from saejax.models import tokenizer

COLUMNS = ("doc", "pos", "tok")


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
  """Rows sorted by document, then position; all arrays [rows].

  Attributes:
    doc: document of each row, ascending.
    pos: position of each row, ascending within a document.
    tok: token of each row.
    row: row number of each.
    place: place in this order of each row of `rows`.
    rows: row numbers of the store, ascending.
  """

  doc: np.ndarray
  pos: np.ndarray
  tok: np.ndarray
  row: np.ndarray
  place: np.ndarray
  rows: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Near:
  """Stored tokens around a row, in order; `tokens[at]` is that of the row.

  Attributes:
    tokens: ids of the tokens [T].
    rows: their row numbers [T].
    at: place of the row among them.
  """

  tokens: np.ndarray
  rows: np.ndarray
  at: int


def text(
  store: Store,
  row: int,
  before: int = 8,
  after: int = 4,
  mark: tuple[str, str] = ("", ""),
) -> str:
  """Returns the text around a row: its token and the stored neighbours.

  Args:
    store: store with the columns doc, pos and tok, and a tokenizer.
    row: row number.
    before: maximum number of tokens before the row's, of its document.
    after: maximum number of tokens after it.
    mark: texts inserted before and after the row's token.

  Raises:
    InputError: the store has no text.
    IndexError: the row does not exist.
  """
  words = tokenizer_of(store)
  return decode(words, window(store, row, before, after), mark)


def window(store: Store, row: int, before: int, after: int) -> Near:
  """Returns the stored tokens around a row.

  Args:
    store: store with the columns doc, pos and tok.
    row: row number.
    before: maximum number of tokens before the row's, of its document.
    after: maximum number of tokens after it.

  Raises:
    IndexError: the row does not exist.
  """
  if store.meta["shuffled"]:
    return search(_index(store), row, before, after)
  return around(store, row, before, after)


@functools.lru_cache(maxsize=1)
def _index(store: Store) -> "Index":
  return index(store)


@functools.lru_cache(maxsize=1)
def tokenizer_of(store: Store) -> Any:
  """Returns the tokenizer of a store with text.

  Args:
    store: store with the columns doc, pos and tok, and a tokenizer.

  Raises:
    InputError: the store has no text.
  """
  path = places.local(store.place, "tokenizer")
  if path is None or not set(COLUMNS) <= set(store.columns):
    raise InputError(
      "store",
      str(store.place),
      f"must have a tokenizer and the columns {', '.join(COLUMNS)}",
      "harvest from a model with a tokenizer",
    )
  return tokenizer.load(path)


def index(store: Store) -> Index:
  """Builds the index of a store; it takes 40 bytes per row.

  Args:
    store: store with the columns doc, pos and tok.
  """
  columns = store.whole(*COLUMNS)
  order = np.lexsort([columns["pos"], columns["doc"]])
  place = np.empty_like(order)
  place[order] = np.arange(len(order))
  rows = np.concatenate([np.arange(a, b) for a, b in store.intervals])
  return Index(
    doc=columns["doc"][order],
    pos=columns["pos"][order],
    tok=columns["tok"][order],
    row=rows[order],
    place=place,
    rows=rows,
  )


def search(found: Index, row: int, before: int, after: int) -> Near:
  """Looks up the neighbours of a row in an index.

  Args:
    found: the index of the store.
    row: row number.
    before: maximum distance of positions before the row.
    after: maximum distance of positions after the row.

  Raises:
    IndexError: the row does not exist.
  """
  number = int(np.searchsorted(found.rows, row))
  if number == len(found.rows) or found.rows[number] != row:
    raise IndexError(f"row {row} does not exist")
  at = int(found.place[number])
  start, stop = max(0, at - before), at + after + 1
  return _keep(
    found.doc[start:stop],
    found.pos[start:stop],
    found.tok[start:stop],
    found.row[start:stop],
    at - start,
    before,
    after,
  )


def around(store: Store, row: int, before: int, after: int) -> Near:
  """Reads the neighbours of a row in a store in document order.

  Args:
    store: the store.
    row: row number.
    before: maximum distance of positions before the row.
    after: maximum distance of positions after the row.

  Raises:
    IndexError: the row does not exist.
  """
  for start, stop in store.intervals:
    # Buckets in document order are contiguous.
    if start <= row < stop:
      break
  else:
    raise IndexError(f"row {row} does not exist")
  last = store.intervals[-1][1]
  rows = np.arange(max(0, row - before), min(last, row + after + 1))
  columns = store.take(rows, *COLUMNS)
  at = row - int(rows[0])
  return _keep(
    columns["doc"], columns["pos"], columns["tok"], rows, at, before, after
  )


def _keep(
  doc: np.ndarray,
  pos: np.ndarray,
  tok: np.ndarray,
  rows: np.ndarray,
  at: int,
  before: int,
  after: int,
) -> Near:
  # Dropped rows leave gaps, so distances are of positions.
  away = pos - pos[at]
  near = (doc == doc[at]) & (away >= -before) & (away <= after)
  return Near(tok[near], rows[near], int(near[:at].sum()))


def decode(tokenizer: Any, near: Near, mark: tuple[str, str]) -> str:
  """Returns the text of tokens, with marks around the row's token.

  The text of a token depends on the token to its left (word pieces, leading
  blanks), so that its part of the text is found by decoding prefixes.

  Args:
    tokenizer: the tokenizer.
    near: the tokens.
    mark: texts inserted before and after the row's token.
  """
  ids = near.tokens.tolist()
  left = tokenizer.decode(ids[: near.at])
  upto = tokenizer.decode(ids[: near.at + 1])
  whole = tokenizer.decode(ids)
  if not any(mark):
    return whole
  if not (upto.startswith(left) and whole.startswith(upto)):
    # The decoder looks ahead; decode the parts separately.
    own = tokenizer.decode(ids[near.at : near.at + 1])
    rest = tokenizer.decode(ids[near.at + 1 :])
    return left + mark[0] + own + mark[1] + rest
  own = upto[len(left) :]
  blank = own[: len(own) - len(own.lstrip())]
  return left + blank + mark[0] + own.lstrip() + mark[1] + whole[len(upto) :]


def pieces(tokenizer: Any, tokens: np.ndarray) -> list[str]:
  """Returns the text of each token, as it reads after those before it.

  Joined, they are the text of all. A character of several tokens is given to
  the last of them, and the others are empty.

  Args:
    tokenizer: the tokenizer.
    tokens: ids of the tokens, in order.
  """
  ids = tokens.tolist()
  found, before = [], ""
  for i in range(len(ids)):
    upto = tokenizer.decode(ids[: i + 1])
    if upto.endswith("\ufffd") and i + 1 < len(ids):
      found.append("")  # a part of a character
    elif upto.startswith(before):
      found.append(upto[len(before) :])
      before = upto
    else:  # the decoder looks ahead
      found.append(tokenizer.decode(ids[i : i + 1]))
      before = upto
  return found


def in_window(store: Store, pos: np.ndarray) -> np.ndarray:
  """Returns positions in the model's window, from 0.

  Args:
    store: the store; without a context in its metadata, documents are windows.
    pos: positions in documents, its column pos.
  """
  frame = sum(len(store.meta.get(end) or ()) for end in ("prefix", "suffix"))
  length = int(store.meta.get("context") or 0) - frame
  return pos % length if length > 0 else pos
