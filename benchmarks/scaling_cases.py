"""Cases of scaling_efficiency.py: every method, with what a mesh could break.

Each method of the catalogue is a case under its own name, with latents that die,
schedules, phases and penalties that pass within `STEPS` steps. Others switch on
parts that a method has and does not use by default.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks import agreement_cases
from benchmarks.step_programs import Sizes
from saejax.recipes import catalogue
from saejax.recipes.common import Target
from saejax.sae.context import Batch
from saejax.training import recipe as recipes

STEPS = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  """A method with some of its parts switched on.

  Attributes:
    method: name in the catalogue.
    more: arguments and options beside those of the studies; functions are
      called with the sizes.
    engine: "auto", "dense" or "sparse".
    weighted: whether rows have weights, some of them 0.
    even: whether rows have equal norms, so that they keep about as many latents.
  """

  method: str
  more: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  engine: str = "auto"
  weighted: bool = False
  even: bool = False

  @property
  def rate(self) -> float:
    """Learning rate."""
    return 3e-3 * catalogue.METHODS[self.method].rate

  def recipe(self, sizes: Sizes) -> recipes.Recipe:
    """Builds the recipe.

    Args:
      sizes: sizes of a step.
    """
    more = {k: v(sizes) if callable(v) else v for k, v in self.more.items()}
    return agreement_cases.recipe(self.method, sizes, steps=STEPS, **more)

  def batches(self, sizes: Sizes, steps: int) -> list[dict[str, np.ndarray]]:
    """Rows for some steps.

    Args:
      sizes: sizes of a step.
      steps: number of batches.
    """
    found = agreement_cases.batches(self.method, sizes, steps=steps)
    for i, batch in enumerate(found):
      if self.even:
        x = batch["x"]
        batch["x"] = x / np.linalg.norm(x, axis=-1, keepdims=True)
      if "target" in self.more:
        width = self.more["target"].d
        batch["target"] = np.tanh(batch["x"])[:, :width]
      if self.weighted:
        rng = np.random.default_rng(i)
        batch["weight"] = rng.integers(0, 3, sizes.rows).astype(np.float32)
    return found

  def sample(self, sizes: Sizes) -> Batch:
    """The rows that initial weights are drawn with.

    Args:
      sizes: sizes of a step.
    """
    steps = agreement_cases.SAMPLED.get(self.method, 1)
    return agreement_cases.joined(self.batches(sizes, steps))


def _general(sizes: Sizes) -> Any:
  return agreement_cases.general(sizes.n, sizes.d)


CASES: Mapping[str, Case] = {
  **{name: Case(method=name) for name in catalogue.METHODS},
  # Few rows use latents unevenly, and members would be drawn anew at every step.
  "mfr": Case(method="mfr", more={"restart_above": None}),
  "topk (EMA and clipping)": Case(
    method="topk", more={"ema_decay": 0.9, "clip_norm": 1.0}
  ),
  "topk (rows with weights)": Case(method="topk", weighted=True),
  "topk (transcoder)": Case(method="topk", more={"target": Target(d=12)}),
  "topk (boosting)": Case(method="topk", more={"residual_of": _general}),
  "batchtopk (rows of equal norm)": Case(method="batchtopk", even=True),
  "batchtopk (signed and zipf)": Case(
    method="batchtopk", more={"signed": True, "aux": "zipf"}
  ),
  "feature_choice (zipf)": Case(
    method="feature_choice", more={"budget": "zipf", "aux": "zipf"}
  ),
  "jumprelu (target of L0)": Case(
    method="jumprelu",
    more={"penalty": "l0_target", "target_l0": 4.0, "coefficient": 1.0},
  ),
  "jumprelu (tanh and silent)": Case(
    method="jumprelu", more={"penalty": "tanh_quadratic", "silent_weight": 1e-3}
  ),
  "matryoshka (drawn and sorted)": Case(
    method="matryoshka", more={"sampled": 4, "sort_decay": 0.95}
  ),
  "matryoshka (uneven prefixes)": Case(
    method="matryoshka", more={"prefixes": lambda sizes: (5, 77, sizes.n)}
  ),
  "kronsae (shared)": Case(
    method="kronsae", more={"m": 4, "q": 4, "shared": True}
  ),
  "ra_sae (more points)": Case(method="ra_sae", more={"points": 300}),
  "vsae (masked)": Case(method="vsae", more={"masked": True}),
  "atm (masks)": Case(method="atm", more={"mask_start": 0.25}),
  "mfr (restarts)": Case(method="mfr"),
  "tide (learned)": Case(method="tide", more={"modulation": "learned"}),
  "tide (standardised)": Case(
    method="tide", more={"modulation": "standardise"}
  ),
}
