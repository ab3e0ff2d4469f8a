"""The stores of a run: harvested, sampled, described."""

import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from saejax import terminal
from saejax.data import harvest
from saejax.data.store.reader import Store
from saejax.data.text import subject


def harvested(
  config: harvest.HarvestConfig, source: subject.Subject | None = None
) -> tuple[Store, Store]:
  """The training and the held-out store, with progress on standard error."""
  screen = terminal.Screen(sys.stderr)
  shown = 0.0

  def progress(state: Mapping[str, Any]) -> None:
    nonlocal shown
    now = time.monotonic()
    pause = 0.2 if screen.is_terminal else 10.0
    if not state["complete"] and now - shown < pause:
      return
    shown = now
    rows, wanted = state["rows"], state["rows_wanted"]
    rate = state["rows_per_second"]
    left = (wanted - rows) / rate if rate else float("inf")
    screen.status(
      [
        f"harvest {state['phase']}: {rows:,}/{wanted:,} rows",
        f"{terminal.count(rate)} rows/s",
        "complete" if state["complete"] else f"ETA {terminal.duration(left)}",
        f"dropped {sum(state['dropped'].values()):,} tokens",
      ]
    )

  try:
    return harvest.harvest(config, source=source, progress=progress)
  finally:
    screen.end()


def spread(store: Store, rows: int, blocks: int = 16) -> np.ndarray:
  """About `rows` rows of a store, in blocks spread evenly over it."""
  if store.rows <= rows:
    return np.concatenate([store.read(a, b) for a, b in store.intervals])
  chunks = store.chunks
  picks = sorted({round(i) for i in np.linspace(0, len(chunks) - 1, blocks)})
  each = -(-rows // len(picks))
  parts = []
  for i in picks:
    first, last = chunks[i]
    parts.append((first, min(first + each, last)))
  return np.concatenate(store.read_many(parts))[:rows]


def describe(store: Store, held_out: Store) -> dict[str, Any]:
  """Facts about the rows of a run, for its results."""
  return {
    "model": store.meta.get("model"),
    "site": store.meta.get("site"),
    "corpus": store.meta.get("corpus"),
    "train": {"store": str(store.path), "rows": store.rows},
    "held_out": {"store": str(held_out.path), "rows": held_out.rows},
  }
