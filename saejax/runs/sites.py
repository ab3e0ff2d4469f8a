"""Rows of one site or of several, for `fit_grid`: each SAE reads those of its site."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from saejax.data import shared
from saejax.data.online import OnlineRows
from saejax.data.sites import SiteBatches
from saejax.errors import InputError
from saejax.runs import inputs
from saejax.training import sources
from saejax.training.config import TrainConfig


@dataclasses.dataclass(frozen=True, eq=False)
class Sites:
  """Rows of several sites of equal width, on each of which SAEs are trained.

  Stores of one harvest are read in one order, so that the SAEs of all sites see
  the same tokens. Rows of `OnlineRows` are computed in one pass for all sites.

  Args:
    rows: rows of each site by its name: arrays, stores, rows that are computed
      in training, or streams of batches, as `saejax.fit` takes them.

  Raises:
    InputError: there is no site, or a name is empty.
  """

  rows: Mapping[str, Any]

  def __post_init__(self):
    if not self.rows or "" in self.rows:
      names = ", ".join(self.rows)
      raise InputError("x", names, "must have named sites", "name each site")


def given(x: Any, held_out: Any) -> dict[str, inputs.Rows]:
  """Returns the rows by site; those of one site that has no name under "".

  Args:
    x: rows as for `inputs.given`, or `Sites`.
    held_out: rows to evaluate on, for `Sites` a mapping by site; or None.

  Raises:
    InputError: as `inputs.given`; a site has no held-out rows or another width.
  """
  if not isinstance(x, Sites):
    return {"": inputs.given(x, held_out)}
  if held_out is not None and (
    not isinstance(held_out, Mapping) or set(held_out) != set(x.rows)
  ):
    raise InputError(
      "held_out",
      ", ".join(held_out) if isinstance(held_out, Mapping) else type(held_out),
      f"must have the rows of each site: {', '.join(x.rows)}",
      "give a mapping from site to rows",
    )
  own = held_out or dict.fromkeys(x.rows)
  found = {name: inputs.given(x.rows[name], own[name]) for name in x.rows}
  widths = {name: rows.d for name, rows in found.items()}
  if len(set(widths.values())) > 1:
    raise InputError(
      "x",
      ", ".join(f"{name} of width {d}" for name, d in widths.items()),
      "must have sites of one width",
      "train sites of other widths in another call",
    )
  return found


def source(
  rows: Mapping[str, inputs.Rows], config: TrainConfig, steps: int
) -> sources.Source:
  """Builds the batches of a run, see `inputs.Rows.source`.

  Args:
    rows: from `given`.
    config: batch_rows, seed and mesh of the run.
    steps: number of batches.
  """
  if "" in rows:
    return rows[""].source(config, steps)
  stores = [one.store for one in rows.values()]
  if all(isinstance(store, OnlineRows) for store in stores):
    read = {"batch_rows": config.batch_rows, "seed": config.seed}
    readers = shared.readers(stores, **read)
    return sources.Stream(SiteBatches(dict(zip(rows, readers, strict=True))))
  each = {name: one.batches(config, steps) for name, one in rows.items()}
  return sources.Stream(SiteBatches(each))


def steps(rows: Mapping[str, inputs.Rows], batch_rows: int) -> int | None:
  """Returns the steps of one pass over the shortest site; None for streams.

  Args:
    rows: from `given`.
    batch_rows: rows per batch.
  """
  found = [one.steps(batch_rows) for one in rows.values()]
  known = [count for count in found if count is not None]
  return min(known) if len(known) == len(found) else None
