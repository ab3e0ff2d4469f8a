"""The stores of a run: harvested, sampled, described."""

import sys
import time
from collections.abc import Mapping
from typing import Any

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


def describe(store: Store, held_out: Store) -> dict[str, Any]:
  """Facts about the rows of a run, for its results."""
  return {
    "model": store.meta.get("model"),
    "site": store.meta.get("site"),
    "corpus": store.meta.get("corpus"),
    "train": {"store": str(store.path), "rows": store.rows},
    "held_out": {"store": str(held_out.path), "rows": held_out.rows},
  }
