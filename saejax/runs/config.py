"""Which SAEs a run trains."""

import dataclasses
from typing import Literal

from saejax import checks
from saejax.errors import InputError
from saejax.recipes import catalogue


@dataclasses.dataclass(frozen=True, kw_only=True)
class SAEConfig:
  """Which SAEs to train: every n with every k, coefficient and seed."""

  recipe: str = "topk"  # training method, a name of recipes.catalogue
  n: tuple[int, ...] = (1024,)  # latents; each n is a group of its own
  k: tuple[int, ...] = (16,)  # active latents per row, if the method has a k
  coefficients: tuple[float, ...] = ()  # factors of its penalty, if it has one
  seeds: int = 1  # SAEs of each of these, from seeds 0, 1, ...
  prep: Literal[
    "none", "centre_scale", "scale", "scale_sqrt_d", "row_layer_norm"
  ] = "centre_scale"  # of x
  k_aux: int = 0  # dead latents per row in AuxK; 0: d/2, at most n
  aux_weight: float = 1 / 32  # of the AuxK term

  def __post_init__(self):
    if self.recipe not in catalogue.METHODS:
      raise InputError(
        "recipe",
        self.recipe,
        f"must be one of {', '.join(catalogue.METHODS)}",
        "such as topk",
      )
    checks.distinct(self, "n", "k")
    if self.sweeps == "k" and max(self.k) > min(self.n):
      raise InputError(
        "k",
        max(self.k),
        f"must be in [1, n={min(self.n)}]",
        "lower k or raise the smallest n",
      )
    if self.coefficients and self.sweeps != "coefficient":
      raise InputError(
        "coefficients",
        self.coefficients,
        f"{self.recipe} has no penalty to sweep",
        "leave them out",
      )
    if self.coefficients:
      checks.distinct(self, "coefficients", least=0)
    checks.at_least(self, 1, "seeds")
    checks.at_least(self, 0, "k_aux", "aux_weight")

  @property
  def sweeps(self) -> str:
    """Argument that moves L0 of the method."""
    return catalogue.METHODS[self.recipe].sweeps
