"""Documents to forward batches: windows, framing, padding, row rules.

A document's tokens are cut into windows of `context` tokens less the special
tokens that frame each; a window never crosses documents. Windows are taken in
pools of `pool_batches` forward batches and sorted by length inside a pool, so
that a batch holds windows of like length and is padded to one of few lengths.
A pool of one batch keeps document order.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

PADDING, SPECIAL, USER = "padding", "special", "drop_ids"


class Point(NamedTuple):
  """A forward batch: its pool's first window, and its number in the pool.

  Attributes:
    document: place in the list of documents.
    window: number of the window in the document.
    batch: number of the batch in the pool that starts at this window.
  """

  document: int
  window: int
  batch: int


START = Point(0, 0, 0)


class Window(NamedTuple):
  """Tokens of one document.

  Attributes:
    document: the document's number in the corpus.
    start: position of the first token in the document.
    ids: tokens, without the frame.
  """

  document: int
  start: int
  ids: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
  """One forward batch; B is always forward_batch, T one of `lengths`.

  Attributes:
    point: where it is.
    ids: [B, T] int32, framed and padded.
    mask: [B, T] bool, attention: which are tokens.
    keep: [B, T] bool, which pass the rules about tokens.
    doc: [B, T] int64, document.
    pos: [B, T] int32, position in the document.
    dropped: tokens dropped by each rule, each token by the first that hits.
    tokens: tokens of the documents, without frame and padding.
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
  """How documents become batches.

  Attributes:
    context: tokens a window with its frame.
    forward_batch: windows per batch.
    pool_batches: batches a pool; 1 keeps document order.
    document_tokens: tokens taken of a document; 0 takes all.
    prefix: special tokens before each window, such as BOS or CLS.
    suffix: special tokens after each window, such as SEP.
    special: ids that are never rows, wherever they stand.
    drop_ids: further ids that are never rows.
  """

  context: int
  forward_batch: int
  pool_batches: int
  document_tokens: int
  prefix: tuple[int, ...]
  suffix: tuple[int, ...]
  special: frozenset[int]
  drop_ids: tuple[int, ...]

  @property
  def window(self) -> int:
    """Tokens of a document in a whole window."""
    return self.context - len(self.prefix) - len(self.suffix)

  @property
  def lengths(self) -> tuple[int, ...]:
    """What batches are padded to: few, so that few shapes are compiled."""
    parts = {-(-self.context * i // 32) * 8 for i in (1, 2, 3)}
    return (*sorted(n for n in parts if n < self.context), self.context)

  def cut(self, document: int, ids: np.ndarray) -> list[Window]:
    """The windows of a document."""
    stop = self.document_tokens or len(ids)
    ids = ids[:stop]
    starts = range(0, len(ids), self.window)
    return [Window(document, i, ids[i : i + self.window]) for i in starts]

  def rows(self, ids: np.ndarray) -> int:
    """Most rows that a document can give: tokens that pass the rules."""
    stop = self.document_tokens or len(ids)
    never = np.asarray(sorted(self.special | set(self.drop_ids)), np.int32)
    return int((~np.isin(ids[:stop], never)).sum())


def batches(
  plan: Plan,
  documents: Sequence[int] | np.ndarray,
  encode: Callable[[int], np.ndarray],
  start: Point = START,
) -> Iterator[Batch]:
  """The forward batches of documents, from a batch on.

  Args:
    plan: how to cut.
    documents: numbers of the documents in the corpus, in order.
    encode: the tokens of a document, by its number.
    start: the first batch; batches from there are those of a whole run.
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
    found = plan.cut(number, encode(number))
    for window in range(
      start.window if place == start.document else 0, len(found)
    ):
      if not pool:
        first = Point(place, window, 0)
      pool.append(found[window])
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
  # Rows without a window attend to one token: nothing is divided by zero.
  real = mask.copy()
  mask[len(windows) :, 0] = True
  special = real & (framed | np.isin(ids, sorted(plan.special)))
  user = real & ~special & np.isin(ids, plan.drop_ids)
  return Batch(
    point=point,
    ids=ids,
    mask=mask,
    keep=real & ~special & ~user,
    doc=doc,
    pos=pos,
    dropped={
      PADDING: int((~real).sum()),
      SPECIAL: int(special.sum()),
      USER: int(user.sum()),
    },
    tokens=int((real & ~framed).sum()),
  )
