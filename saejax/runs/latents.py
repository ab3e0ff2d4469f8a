"""Some latents of the best SAE of a run, for its page."""

import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from saejax import terminal
from saejax.errors import InputError
from saejax.features import overview, reading
from saejax.report import cards_page, page, plots
from saejax.runs import grid as grids
from saejax.sae import files

PASSES = "passes"  # folder of a stopped pass, in that of the run


def blocks(
  grid: grids.Grid, points: Sequence[Mapping[str, Any]]
) -> list[page.Block]:
  """Makes cards of ten latents in one pass over the held-out rows.

  The SAE is that of the lowest held-out loss; where the run has one of fewer
  latents and otherwise equal settings, it shows what a latent splits into. A
  stopped pass is resumed.

  Args:
    grid: a grid that was trained.
    points: its points.

  Returns:
    The blocks, or a note on why there are no cards.
  """
  places = folders(grid, points)
  good = plots.good(points)
  if not good:
    return []
  best = min(good, key=lambda p: p["nmse"])
  like = lambda p: (p.get("arguments"), p.get("seed"))
  fewer = [p for p in good if p["n"] < best["n"] and like(p) == like(best)]
  smaller = max(fewer, key=lambda p: p["n"], default=None)
  try:
    with terminal.busy("looking at some latents on the held-out rows"):
      W = smaller and _decoder(files.load(places[id(smaller)]))
      sae = files.load(places[id(best)])
      folder = str(grid.path / PASSES)
      kept = reading.kept(folder, "overview", sae, grid.held_out)
      found = overview.make(
        sae,
        grid.held_out,
        lambda total: overview.picks(total, _decoder(sae), W),
        kept=kept,
      )
      kept.remove()
  except (InputError, NotImplementedError) as error:
    why = error.rule if isinstance(error, InputError) else str(error)
    return [page.Note(f"There are no cards of latents: {why}.")]
  return cards_page.blocks(
    found,
    sae=_name(best),
    command=f"--sae={shlex.quote(str(places[id(best)]))}"
    f" --store={shlex.quote(str(grid.held_out.place))}",
    smaller=smaller and smaller["n"],
  )


def _decoder(sae: Any) -> np.ndarray:
  return np.asarray(sae.W_dec, np.float32)


def _name(point: Mapping[str, Any]) -> str:
  k = f", k = {point['k']:,}" if point["k"] >= 1 else ""
  return f"n = {point['n']:,}{k}" + f", seed {point['seed']}" * bool(
    point["seed"]
  )


def folders(
  grid: grids.Grid, points: Sequence[Mapping[str, Any]]
) -> dict[int, pathlib.Path]:
  """Returns the folder of the SAE of each point, by the `id` of the point.

  Args:
    grid: a grid that was trained.
    points: all its points, in the order of `grid.train`.
  """
  found = {}
  for n in grid.sae.n:
    members = grids.members(n, grid.sae, grid.train)
    mine = [p for p in points if p["n"] == n]
    for member, point in zip(members, mine, strict=True):
      found[id(point)] = grids.sae_folder(grid, n, member, point)
  return found
