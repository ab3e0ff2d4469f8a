"""Makes the order of a loader from its arguments, and checks them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from saejax.data import mix as mixes
from saejax.data import order
from saejax.data.mix import Mix
from saejax.data.store.reader import Store
from saejax.errors import InputError

WINDOW_BYTES = 2**28  # maximum size of the windows that a batch is drawn from


def fields(
  store: Store | Mix, columns: Sequence[str] | None = None
) -> tuple[str, ...]:
  """Returns the names of the columns that `batches` reads.

  Args:
    store: the store or mix.
    columns: names of columns; by default those declared for training.

  Raises:
    InputError: the store has no such column, or x is not among them.
  """
  names = store.trained if columns is None else tuple(columns)
  missing = [name for name in names if name not in store.columns]
  if missing or "x" not in names:
    raise InputError(
      "columns",
      ", ".join(names),
      f"must include x and be columns of the store {store.place}: "
      f"{', '.join(store.columns)}",
      f"write a store with {', '.join(missing) or 'x'}",
    )
  return tuple(dict.fromkeys(names))


def make(
  store: Store | Mix,
  *,
  batch_rows: int,
  seed: int,
  epochs: int | None,
  window_chunks: int,
  lanes: int,
  columns: Sequence[str] | None,
  grouped: bool,
) -> tuple[order.Plan, dict[str, Any]]:
  """Makes the order of rows, and the settings that determine it.

  Args:
    store: the store or mix.
    batch_rows, seed, epochs, window_chunks, lanes, columns, grouped: as for
      `loader.batches`.

  Raises:
    InputError: there is no such column, or an argument is out of range.
  """
  for name, value, least in (
    ("batch_rows", batch_rows, 1),
    ("seed", seed, 0),
    ("epochs", 1 if epochs is None else epochs, 1),
    ("window_chunks", window_chunks, 1),
    ("lanes", lanes, 1),
  ):
    if value < least:
      rule = f"must be at least {least}"
      raise InputError(name, value, rule, f"use {least} or more")
  if batch_rows % lanes:
    raise InputError(
      "lanes",
      lanes,
      f"must divide the {batch_rows} rows of a batch",
      "use a divisor, or another batch_rows",
    )
  if grouped and store.group_rows == 1:
    raise InputError(
      "grouped",
      grouped,
      f"the store {store.place} has no groups of rows",
      "write the store with group=COLUMN",
    )
  stores = mixes.parts(store)
  row = sum(store.columns[n].row_bytes for n in fields(store, columns))
  group = store.group_rows if grouped else 1
  streams: list[list[order.Stream]] = [[] for _ in range(lanes)]
  windows = []
  for i, (one, _) in enumerate(stores):
    chunks = np.asarray(one.chunks, np.int64).reshape(-1, 2)
    if len(chunks) < lanes:
      raise _few_chunks(one, "lanes", lanes)
    most = min(window_chunks, WINDOW_BYTES // (one.meta["chunk_rows"] * row))
    windows.append(max(1, most // (lanes * len(stores))))
    for lane, own in enumerate(order.dealt(chunks, lanes, seed)):
      number = i * lanes + lane
      streams[lane].append(order.Stream(own, seed, windows[-1], group, number))
  weights = [weight for _, weight in stores]
  settings = {
    "stores": [one.content for one, _ in stores],
    "weights": weights,
    "seed": seed,
    "batch_rows": batch_rows,
    "lanes": lanes,
    "grouped": grouped,
    "window_chunks": windows,
  }
  return order.Plan(streams, weights, batch_rows), settings


def check_processes(
  store: Store | Mix, batch_rows: int, index: int, count: int
) -> None:
  """Checks that processes can share the batches of a store.

  Args:
    store: the store or mix.
    batch_rows: rows per batch.
    index: index of this process.
    count: number of processes.

  Raises:
    InputError: there are more than chunks, or they do not divide a batch.
  """
  if not 0 <= index < count:
    raise ValueError(f"process_index must be in [0, {count}), got {index}")
  for one, _ in mixes.parts(store):
    if len(one.chunks) < count:
      raise _few_chunks(one, "processes", count)
  if batch_rows % count:
    raise InputError(
      "batch_rows",
      batch_rows,
      f"must divide by the number of processes, {count}",
      f"use a multiple of {count}",
    )


def _few_chunks(store: Store, what: str, count: int) -> InputError:
  return InputError(
    what,
    count,
    f"must be at most the chunks of the store {store.place} "
    f"({len(store.chunks)} of {store.meta['chunk_rows']} rows)",
    f"use fewer {what}, or harvest with a smaller chunk_rows",
  )


def check_size(store: Store | Mix, plan: order.Plan) -> None:
  """Checks that no batch has a row twice.

  Args:
    store: the store or mix.
    plan: the order of its rows.

  Raises:
    InputError: a batch has more rows of a store than there are.
  """
  shares = plan.taken(1)
  unit = "groups" if plan.streams[0][0].group > 1 else "rows"
  for i, (one, _) in enumerate(mixes.parts(store)):
    # With several stores a batch can have one more than the first.
    share = shares[i] + (len(shares) > 1)
    items = min(lane[i].items for lane in plan.streams)
    if share > items:
      total = sum(lane[i].items for lane in plan.streams)
      share *= len(plan.streams)
      raise InputError(
        "batch_rows",
        plan.batch_items,
        f"a batch has {share} {unit} of {one.place} and must have at most the "
        f"{unit} of the store ({total})",
        "lower batch_rows or the weight of that store, or write a store of "
        "more rows",
      )


def check_position(state: Any, ours: Mapping[str, Any]) -> None:
  """Checks that a position is one of this order.

  Args:
    state: the position.
    ours: settings of the order, from `make`.

  Raises:
    InputError: it has other settings, or is no position.
  """
  known = isinstance(state, Mapping) and state.keys() >= {"batches", "order"}
  batches_done = state["batches"] if known else None
  if not isinstance(batches_done, int) or batches_done < 0:
    raise InputError(
      "position",
      state,
      "must be {'batches': number, 'order': settings} of a loader",
      "start a new run, or use the release that saved this position",
    )
  theirs = state["order"]
  for name, value in ours.items():
    if theirs.get(name) != value:
      raise InputError(
        f"position.{name}",
        theirs.get(name),
        f"was saved by a loader with this, and here it is {value}",
        "resume with the settings and stores of that run, or start a new one",
      )
