"""What a Gaussian posterior and its KL term do to a TopK SAE.

References:
  Analysis of Variational Sparse Autoencoders, 2025.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from saejax.report import curves, page, study
from saejax.studies import arms

ROWS = 4096  # held-out rows that correlations are taken over


def measure(trained: arms.Trained) -> list[dict[str, Any]]:
  """Dependence of latents and size of the posterior mean, of each SAE.

  Returns:
    dependence: mean over pairs of live latents of |correlation|, 0 where all
      are uncorrelated; mean_square: mean over rows of sum_i a_i^2, a the
      posterior mean (the rectified pre-activation).
  """
  batch = next(arms.chunks(trained.rows.held_out, ROWS))
  return [
    {name: float(value) for name, value in _numbers(sae, batch).items()}
    for sae in trained.saes
  ]


@jax.jit
def _numbers(sae, batch):
  out = sae.forward(batch, engine="dense")
  z = out.latents.dense()
  centred = z - jnp.mean(z, axis=0)
  spread = jnp.sqrt(jnp.mean(centred**2, axis=0))
  live = spread > 0
  unit = jnp.where(live, centred / jnp.where(live, spread, 1), 0)
  correlation = jnp.abs(unit.T @ unit) / z.shape[0]
  pairs = live[:, None] & live[None] & ~jnp.eye(z.shape[1], dtype=bool)
  return {
    "dependence": jnp.sum(jnp.where(pairs, correlation, 0))
    / jnp.maximum(jnp.sum(pairs), 1),
    "mean_square": jnp.mean(jnp.sum(jax.nn.relu(out.pre.a) ** 2, axis=-1)),
  }


def sections(
  points: Sequence[Mapping[str, Any]],
) -> tuple[list[page.Section], dict[str, Any]]:
  """What the page says, and its plots by name."""
  swept = [p for p in points if p["weight"] is not None]
  baseline = [p for p in points if p["weight"] is None]
  weights = sorted({p["weight"] for p in swept})
  drawn = {}
  for title, name in (
    ("Reconstruction", "fvu"),
    ("Dead latents", "dead"),
    ("Dependence", "dependence"),
    ("Posterior mean", "mean_square"),
  ):
    curve = curves.by_arm(_named(swept), "weight", name, by=("weight",))
    values = [p[name] for p in baseline]
    curve["TopK"] = curves.Curve(
      weights, [float(np.mean(values))] * len(weights)
    )
    drawn[title] = curve
  made = curves.panels(
    drawn,
    curves.Axis("weight of the KL or L2 term", log=True),
    [
      curves.Axis("FVU", log=True),
      curves.Axis("dead (share of latents)"),
      curves.Axis("mean |correlation| of live latents"),
      curves.Axis("mean sum of squares", log=True),
    ],
  )
  columns = {
    "method": ("Method", ""),
    "weight": ("KL weight", ".3g"),
    "seed": ("Seed", "d"),
    "l0": ("L0", ".2f"),
    "fvu": ("FVU", ".4f"),
    "dead": ("Dead", ".3f"),
    "dependence": ("Dependence", ".4f"),
    "mean_square": ("Mean square", ".3f"),
  }
  return [
    page.Section(
      "Over the weight",
      [
        page.Prose(
          "Each curve is one form of the posterior, with standard deviations "
          "over seeds; the flat line is TopK without a penalty. Where the "
          "variational curves follow the L2 control, the KL term acts as a "
          "penalty on the size of the latents and nothing else."
        ),
        study.figure(
          made,
          "FVU, dead latents, dependence and posterior mean over KL weight.",
          "Measured on held-out rows.",
        ),
      ],
    ),
    page.Section(
      "Every SAE", [study.table(points, columns, "All that were trained.")]
    ),
  ], {"over_weight": made}


def _named(points):
  return [{**p, "arm": p["method"]} for p in points]
