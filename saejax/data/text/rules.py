"""Rules for the tokens of a window that are never rows, and edits under them.

A token is dropped, by the first rule that holds,
  special   if it is a special token, at any position;
  first     if it is one of the first positions of its window, whatever it is:
            some models put a norm a hundred times larger there;
  drop_ids  if it is one of the user's ids;
  corpus    if the corpus says so, as of all but an assistant's words;
  not_last  if a window is one row and it is not the last token of its window;
  outlier   if its norm is above a multiple of the median norm.

An SAE has seen no such row, so an edit of a model must not replace one:
`RowRules.guarded` keeps the original.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int

from saejax.data.store.reader import Store
from saejax.errors import InputError
from saejax.models import edits

SPECIAL, FIRST, USER, OUTLIER = "special", "first", "drop_ids", "outlier"
CORPUS, NOT_LAST = "corpus", "not_last"


def shown(ids: Int[np.ndarray, "*b"]) -> Int[np.ndarray, "*b"]:
  """Returns the ids that a model sees; a corpus writes ~id where no row is.

  Args:
    ids: tokens of documents.

  >>> shown(np.asarray([5, ~7])).tolist()
  [5, 7]
  """
  return np.where(ids < 0, ~ids, ids)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowRules:
  """The rules of a harvest; those of a store by `from_store`.

  Attributes:
    special: ids that are never rows, at any position.
    first: number of positions at the start of each window that are never rows,
      special tokens around the window included.
    drop_ids: further ids that are never rows.
    limits: largest norm of a row, one per site; infinite where there is none.
    one_row: whether only the last token of a window is a row.
  """

  special: frozenset[int] = frozenset()
  first: int = 0
  drop_ids: tuple[int, ...] = ()
  limits: tuple[float, ...] = (float("inf"),)
  one_row: bool = False

  def dropped(
    self,
    ids: Int[np.ndarray, "*b T"],
    real: Bool[np.ndarray, "*b T"],
    position: Int[np.ndarray, "*b T"],
  ) -> dict[str, Bool[np.ndarray, "*b T"]]:
    """Returns the tokens that each rule of ids and positions drops.

    Args:
      ids: tokens, with ~id for those that are no rows, see `shown`.
      real: which tokens exist; a window's follow each other.
      position: position of each token in its window.
    """
    kept, seen = real.copy(), shown(ids)
    position = np.broadcast_to(position, real.shape)
    last = np.ones(real.shape, bool)
    last[..., :-1] = ~real[..., 1:] | (position[..., 1:] <= position[..., :-1])
    found = {}
    for rule, dropped in (
      (SPECIAL, np.isin(seen, sorted(self.special))),
      (FIRST, position < self.first),
      (USER, np.isin(seen, self.drop_ids)),
      (CORPUS, ids < 0),
      (NOT_LAST, ~last & self.one_row),
    ):
      found[rule] = kept & dropped
      kept &= ~dropped
    return found

  def guarded(self, edit: edits.AnyEdit, *, site: int = 0) -> edits.Edit:
    """Returns an edit that leaves dropped rows as they are.

    Every rule applies, that of outliers to the norm at this site. Dropped rows
    are padding to the edit, so that its state does not depend on them either.

    Args:
      edit: edit of the activations at a site.
      site: place of the site among those of the store.
    """
    inner = edits.prepared(edit)
    never = np.array(sorted({*self.special, *self.drop_ids}), np.int32)
    limit = np.float32(self.limits[site])
    start = np.int32(self.first)
    guard = Partial(_guard, inner, start, never, limit)
    return inner.replace(function=guard)


def _guard(
  edit: edits.Edit,
  start: Int[Array, ""],
  never: Int[Array, "n"],
  limit: Float[Array, ""],
  h: Float[Array, "B T ..."],
  context: edits.Context,
  state: Any = None,
) -> Any:
  rows = context.mask & (context.positions >= start)
  rows &= ~jnp.isin(context.ids, never)
  return edits.at_rows(edit, rows, limit, h, context, state)


def from_store(store: Store) -> RowRules:
  """Returns the rules that the rows of a harvest of text passed.

  Args:
    store: the store.

  Raises:
    InputError: the store is not of text.
  """
  meta = store.meta
  if "drop_first" not in meta:
    raise InputError(
      "store",
      str(store.place),
      "must be a harvest of text that records its rules for rows",
      "harvest it again",
    )
  return RowRules(
    special=frozenset((*meta["special"], *meta["prefix"], *meta["suffix"])),
    first=meta["drop_first"],
    drop_ids=tuple(meta["drop_ids"]),
    limits=limits(
      store.stats["calibration"]["median_norm"], meta["outlier_multiple"]
    ),
  )


def limits(
  median_norm: Sequence[float] | np.ndarray, multiple: float
) -> tuple[float, ...]:
  """Returns the largest norm of a row at each site.

  Args:
    median_norm: median norm at each site.
    multiple: multiple of it that is allowed; 0 for no limit.

  >>> limits([2.0, 0.0], 10)
  (20.0, inf)
  """
  found = np.asarray(median_norm, np.float64) * multiple
  return tuple(np.where(found > 0, found, np.inf).tolist())
