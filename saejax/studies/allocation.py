"""Who chooses which latents serve which tokens, and what that changes.

References:
  Ayonrinde, Adaptive Sparse Allocation with Mutual Choice and Feature Choice
  Sparse Autoencoders, 2024, arXiv:2411.02124.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from saejax.report import curves, page, study
from saejax.studies import arms

QUANTILES = (5, 25, 50, 75, 95)
RANKS = 40  # places on the curve of density against rank


def measure(trained: arms.Trained) -> list[dict[str, Any]]:
  """Use of latents on held-out rows, of each SAE.

  Returns:
    density_ranks, density: the density of the latent at some ranks, densest
    first, of those not dead; latents_per_token: quantiles of the number of
    latents of a row.
  """
  points = []
  for sae, found in zip(trained.saes, trained.found, strict=True):
    density = np.sort(found.density)[::-1]
    alive = density[density > 0]
    ranks = np.unique(
      np.geomspace(1, max(len(alive), 1), RANKS).round().astype(int)
    )
    counts = np.concatenate(
      [
        np.asarray(_counts(sae, part))
        for part in arms.chunks(trained.rows.held_out)
      ]
    )
    points.append(
      {
        "density_ranks": ranks[: len(alive)].tolist(),
        "density": alive[ranks[: len(alive)] - 1].tolist(),
        "latents_per_token": np.percentile(counts, QUANTILES).tolist(),
      }
    )
  return points


@jax.jit
def _counts(sae, batch):
  return sae.forward(batch).latents.count()


def sections(
  points: Sequence[Mapping[str, Any]], k: int
) -> tuple[list[page.Section], dict[str, Any]]:
  """What the page says, and its plots by name.

  Args:
    points: of all arms.
    k: whose use of latents is drawn.
  """
  l0 = curves.Axis("held-out L0 (latents per token)", log=True)
  frontier = curves.panels(
    {
      "Reconstruction": curves.by_arm(points, "l0", "fvu"),
      "Dead latents": curves.by_arm(points, "l0", "dead"),
    },
    l0,
    [curves.Axis("FVU", log=True), curves.Axis("dead (share of latents)")],
  )
  chosen = [p for p in points if p["k"] == k and p["seed"] == 0]
  ranks = {
    p["arm"]: curves.Curve(p["density_ranks"], p["density"])
    for p in chosen
    if p["density_ranks"]
  }
  tokens = {
    p["arm"]: curves.Curve(QUANTILES, p["latents_per_token"]) for p in chosen
  }
  use = curves.panels(
    {"Tokens per latent": ranks},
    curves.Axis("rank of the latent", log=True),
    curves.Axis("density (share of tokens)", log=True),
  )
  spread = curves.panels(
    {"Latents per token": tokens},
    curves.Axis("percentile of tokens"),
    curves.Axis("latents of the token"),
  )
  columns = {
    "arm": ("Method", ""),
    "k": ("k", "d"),
    "seed": ("Seed", "d"),
    "l0": ("L0", ".2f"),
    "fvu": ("FVU", ".4f"),
    "dead": ("Dead", ".3f"),
    "seconds": ("Seconds", ".1f"),
  }
  page_sections = [
    page.Section(
      "Frontier",
      [
        page.Prose(
          "Means over seeds with standard deviations. L0 and dead latents are "
          "those of the form that users hold: thresholds in the place of "
          "selection over the batch."
        ),
        study.figure(
          frontier,
          "FVU and dead latents against L0 for each allocation.",
          "FVU (left) and share of dead latents (right) at held-out L0.",
        ),
      ],
    ),
    page.Section(
      "Use of latents",
      [
        study.figure(
          use,
          "Density of latents against their rank.",
          f"Density against rank at k = {k}, seed 0.",
        ),
        study.figure(
          spread,
          "Quantiles of the number of latents of a token.",
          f"Latents per token at k = {k}, seed 0.",
        ),
      ],
    ),
    page.Section(
      "Every SAE", [study.table(points, columns, "All that were trained.")]
    ),
  ]
  return page_sections, {
    "frontier": frontier,
    "density_rank": use,
    "latents_per_token": spread,
  }
