"""Cuts documents into windows and forward batches.

The tokens of a document are cut into windows of `context` tokens, including the
special tokens around each; a window has tokens of one document only. Windows
are collected in pools of `pool_batches` forward batches and sorted by length
within a pool, so that the windows of a batch have similar lengths and are padded
to one of few lengths. A pool of one batch keeps document order.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from saejax.data.text import rules

PADDING = "padding"


class Point(NamedTuple):
  """The position of a forward batch.

  Attributes:
    document: place in the list of documents of the pool's first window.
    window: number of that window in its document.
    batch: number of the batch in the pool.
  """

  document: int
  window: int
  batch: int


START = Point(0, 0, 0)


class Window(NamedTuple):
  """Tokens of one document.

  Attributes:
    document: number of the document in the corpus.
    start: position of the first token in the document.
    ids: tokens, without special tokens around them; ~id where one is no row.
  """

  document: int
  start: int
  ids: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
  """One forward batch; B is always forward_batch, T one of `Plan.lengths`.

  Attributes:
    point: position of the batch.
    ids: tokens with special tokens and padding, [B, T] int32.
    mask: attention mask, [B, T] bool.
    keep: whether a token is a row, [B, T] bool.
    doc: document of each token, [B, T] int64.
    pos: position of each token in its document, [B, T] int32.
    dropped: number of tokens dropped by each rule; a token counts for the first
      rule that drops it.
    tokens: number of tokens of documents, without special tokens and padding.
  """

  point: Point
  ids: np.ndarray
  mask: np.ndarray
  keep: np.ndarray
  doc: np.ndarray
  pos: np.ndarray
  dropped: dict[str, int]
  tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """Settings that determine the batches of documents.

  Attributes:
    context: tokens per window, including special tokens.
    forward_batch: windows per batch.
    pool_batches: batches per pool; 1 keeps document order.
    document_tokens: maximum number of tokens per document; 0 for no limit.
    prefix: special tokens before each window, such as BOS or CLS.
    suffix: special tokens after each window, such as SEP.
    rules: tokens that are never rows, beside those around windows.
  """

  context: int
  forward_batch: int
  pool_batches: int
  document_tokens: int
  prefix: tuple[int, ...]
  suffix: tuple[int, ...]
  rules: rules.RowRules

  @property
  def window(self) -> int:
    """Number of a document's tokens in a full window."""
    return self.context - len(self.prefix) - len(self.suffix)

  @property
  def lengths(self) -> tuple[int, ...]:
    """Lengths that batches are padded to: few, so that few are compiled."""
    parts = {-(-self.context * i // 32) * 8 for i in (1, 2, 3)}
    return (*sorted(n for n in parts if n < self.context), self.context)

  def cut(self, document: int, ids: np.ndarray) -> list[Window]:
    """Cuts a document into windows.

    Args:
      document: number of the document in the corpus.
      ids: its tokens.
    """
    stop = self.document_tokens or len(ids)
    ids = ids[:stop]
    starts = range(0, len(ids), self.window)
    return [Window(document, i, ids[i : i + self.window]) for i in starts]

  def rows(self, ids: np.ndarray) -> int:
    """Returns the number of tokens of a document that no rule drops.

    Outliers are not known before the model runs, and count.

    Args:
      ids: tokens of the document.
    """
    ids = ids[: self.document_tokens or len(ids)]
    position = len(self.prefix) + np.arange(len(ids)) % self.window
    dropped = self.rules.dropped(ids, np.ones(len(ids), bool), position)
    return len(ids) - sum(int(found.sum()) for found in dropped.values())


def batches(
  plan: Plan,
  documents: Sequence[int] | np.ndarray,
  encode: Callable[[int], np.ndarray],
  start: Point = START,
) -> Iterator[Batch]:
  """Yields the forward batches of documents, starting at a position.

  Args:
    plan: settings.
    documents: numbers of the documents in the corpus, in order.
    encode: returns the tokens of a document by its number.
    start: position of the first batch; batches from there on equal those of an
      uninterrupted run.
  """
  skip = start.batch
  for first, pool in _pools(plan, documents, encode, start):
    size = plan.forward_batch
    if plan.pool_batches > 1:
      # Stable, so that windows of one length stay in order.
      pool = sorted(pool, key=lambda w: -len(w.ids))
    for number in range(skip, -(-len(pool) // size)):
      part = pool[number * size : (number + 1) * size]
      yield _batch(plan, Point(first.document, first.window, number), part)
    skip = 0


def _pools(
  plan: Plan,
  documents: Sequence[int] | np.ndarray,
  encode: Callable[[int], np.ndarray],
  start: Point,
) -> Iterator[tuple[Point, list[Window]]]:
  size = plan.forward_batch * plan.pool_batches
  pool: list[Window] = []
  first = start
  for place in range(start.document, len(documents)):
    number = int(documents[place])
    windows = plan.cut(number, encode(number))
    for window in range(
      start.window if place == start.document else 0, len(windows)
    ):
      if not pool:
        first = Point(place, window, 0)
      pool.append(windows[window])
      if len(pool) == size:
        yield first, pool
        pool = []
  if pool:
    yield first, pool


def _batch(plan: Plan, point: Point, windows: Sequence[Window]) -> Batch:
  before, after = len(plan.prefix), len(plan.suffix)
  longest = max(len(w.ids) for w in windows) + before + after
  T = next(length for length in plan.lengths if length >= longest)
  B = plan.forward_batch
  ids, mask = np.zeros((B, T), np.int32), np.zeros((B, T), bool)
  framed = np.zeros((B, T), bool)
  doc, pos = np.zeros((B, T), np.int64), np.zeros((B, T), np.int32)
  for row, window in enumerate(windows):
    stop = before + len(window.ids)
    ids[row, :before] = plan.prefix
    ids[row, before:stop] = window.ids
    ids[row, stop : stop + after] = plan.suffix
    mask[row, : stop + after] = True
    framed[row, :before] = framed[row, stop : stop + after] = True
    doc[row] = window.document
    pos[row] = window.start + np.arange(T) - before
  # Rows without a window attend to one token, to avoid a division by zero.
  real = mask.copy()
  mask[len(windows) :, 0] = True
  own = real & ~framed
  dropped = plan.rules.dropped(ids, own, np.arange(T)[None])
  dropped[rules.SPECIAL] |= framed
  ids = rules.shown(ids)
  return Batch(
    point=point,
    ids=ids,
    mask=mask,
    keep=own & ~np.any(list(dropped.values()), axis=0),
    doc=doc,
    pos=pos,
    dropped={PADDING: int((~real).sum())}
    | {
      rule: int(found.sum())
      for rule, found in dropped.items()
      if found.any() or rule not in (rules.CORPUS, rules.NOT_LAST)
    },
    tokens=int(own.sum()),
  )
